//! Bytes that nobody should send, on every port: nothing panics, and nothing stays open.

use std::io::{Read as _, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use kvferry_proto::v1::{self, Role, to_daemon};
use kvferry_transport_tcp::frame::{Frame, HELLO_BYTES};

use crate::support::session::{Session, frame, hello};
use crate::support::{Daemon, Dice, PATIENCE, SLACK, StandInEngine};

/// Of 10,000 in all, over four ports.
const CONNECTIONS: u32 = 2500;

/// The first bytes of a protocol that the port does speak, so that garbage gets further in.
fn beginnings(dice: &mut Dice) -> Vec<Vec<u8>> {
    let hello = frame(&v1::ToDaemon { id: 1, body: Some(hello(Role::Worker, v1::PROTOCOL)) });
    let key: Vec<u8> = dice.bytes(32);
    let data = Frame::hello(kvferry_transport::EndpointId(7), 0, &key.try_into().expect("32 bytes"));
    vec![
        Vec::new(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        // And an empty SETTINGS frame.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
        b"GET /metrics HTTP/1.1\r\n".to_vec(),
        // 4 GiB, less one byte.
        vec![0xff; 4],
        hello[..hello.len() / 2].to_vec(),
        hello,
        data[..HELLO_BYTES / 2].to_vec(),
        data.to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
    ]
}

#[test]
fn ten_thousand_connections_of_garbage_leave_nothing() {
    let mut dice = Dice::throw("ten_thousand_connections");
    let (p, d) = (Daemon::start(), Daemon::start());
    let prefill = StandInEngine::attach(&p, "P0");
    let mut decode = StandInEngine::attach(&d, "D0");
    let before = p.footprint();
    let beginnings = beginnings(&mut dice);
    for _ in 0..CONNECTIONS {
        let which = usize::try_from(dice.below(10)).expect("an index");
        let mut bytes = beginnings[which].clone();
        let count = usize::try_from(dice.below(200)).expect("few");
        bytes.extend(dice.bytes(count));
        let waits = dice.below(50) == 0;
        for port in [p.peer, p.data, p.admin] {
            let mut stream = TcpStream::connect(port).expect("connect");
            // The daemon may hang up before all of it is there.
            let _ = stream.write_all(&bytes);
            if waits {
                // Lets it say what it has to say.
                let _ = stream.shutdown(Shutdown::Write);
                stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
                let _ = stream.read_to_end(&mut Vec::new());
            }
        }
        let mut stream = UnixStream::connect(p.socket()).expect("connect");
        let _ = stream.write_all(&bytes);
    }
    p.wait_footprint(before);
    let key = decode.redeem(&prefill.grant("r1", &[1, 2], 10_000).ticket, &[1, 2]);
    assert_eq!(decode.outcome(key), None);
}

#[test]
fn a_frame_of_4_gib_ends_its_session() {
    let daemon = Daemon::start();
    let before = daemon.footprint();
    for length in [u32::MAX, (16 << 20) + 1] {
        let mut session = Session::open(&daemon.socket());
        session.stream.write_all(&length.to_le_bytes()).expect("write");
        session.wait_closed();
        let mut session = Session::greeted(&daemon.socket(), Role::Operator);
        session.stream.write_all(&length.to_le_bytes()).expect("write");
        session.wait_closed();
    }
    // Half a frame, and nothing more.
    let mut session = Session::greeted(&daemon.socket(), Role::Operator);
    let question = frame(&v1::ToDaemon { id: 9, body: Some(to_daemon::Body::Status(v1::StatusQuery {})) });
    session.stream.write_all(&question[..question.len() - 1]).expect("write");
    session.stream.shutdown(Shutdown::Write).expect("shutdown");
    session.wait_closed();
    // A frame that is none.
    let mut session = Session::greeted(&daemon.socket(), Role::Operator);
    session.stream.write_all(&[3, 0, 0, 0, 0xff, 0xff, 0xff]).expect("write");
    session.wait_closed();
    daemon.wait_footprint(before);
}

/// Waits until the port has closed a connection on which only `bytes` were sent.
fn closed_after(port: SocketAddr, bytes: &[u8]) -> Duration {
    let since = Instant::now();
    let mut stream = TcpStream::connect(port).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    stream.write_all(bytes).expect("write");
    loop {
        match stream.read(&mut [0; 1024]) {
            Ok(0) => return since.elapsed(),
            Ok(_) => {}
            Err(error) => {
                assert!(error.kind() != std::io::ErrorKind::WouldBlock, "{port} keeps a silent connection");
                return since.elapsed();
            }
        }
    }
}

#[test]
fn a_data_connection_without_its_key_is_closed() {
    let daemon = Daemon::start();
    let hello = Frame::hello(kvferry_transport::EndpointId(7), 0, &[5; 32]);
    // Nothing, half a greeting, and one whose key nobody was given.
    for (bytes, most) in [(&hello[..0], 2), (&hello[..40], 2), (&hello[..], 0)] {
        let took = closed_after(daemon.data, bytes);
        assert!(took < Duration::from_secs(most) + SLACK, "{} bytes: {took:?}", bytes.len());
    }
}
