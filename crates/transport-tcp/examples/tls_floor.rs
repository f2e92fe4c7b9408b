//! What encryption costs one core, memory to memory: the floor under data-path TLS (docs/adr/0012).
//!
//! ```text
//! cargo run --release -p kvferry-transport-tcp --example tls_floor
//! ```
//!
//! Ciphers alone, the copies that no design can avoid, then both ways of making and opening records of 16 KiB: our own
//! framing around the cipher in place, and rustls. Regions are larger than any cache; what stands for the socket's
//! buffer stays in the second-level cache, as it does there.

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvferry_memory::{Meter, Region};
use ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::client::UnbufferedClientConnection;
use rustls::crypto::ring::{cipher_suite, default_provider};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

const RECORD_BYTES: usize = 16 << 10;
const SEALED_BYTES: usize = RECORD_BYTES + 22;
const RECORDS: usize = 32;
const PIECE_BYTES: usize = RECORD_BYTES * RECORDS;
const REGION_BYTES: u64 = 256 << 20;
const HEADER: [u8; 5] = [23, 3, 3, 0x40, 0x11];

type Failure = Box<dyn Error + Send + Sync>;

/// Does `step` for two seconds, with the offset of the next piece, and says how fast its own count of time was.
fn measure(what: &str, mut step: impl FnMut(u64) -> Result<Duration, Failure>) -> Result<(), Failure> {
    let (mut rates, begun) = (Vec::new(), Instant::now());
    while begun.elapsed() < Duration::from_secs(2) {
        let (mut took, mut offset) = (Duration::ZERO, 0);
        while offset < REGION_BYTES {
            took += step(offset)?;
            offset += PIECE_BYTES as u64;
        }
        rates.push(REGION_BYTES as f64 / took.as_secs_f64() / 1e9);
    }
    rates.sort_by(f64::total_cmp);
    println!("{what:58} {:6.2} median {:6.2} best GB/s", rates[rates.len() / 2], rates[rates.len() - 1]);
    Ok(())
}

/// The same, where all of a step counts.
fn measure_all(what: &str, mut step: impl FnMut(u64) -> Result<(), Failure>) -> Result<(), Failure> {
    measure(what, |offset| {
        let begun = Instant::now();
        step(offset)?;
        Ok(begun.elapsed())
    })
}

fn key(cipher: &'static aead::Algorithm) -> Result<LessSafeKey, Failure> {
    let key = UnboundKey::new(cipher, &vec![3; cipher.key_len()]).map_err(|_| "a key")?;
    Ok(LessSafeKey::new(key))
}

fn nonce(count: u64) -> Nonce {
    let mut nonce = [7; 12];
    nonce[4..].copy_from_slice(&count.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn seal(key: &LessSafeKey, count: u64, record: &mut [u8]) -> Result<(), Failure> {
    record[..5].copy_from_slice(&HEADER);
    record[5 + RECORD_BYTES] = 23;
    let (sealed, tag) = record.split_at_mut(6 + RECORD_BYTES);
    let made = key.seal_in_place_separate_tag(nonce(count), Aad::from(HEADER), &mut sealed[5..]);
    tag.copy_from_slice(made.map_err(|_| "seal")?.as_ref());
    Ok(())
}

fn own_records(source: &Region, target: &Region) -> Result<(), Failure> {
    let key = key(&aead::AES_128_GCM)?;
    let mut records = vec![0; SEALED_BYTES * RECORDS];
    let mut count = 0;
    measure_all("own records: region -> record, seal in place", |offset| {
        for (place, record) in (0..).step_by(RECORD_BYTES).zip(records.chunks_exact_mut(SEALED_BYTES)) {
            source.read(offset + place, &mut record[5..5 + RECORD_BYTES])?;
            count += 1;
            seal(&key, count, record)?;
        }
        Ok(())
    })?;
    let mut sealed = records.clone();
    for (count, record) in (0..).zip(sealed.chunks_exact_mut(SEALED_BYTES)) {
        seal(&key, count, record)?;
    }
    measure("own records: open in place, record -> region", |offset| {
        records.copy_from_slice(&sealed);
        let begun = Instant::now();
        for ((count, place), record) in
            (0..).zip((0..).step_by(RECORD_BYTES)).zip(records.chunks_exact_mut(SEALED_BYTES))
        {
            let plain = key.open_in_place(nonce(count), Aad::from(HEADER), &mut record[5..]).map_err(|_| "open")?;
            target.write(offset + place, &plain[..RECORD_BYTES])?;
        }
        Ok(begun.elapsed())
    })
}

/// One step of a connection. `Err` is a failure, `Ok(true)`: it wants bytes or is up.
macro_rules! advance {
    ($end:expr, $incoming:expr, $outgoing:expr, $is_up:expr) => {
        loop {
            let UnbufferedStatus { discard, state } = $end.process_tls_records(&mut $incoming);
            let waits = match state? {
                ConnectionState::EncodeTlsData(mut data) => {
                    let mut room = vec![0; 1 << 15];
                    let length = data.encode(&mut room)?;
                    $outgoing.extend_from_slice(&room[..length]);
                    false
                }
                ConnectionState::TransmitTlsData(data) => {
                    data.done();
                    false
                }
                ConnectionState::WriteTraffic(_) => {
                    $is_up = true;
                    true
                }
                _ => true,
            };
            $incoming.drain(..discard);
            if waits {
                break;
            }
        }
    };
}

fn connect() -> Result<(UnbufferedClientConnection, UnbufferedServerConnection), Failure> {
    let name = "floor.example";
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()])?;
    let suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
    let provider = Arc::new(rustls::crypto::CryptoProvider { cipher_suites: suites, ..default_provider() });
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone())?;
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&[&TLS13])?;
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let mut server = server.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key)?;
    server.send_tls13_tickets = 0;
    let client = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13])?;
    let client = client.with_root_certificates(roots).with_no_client_auth();
    let mut server = UnbufferedServerConnection::new(Arc::new(server))?;
    let mut client = UnbufferedClientConnection::new(Arc::new(client), name.try_into()?)?;
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let (mut client_up, mut server_up) = (false, false);
    while !(client_up && server_up) {
        advance!(client, to_client, to_server, client_up);
        advance!(server, to_server, to_client, server_up);
    }
    Ok((client, server))
}

fn rustls_records(source: &Region, target: &Region) -> Result<(), Failure> {
    let (mut client, mut server) = connect()?;
    // Key updates come between the records of a long run.
    let mut records = vec![0; SEALED_BYTES * RECORDS + 1024];
    let mut staging = vec![0; 4 * RECORD_BYTES];
    let mut opening = Duration::ZERO;
    let mut opened = Vec::new();
    measure("rustls: region -> staging, encrypt", |offset| {
        let (mut length, begun) = (0, Instant::now());
        for place in (0..PIECE_BYTES).step_by(staging.len()) {
            source.read(offset + place as u64, &mut staging)?;
            let UnbufferedStatus { state, .. } = client.process_tls_records(&mut []);
            let ConnectionState::WriteTraffic(mut traffic) = state? else { return Err("not up".into()) };
            length += traffic.encrypt(&staging, &mut records[length..])?;
        }
        let sealing = begun.elapsed();
        let (mut rest, mut landed, begun) = (&mut records[..length], 0, Instant::now());
        while !rest.is_empty() {
            let UnbufferedStatus { discard, state } = server.process_tls_records(rest);
            if let ConnectionState::ReadTraffic(mut traffic) = state? {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    target.write(offset + landed, record.payload)?;
                    landed += record.payload.len() as u64;
                }
            }
            rest = &mut rest[discard..];
        }
        opening += begun.elapsed();
        if offset + PIECE_BYTES as u64 == REGION_BYTES {
            opened.push(REGION_BYTES as f64 / std::mem::take(&mut opening).as_secs_f64() / 1e9);
        }
        Ok(sealing)
    })?;
    opened.sort_by(f64::total_cmp);
    let what = "rustls: decrypt, its own buffer -> region";
    println!("{what:58} {:6.2} median {:6.2} best GB/s", opened[opened.len() / 2], opened[opened.len() - 1]);
    Ok(())
}

fn main() -> Result<(), Failure> {
    let region = || -> Result<Arc<Region>, Failure> {
        Ok(Region::map(kvferry_memory::create("floor", REGION_BYTES)?, REGION_BYTES, &Meter::new())?)
    };
    let (source, target) = (region()?, region()?);
    let mut piece: Vec<u8> = (0_u32..).map(|place| (place % 251).to_le_bytes()[0]).take(PIECE_BYTES).collect();
    for offset in (0..REGION_BYTES).step_by(PIECE_BYTES) {
        source.write(offset, &piece)?;
        target.write(offset, &piece)?;
    }
    for (name, cipher) in [
        ("AES-128-GCM", &aead::AES_128_GCM),
        ("AES-256-GCM", &aead::AES_256_GCM),
        ("ChaCha20-Poly1305", &aead::CHACHA20_POLY1305),
    ] {
        let (key, mut record, mut count) = (key(cipher)?, vec![0; SEALED_BYTES], 0);
        measure_all(&format!("{name}: seal the same record in place"), |_| {
            for _ in 0..RECORDS {
                count += 1;
                seal(&key, count, &mut record)?;
            }
            Ok(())
        })?;
    }
    measure_all("region -> buffer", |offset| Ok(source.read(offset, &mut piece)?))?;
    measure_all("buffer -> region", |offset| Ok(target.write(offset, &piece)?))?;
    measure_all("CRC-32C of a region", |offset| {
        black_box(source.crc32c(0, offset, PIECE_BYTES as u64)?);
        Ok(())
    })?;
    own_records(&source, &target)?;
    rustls_records(&source, &target)
}
