//! What a ring adds: operations that wait in the kernel, and memory they name.

use kvferry_core::WorkId;
use kvferry_transport::{Fault, Transport};
use kvferry_transport_tcp::frame::{Frame, Outcome};
use kvferry_transport_tcp::{Settings, TcpTransport};

use crate::stage::{ENDPOINT, LOCALHOST, Stage, content, piece, region, trailer, whole};

const WORK: WorkId = WorkId(1);
const BYTES: u32 = 256 << 10;

/// The kernel waits with the address of the target in its hands while the read is cancelled.
#[test]
fn a_cancelled_read_takes_its_memory_back() {
    let mut stage = Stage::new(&Settings::default());
    let mut socket = stage.play_holder(ENDPOINT);
    let (plan, target) = (whole(BYTES), region(BYTES, 0x11));
    let tag = stage.read_work(&mut socket, WORK, &plan, &target);
    // The header and half of the payload: a receive into the other half is under way.
    let bytes = piece(WORK, tag, 0, &vec![0x77; BYTES as usize]);
    let (now, later) = bytes.split_at(bytes.len() / 2);
    stage.write(&mut socket, now);
    stage.settle();
    stage.cancel(ENDPOINT, WORK);
    assert_eq!(stage.result(WORK), Err(Fault::Cancelled));
    // Its one completion came: the region is ours again, whatever else the holder sends.
    let before = content(&target);
    stage.write(&mut socket, later);
    stage.write(&mut socket, &trailer(WORK, tag, &plan, Outcome::Stopped));
    stage.settle();
    assert_eq!(content(&target), before, "written to after the completion");
    assert_eq!(std::sync::Arc::strong_count(&target), 1, "still held");
    // The stream is in step: the next read goes through.
    let cancel = stage.read_frame(&mut socket);
    assert!(matches!(cancel, Frame::Cancel { .. }), "{cancel:?}");
    let next = WorkId(2);
    let tag = stage.read_work(&mut socket, next, &plan, &target);
    stage.write(&mut socket, &piece(next, tag, 0, &vec![0x55; BYTES as usize]));
    stage.write(&mut socket, &trailer(next, tag, &plan, Outcome::Live));
    assert_eq!(stage.result(next), Ok(u64::from(BYTES)));
    assert_eq!(content(&target), vec![0x55; BYTES as usize]);
    assert_eq!(stage.transport.counters().completions_stale, 0);
}

/// The same when the whole endpoint goes.
#[test]
fn a_closed_endpoint_takes_its_memory_back() {
    let mut stage = Stage::new(&Settings::default());
    let mut socket = stage.play_holder(ENDPOINT);
    let (plan, target) = (whole(BYTES), region(BYTES, 0x11));
    let tag = stage.read_work(&mut socket, WORK, &plan, &target);
    let bytes = piece(WORK, tag, 0, &vec![0x77; BYTES as usize]);
    let (now, later) = bytes.split_at(bytes.len() / 2);
    stage.write(&mut socket, now);
    stage.settle();
    let at = stage.now();
    stage.transport.close(at, ENDPOINT);
    assert_eq!(stage.result(WORK), Err(Fault::Cancelled));
    assert_eq!(stage.down(ENDPOINT), Fault::Cancelled);
    let before = content(&target);
    stage.write(&mut socket, later);
    stage.settle();
    assert_eq!(content(&target), before, "written to after the completion");
    assert_eq!(std::sync::Arc::strong_count(&target), 1, "still held");
}

/// Whoever drops the transport in the middle of a receive gets its memory back unmapped, not written to.
#[test]
fn a_dropped_transport_takes_its_memory_back() {
    let mut stage = Stage::new(&Settings::default());
    let mut socket = stage.play_holder(ENDPOINT);
    let (plan, target) = (whole(BYTES), region(BYTES, 0x11));
    let tag = stage.read_work(&mut socket, WORK, &plan, &target);
    let bytes = piece(WORK, tag, 0, &vec![0x77; BYTES as usize]);
    stage.write(&mut socket, &bytes[..bytes.len() / 2]);
    stage.settle();
    drop(stage);
    assert_eq!(std::sync::Arc::strong_count(&target), 1, "still held");
}

/// A choice that this machine cannot follow is an error that says what to do.
#[test]
fn what_was_chosen_is_told() {
    let bind = |io| TcpTransport::bind((LOCALHOST, 0).into(), &Settings { io, ..Settings::default() });
    let auto = bind(kvferry_transport_tcp::Io::Auto).expect("auto always works");
    assert_ne!(auto.choice().io, kvferry_transport_tcp::Io::Auto);
    assert!(!auto.choice().reason.is_empty());
    match kvferry_transport_tcp::probe_uring() {
        Ok(()) => {
            let ring = bind(kvferry_transport_tcp::Io::Uring).expect("the probe says that it works");
            assert_eq!(ring.choice().io, kvferry_transport_tcp::Io::Uring);
        }
        Err(missing) => {
            let error = bind(kvferry_transport_tcp::Io::Uring).expect_err("the probe says that it does not work");
            assert_eq!(error.to_string(), missing.to_string());
        }
    }
}
