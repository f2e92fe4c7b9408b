//! Callers at the data port who have no business there.

use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

use kvferry_core::Time;
use kvferry_transport::{EndpointId, Fault};
use kvferry_transport_tcp::Settings;
use kvferry_transport_tcp::frame::{Frame, HELLO_BYTES};

use crate::stage::{ENDPOINT, KEY, Stage};

/// The first bytes of a caller, who must be closed without a word, and counted.
fn refused(stage: &mut Stage, first_bytes: &[u8]) {
    let before = stage.transport.counters().hellos_refused;
    let mut caller = stage.call();
    stage.write(&mut caller, first_bytes);
    stage.expect_silent_close(&mut caller);
    assert_eq!(stage.transport.counters().hellos_refused, before + 1);
}

/// Proves that the transport still works.
fn still_open(stage: &mut Stage, endpoint: EndpointId) {
    let mut caller = stage.call();
    stage.write(&mut caller, &Frame::hello(endpoint, 0, &KEY));
    assert_eq!(stage.read_frame(&mut caller), Frame::Welcome);
}

#[test]
fn random_bytes() {
    let mut stage = Stage::new(&Settings::default());
    stage.admit(ENDPOINT, &[KEY], Time::NEVER);
    let mut state = 1_u64;
    for _ in 0..100 {
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        })
        .take(HELLO_BYTES)
        .collect();
        refused(&mut stage, &noise);
    }
    refused(&mut stage, &[b'G'; 4096]);
    still_open(&mut stage, ENDPOINT);
}

#[test]
fn keys_that_do_not_fit() {
    let mut stage = Stage::new(&Settings::default());
    let other_key = [7; 32];
    stage.admit(ENDPOINT, &[KEY, other_key], Time::NEVER);
    let mut almost = KEY;
    almost[31] ^= 1;
    refused(&mut stage, &Frame::hello(ENDPOINT, 0, &almost));
    // A good key, but of another stream, of a stream or of an endpoint that does not exist.
    refused(&mut stage, &Frame::hello(ENDPOINT, 0, &other_key));
    refused(&mut stage, &Frame::hello(ENDPOINT, 2, &KEY));
    refused(&mut stage, &Frame::hello(ENDPOINT, u32::MAX, &KEY));
    refused(&mut stage, &Frame::hello(EndpointId(99), 0, &KEY));
    // A key that was damaged on the way.
    let mut damaged = Frame::hello(ENDPOINT, 0, &KEY);
    damaged[HELLO_BYTES - 1] ^= 1;
    refused(&mut stage, &damaged);
    // Another frame than a Hello.
    let mut welcome = Frame::Welcome.encode().to_vec();
    welcome.extend_from_slice(&KEY);
    refused(&mut stage, &welcome);
    still_open(&mut stage, ENDPOINT);
}

#[test]
fn a_key_used_twice() {
    let mut stage = Stage::new(&Settings::default());
    stage.admit(ENDPOINT, &[KEY, [7; 32]], Time::NEVER);
    let mut first = stage.call();
    stage.write(&mut first, &Frame::hello(ENDPOINT, 0, &KEY));
    assert_eq!(stage.read_frame(&mut first), Frame::Welcome);
    refused(&mut stage, &Frame::hello(ENDPOINT, 0, &KEY));
    // And still when the endpoint is up.
    let mut second = stage.call();
    stage.write(&mut second, &Frame::hello(ENDPOINT, 1, &[7; 32]));
    assert_eq!(stage.read_frame(&mut second), Frame::Welcome);
    refused(&mut stage, &Frame::hello(ENDPOINT, 0, &KEY));
    assert!(!stage.is_down(ENDPOINT));
}

#[test]
fn a_key_that_came_too_late() {
    let mut stage = Stage::new(&Settings::default());
    let expires = stage.now().after(Duration::from_secs(10));
    stage.admit(ENDPOINT, &[KEY], expires);
    stage.skip(Duration::from_secs(11));
    assert_eq!(stage.down(ENDPOINT), Fault::Deadline);
    refused(&mut stage, &Frame::hello(ENDPOINT, 0, &KEY));
}

#[test]
fn a_key_that_is_seen_too_late() {
    let mut stage = Stage::new(&Settings::default());
    let expires = stage.now().after(Duration::from_secs(1));
    stage.admit(ENDPOINT, &[KEY], expires);
    let mut caller = stage.call();
    stage.settle();
    caller.write_all(&Frame::hello(ENDPOINT, 0, &KEY)).expect("write");
    // The next turn sees the key and the end of its time together.
    stage.skip(Duration::from_secs(1));
    stage.expect_silent_close(&mut caller);
    assert_eq!(stage.down(ENDPOINT), Fault::Deadline);
}

#[test]
fn half_of_the_streams_until_the_admission_expires() {
    let mut stage = Stage::new(&Settings::default());
    let expires = stage.now().after(Duration::from_secs(10));
    stage.admit(ENDPOINT, &[KEY, [7; 32]], expires);
    still_open(&mut stage, ENDPOINT);
    stage.admit(EndpointId(12), &[KEY, [7; 32]], expires);
    let mut caller = stage.call();
    stage.write(&mut caller, &Frame::hello(EndpointId(12), 0, &KEY));
    assert_eq!(stage.read_frame(&mut caller), Frame::Welcome);
    // The first one's only caller has hung up by now.
    assert_eq!(stage.down(ENDPOINT), Fault::PeerClosed);
    stage.skip(Duration::from_secs(11));
    assert_eq!(stage.down(EndpointId(12)), Fault::Deadline);
    stage.expect_silent_close(&mut caller);
}

#[test]
fn callers_who_say_nothing_are_few_and_do_not_stay() {
    let settings = Settings { half_open_max: 4, ..Settings::default() };
    let mut stage = Stage::new(&settings);
    stage.admit(ENDPOINT, &[KEY], Time::NEVER);
    let mut silent: Vec<_> = (0..6).map(|_| stage.call()).collect();
    // One says half a Hello, which does not help it.
    let hello = Frame::hello(ENDPOINT, 0, &KEY);
    stage.write(&mut silent[0], &hello[..HELLO_BYTES / 2]);
    stage.settle();
    assert_eq!(stage.transport.counters().connections_accepted, 4);
    let mut good = stage.call();
    stage.write(&mut good, &hello);
    stage.skip(settings.hello_max);
    stage
        .until("the others to be let in", |stage| (stage.transport.counters().connections_accepted == 7).then_some(()));
    assert_eq!(stage.transport.counters().hellos_late, 4);
    assert_eq!(stage.read_frame(&mut good), Frame::Welcome);
    for caller in &mut silent[..4] {
        stage.expect_silent_close(caller);
    }
}

#[test]
fn a_caller_who_hangs_up() {
    let mut stage = Stage::new(&Settings::default());
    stage.admit(ENDPOINT, &[KEY], Time::NEVER);
    for length in [0, 1, HELLO_BYTES - 1] {
        let mut caller = stage.call();
        stage.write(&mut caller, &Frame::hello(ENDPOINT, 0, &KEY)[..length]);
        caller.shutdown(Shutdown::Write).expect("hang up");
        stage.expect_silent_close(&mut caller);
    }
    assert_eq!(stage.transport.counters().hellos_refused, 3);
    still_open(&mut stage, ENDPOINT);
}
