//! Mutual TLS between daemons: whoever cannot show the right certificate gets nowhere, and nobody listens in the clear
//! beyond loopback by accident.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use kvferry_proto::v1;
use kvferry_proto::v1::peer_client::PeerClient;
use kvferry_transport::EndpointId;
use kvferry_transport_tcp::frame::Frame;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tempfile::TempDir;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::support::{Daemon, DaemonOptions, PATIENCE, StandInEngine};

/// The name that every daemon's certificate carries.
const NAME: &str = "kvferry.test";

/// A certificate authority, and the files that a daemon of it is configured with.
struct Authority {
    directory: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("sign");
        let authority = Self { directory: tempfile::tempdir().expect("create a directory"), issuer };
        let (certificate, key) = authority.issue(NAME);
        for (file, text) in [("authority", authority.issuer.pem()), ("certificate", certificate), ("key", key)] {
            std::fs::write(authority.file(file), text).expect("write");
        }
        authority
    }

    /// A certificate and its key, PEM.
    fn issue(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.issuer).expect("sign").pem(), key.serialize_pem())
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(format!("{name}.pem"))
    }

    /// A line for `[peer]`; `more` keys in it.
    fn line(&self, more: &str) -> String {
        let [authority, certificate, key] = ["authority", "certificate", "key"].map(|name| self.file(name));
        format!(
            "tls = {{ authority = {authority:?}, certificate = {certificate:?}, key = {key:?}, name = \"{NAME}\"{more} }}"
        )
    }

    fn daemon(&self) -> Daemon {
        self.daemon_with("")
    }

    fn daemon_with(&self, more: &str) -> Daemon {
        Daemon::start_with(&DaemonOptions { peer: self.line(more), ..Default::default() })
    }
}

fn hand_over(prefill: &StandInEngine, d: &Daemon) -> Option<String> {
    let mut decode = StandInEngine::attach(d, "D0");
    let key = decode.redeem(&prefill.grant("r1", &[1, 2], 10_000).ticket, &[1, 2]);
    decode.outcome(key)
}

#[test]
fn daemons_of_one_authority_hand_over_and_no_others() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let p = ours.daemon();
    let prefill = StandInEngine::attach(&p, "P0");
    assert_eq!(hand_over(&prefill, &ours.daemon()), None);
    for stranger in [theirs.daemon(), Daemon::start()] {
        assert_eq!(hand_over(&prefill, &stranger).as_deref(), Some("unreachable"));
    }
    // Nor does one of ours ask a stranger.
    let stranger = theirs.daemon();
    let their_engine = StandInEngine::attach(&stranger, "P0");
    assert_eq!(hand_over(&their_engine, &ours.daemon()).as_deref(), Some("unreachable"));
    assert_eq!(hand_over(&prefill, &ours.daemon()), None);
}

#[test]
fn blocks_arrive_as_they_left() {
    let ours = Authority::new("ours");
    for more in ["", ", data = false"] {
        let (p, d) = (ours.daemon_with(more), ours.daemon_with(more));
        let (prefill, mut decode) = (StandInEngine::large(&p, "P0"), StandInEngine::large(&d, "D0"));
        prefill.fill(7);
        let (from, to): (Vec<u32>, Vec<u32>) = ((1..9).collect(), (11..19).rev().collect());
        for round in 0..3 {
            decode.scribble(&to);
            let ticket = prefill.grant(&format!("r{round}"), &from, 10_000).ticket;
            let key = decode.redeem(&ticket, &to);
            assert_eq!(decode.outcome(key), None);
            assert_eq!(prefill.sums(&p, &from), decode.sums(&d, &to), "with {more:?}");
        }
    }
}

#[test]
fn daemons_that_encrypt_data_do_not_mix_with_those_that_do_not() {
    let ours = Authority::new("ours");
    let (both, control) = (ours.daemon(), ours.daemon_with(", data = false"));
    for (p, d) in [(&both, &control), (&control, &both)] {
        assert_eq!(hand_over(&StandInEngine::attach(p, "P0"), d).as_deref(), Some("unreachable"));
        d.wait_log("set peer.tls.data alike on both");
    }
}

#[test]
fn the_data_port_answers_in_tls_alone() {
    let ours = Authority::new("ours");
    for (more, answer) in [("", [21_u8, 3].as_slice()), (", data = false", &[])] {
        let p = ours.daemon_with(more);
        let mut caller = TcpStream::connect(p.data).expect("connect");
        caller.set_read_timeout(Some(PATIENCE)).expect("set");
        caller.write_all(&Frame::hello(EndpointId(1), 0, &[7; 32])).expect("write");
        let mut said = Vec::new();
        caller.read_to_end(&mut said).expect("an end");
        assert!(said.starts_with(answer) && said.is_empty() == answer.is_empty(), "{said:?} with {more:?}");
    }
}

#[test]
fn a_caller_without_a_certificate_of_ours_is_refused() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let p = ours.daemon();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let release = |identity: Option<(String, String)>| {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ours.issuer.pem())).domain_name(NAME);
        if let Some((certificate, key)) = identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        runtime.block_on(async {
            let endpoint = Endpoint::from_shared(format!("https://{}", p.peer)).expect("an address");
            let channel = endpoint.tls_config(tls).expect("tls").connect().await.map_err(|error| error.to_string())?;
            let request = v1::ReleaseRequest { ticket: "none".to_owned() };
            PeerClient::new(channel).release(request).await.map_err(|error| error.to_string())
        })
    };
    assert!(release(None).is_err(), "no certificate");
    assert!(release(Some(theirs.issue(NAME))).is_err(), "another authority's certificate");
    assert!(release(Some(ours.issue("any.name"))).is_ok(), "the authority's word counts, not a caller's name");
}

fn serve(directory: &Path, peer: &str) -> String {
    let file = directory.join("kvferry.toml");
    let config = format!("[attach]\ndirectory = {directory:?}\n[peer]\n{peer}\n[admin]\nlisten = \"127.0.0.1:0\"\n");
    std::fs::write(&file, config).expect("write the config");
    let ended = Command::new(env!("CARGO_BIN_EXE_kvferry")).arg("serve").arg("--config").arg(&file).output();
    let ended = ended.expect("run");
    assert!(!ended.status.success(), "it must not serve {peer:?}");
    String::from_utf8_lossy(&ended.stderr).into_owned()
}

#[test]
fn nobody_listens_beyond_loopback_in_the_clear() {
    let directory = tempfile::tempdir().expect("create a directory");
    let said = serve(directory.path(), "listen = \"0.0.0.0:0\"");
    assert!(said.contains("reaches beyond loopback without [peer.tls]"), "{said}");
    let said = serve(directory.path(), "listen = \"0.0.0.0:0\"\nplaintext_beyond_loopback = \"yes\"");
    assert!(said.contains("it counts only as"), "{said}");
    let said = serve(
        directory.path(),
        "listen = \"127.0.0.1:0\"\ntls = { authority = \"/a\", certificate = \"/b\", key = \"/c\", name = \"n\" }",
    );
    assert!(said.contains("read /b"), "{said}");
}
