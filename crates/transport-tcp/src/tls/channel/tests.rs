use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::crypto::ring::{cipher_suite, default_provider};
use rustls::crypto::{CipherSuiteCommon, CryptoProvider};
use rustls::sign::CertifiedKey;
use rustls::{SignatureScheme, Tls13CipherSuite};

use self::certificates::{Authority, NAME};
use super::super::Pem;
use super::*;

#[path = "../../../tests/certificates/mod.rs"]
mod certificates;

impl Authority {
    fn tls_of(&self, name: &str, last_year: i32, provider: CryptoProvider) -> Tls {
        let (certificate, key) = self.identity(name, last_year);
        let (certificate, key, authority) = (certificate.as_bytes(), key.as_bytes(), self.pem());
        let pem = Pem { certificate, key, authority: authority.as_bytes(), name: NAME };
        Tls::with_provider(&pem, provider).expect("usable")
    }

    fn tls(&self) -> Tls {
        self.tls_of(NAME, 4000, default_provider())
    }
}

/// Both ends, and what either of them has heard.
struct Pair {
    ends: [Channel; 2],
    heard: [Vec<u8>; 2],
    pool: Pool,
}

impl Pair {
    fn new(client: &Tls, server: &Tls) -> Self {
        let ends = [Channel::client(client).expect("a client"), Channel::server(server).expect("a server")];
        Self { ends, heard: Default::default(), pool: Pool::default() }
    }

    /// Carries at most `step` bytes at a time to and fro until nothing moves.
    fn carry(&mut self, step: usize) -> Result<(), (usize, Fault)> {
        loop {
            let mut moved = false;
            for to in [0, 1] {
                let end = &mut self.ends[to];
                while end.may_open() {
                    let mut take = |bytes: &[u8]| {
                        self.heard[to].extend_from_slice(bytes);
                        Ok(())
                    };
                    end.open(&mut take).map_err(|fault| (to, fault))?;
                }
                let bytes = self.ends[1 - to].outgoing();
                let bytes = bytes[..bytes.len().min(step)].to_vec();
                let room = self.ends[to].room(&mut self.pool);
                let length = bytes.len().min(room.len());
                room[..length].copy_from_slice(&bytes[..length]);
                self.ends[to].received(length);
                self.ends[1 - to].sent(length);
                moved |= length > 0;
                self.ends[1 - to].rest(&mut self.pool);
            }
            if !moved && self.ends.iter().all(|end| !end.may_open() && end.outgoing().is_empty()) {
                return Ok(());
            }
        }
    }

    fn up(client: &Tls, server: &Tls) -> Self {
        let mut pair = Self::new(client, server);
        pair.carry(usize::MAX).expect("a handshake");
        assert!(pair.ends.iter().all(Channel::is_established));
        pair
    }

    fn seal(&mut self, from: usize, bytes: &[u8]) {
        for part in bytes.chunks(PLAIN_BYTES_MAX) {
            if self.ends[from].sealable(&mut self.pool) < part.len() {
                self.carry(usize::MAX).expect("room");
                assert!(self.ends[from].sealable(&mut self.pool) >= PLAIN_BYTES_MAX);
            }
            self.ends[from].seal(part).expect("seal");
        }
    }
}

fn noise(length: usize) -> Vec<u8> {
    (0_u32..).map(|place| place.wrapping_mul(2_654_435_761).to_be_bytes()[0]).take(length).collect()
}

#[test]
fn bytes_come_out_as_they_went_in_whatever_the_cuts() {
    let tls = Authority::new().tls();
    for step in [1, 7, 1500, RECORD_PLAIN_MAX, usize::MAX] {
        let mut pair = Pair::new(&tls, &tls);
        pair.carry(step).expect("a handshake");
        assert!(pair.ends.iter().all(Channel::is_established));
        for from in [0, 1] {
            let bytes = noise(if step == 1 { 20_000 } else { 3 * RECORDS_BYTES });
            pair.seal(from, &bytes);
            pair.carry(step).expect("records");
            assert!(pair.heard[1 - from] == bytes, "{step} bytes at a time from end {from}");
        }
    }
}

#[test]
fn idle_ends_hold_no_buffers() {
    let tls = Authority::new().tls();
    let mut pair = Pair::up(&tls, &tls);
    pair.seal(0, &noise(100_000));
    pair.carry(usize::MAX).expect("records");
    for end in &mut pair.ends {
        end.rest(&mut pair.pool);
        assert!(end.incoming.room().is_empty() && end.outgoing.room().is_empty());
    }
}

#[test]
fn what_comes_before_a_seal_is_not_lost() {
    let tls = Authority::new().tls();
    let mut pair = Pair::up(&tls, &tls);
    let bytes = noise(100_000);
    pair.seal(0, &bytes);
    // It lies here unopened when this end wants to speak.
    let sent = pair.ends[0].outgoing().to_vec();
    let room = pair.ends[1].room(&mut pair.pool);
    room[..sent.len()].copy_from_slice(&sent);
    pair.ends[1].received(sent.len());
    pair.ends[0].sent(sent.len());
    pair.seal(1, b"answer");
    pair.seal(1, b" and another");
    pair.carry(usize::MAX).expect("records");
    assert!(pair.heard[1] == bytes);
    assert_eq!(pair.heard[0], b"answer and another");
}

#[test]
fn nothing_is_sealed_before_the_peer_has_proved_itself() {
    let tls = Authority::new().tls();
    let mut pair = Pair::new(&tls, &tls);
    for end in &mut pair.ends {
        assert_eq!(end.sealable(&mut pair.pool), 0);
    }
}

/// Which end refuses, and that the other learns of it.
fn refusal(client: &Tls, server: &Tls) -> usize {
    let mut pair = Pair::new(client, server);
    let (refuses, fault) = pair.carry(usize::MAX).expect_err("must fail");
    assert_eq!(fault, Fault::Untrusted);
    assert_eq!(pair.ends[refuses].sealable(&mut pair.pool), 0, "nothing is sealed for a stranger");
    let told = pair.carry(usize::MAX).expect_err("must stay failed");
    assert_eq!(told.1, Fault::Untrusted);
    refuses
}

#[test]
fn strangers_are_refused() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    assert_eq!(refusal(&ours.tls(), &theirs.tls()), 0, "the dialler sees the certificate first");
    let provider = default_provider;
    assert_eq!(refusal(&ours.tls(), &ours.tls_of(NAME, 2001, provider())), 0, "expired");
    assert_eq!(refusal(&ours.tls_of(NAME, 2001, provider()), &ours.tls()), 1, "expired");
    assert_eq!(refusal(&ours.tls(), &ours.tls_of("other.test", 4000, provider())), 0, "another name");
    // As on the control connection: who calls may have any name.
    Pair::up(&ours.tls_of("other.test", 4000, provider()), &ours.tls());
}

#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn a_caller_without_a_certificate_is_refused() {
    let tls = Authority::new().tls();
    let mut client = rustls::ClientConfig::clone(&tls.client);
    client.client_auth_cert_resolver = Arc::new(NoCertificate);
    let nobody = Tls { client: Arc::new(client), server: Arc::clone(&tls.server), name: tls.name.clone() };
    assert_eq!(refusal(&nobody, &tls), 1);
}

#[test]
fn another_protocol_is_refused() {
    let tls = Authority::new().tls();
    // A client end of ours notices by itself that nothing was agreed on.
    for (protocols, refuses) in [(vec![b"h2".to_vec()], 1), (Vec::new(), 0)] {
        let mut client = rustls::ClientConfig::clone(&tls.client);
        client.alpn_protocols = protocols;
        let other = Tls { client: Arc::new(client), server: Arc::clone(&tls.server), name: tls.name.clone() };
        assert_eq!(refusal(&other, &tls), refuses);
    }
}

#[test]
fn no_changed_bit_changes_what_comes_out() {
    let tls = Authority::new().tls();
    for place in 0..122 {
        let mut pair = Pair::up(&tls, &tls);
        pair.seal(0, &[7; 100]);
        pair.ends[0].outgoing.filled_mut()[place] ^= 1;
        let carried = pair.carry(usize::MAX);
        match place {
            // Outer type and version are there for middle boxes; the inner type counts.
            0..3 => assert!(carried == Err((1, Fault::Untrusted)) || pair.heard[1] == [7; 100], "{place}"),
            // A longer record never comes to its end.
            3..5 => assert!(pair.heard[1].is_empty(), "{place}"),
            _ => assert_eq!(carried, Err((1, Fault::Untrusted)), "{place}"),
        }
    }
}

#[test]
fn a_record_that_comes_twice_is_noticed() {
    let tls = Authority::new().tls();
    let mut pair = Pair::up(&tls, &tls);
    pair.seal(0, b"once");
    let record = pair.ends[0].outgoing().to_vec();
    pair.carry(usize::MAX).expect("the first");
    let room = pair.ends[1].room(&mut pair.pool);
    room[..record.len()].copy_from_slice(&record);
    pair.ends[1].received(record.len());
    assert_eq!(pair.carry(usize::MAX), Err((1, Fault::Untrusted)));
    assert_eq!(pair.heard[1], b"once");
}

#[test]
fn noise_instead_of_a_handshake_is_refused() {
    let tls = Authority::new().tls();
    for length in [1, 5, 6, 100, HANDSHAKE_BYTES_MAX] {
        let mut pool = Pool::default();
        let mut server = Channel::server(&tls).expect("a server");
        // It looks like a handshake that goes on and on, which is as bad.
        for bytes in [noise(length), [[22, 3, 1, 0x40, 0].as_slice(), &vec![1; length]].concat()] {
            let room = server.room(&mut pool);
            let length = room.len().min(bytes.len());
            room[..length].copy_from_slice(&bytes[..length]);
            server.received(length);
            let opened = server.open(&mut |_| panic!("there is nothing in it"));
            assert!(matches!(opened, Ok(false) | Err(Fault::Untrusted)), "{opened:?}");
            assert!(!server.is_established());
            if length >= HANDSHAKE_BYTES_MAX {
                assert_eq!(opened, Err(Fault::Untrusted));
            }
        }
    }
}

/// A suite whose keys wear out after a few records.
fn weak_provider(records_max: u64) -> CryptoProvider {
    let suite = cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().expect("a suite of TLS 1.3");
    let common = CipherSuiteCommon { confidentiality_limit: records_max, ..suite.common };
    let weak: &'static Tls13CipherSuite = Box::leak(Box::new(Tls13CipherSuite { common, ..*suite }));
    CryptoProvider { cipher_suites: vec![weak.into()], ..default_provider() }
}

#[test]
fn keys_are_renewed_before_they_wear_out() {
    let authority = Authority::new();
    let tls = authority.tls_of(NAME, 4000, weak_provider(20));
    let mut pair = Pair::up(&tls, &tls);
    for from in [0, 1] {
        let bytes = noise(5 * RECORDS_BYTES);
        pair.seal(from, &bytes);
        pair.carry(usize::MAX).expect("records");
        assert!(pair.heard[1 - from] == bytes, "165 records under keys that are good for 20");
    }
    // They were asked for new keys too, and go on with them.
    pair.seal(0, b"still");
    pair.carry(usize::MAX).expect("records");
    assert!(pair.heard[1].ends_with(b"still"));
}
