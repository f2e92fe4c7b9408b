//! Stale completions, a full queue, and operations that are recalled.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use io_uring::opcode;

use super::{Direction, Message, Operation, QUEUE_ENTRIES, Ring, probe};
use crate::token::Token;
use crate::wire::Body;

/// A ring that the test's thread has turned once; none where the kernel has none, by name.
fn ring(test: &str) -> Option<Ring> {
    if let Err(missing) = probe() {
        eprintln!("skipped: {test}: {missing}");
        return None;
    }
    Some(Ring::open().expect("the probe says that it works"))
}

const TURNS_MAX: u32 = 1_000_000;

fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let near = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
    (near, listener.accept().expect("accept").0)
}

fn receive(ring: &mut Ring, lane: usize, socket: &TcpStream) -> bool {
    ring.post(lane, socket.as_fd(), &Message::In { room: 8 }, &Body::None).expect("post")
}

/// Turns until nothing is in flight on the lane; a bug takes forever.
fn settle(ring: &mut Ring, lane: usize) {
    for _ in 0..TURNS_MAX {
        ring.commit();
        ring.reap(|_, _| {});
        if ring.operation(lane).is_none() {
            return;
        }
        std::thread::yield_now();
    }
    panic!("it is still in flight");
}

#[test]
fn a_stale_completion_is_counted_and_matches_nothing() {
    let Some(mut ring) = ring("a_stale_completion_is_counted_and_matches_nothing") else { return };
    let (_near, far) = connected();
    let lane = ring.add_lane(Token::Door, Direction::Inbound);
    ring.reap(|_, _| {});
    assert!(receive(&mut ring, lane, &far));
    let current = ring.operation(lane).expect("posted");
    // An operation of the same lane that was before this one, and one of a lane that is not there.
    let earlier = Operation { generation: current.generation.wrapping_sub(1), ..current };
    let elsewhere = Operation { lane: 77, ..current };
    for operation in [earlier, elsewhere] {
        assert!(ring.push(&opcode::Nop::new().build(), operation.to_u64()));
    }
    ring.commit();
    ring.reap(|_, _| panic!("matched"));
    assert_eq!(ring.stale, 2);
    assert!(ring.is_posted(current), "still waits");
    assert!(ring.take(lane).is_none());
}

#[test]
fn a_full_queue_pushes_back() {
    let Some(mut ring) = ring("a_full_queue_pushes_back") else { return };
    let (_near, far) = connected();
    let lanes: Vec<usize> = (0..=QUEUE_ENTRIES).map(|_| ring.add_lane(Token::Door, Direction::Inbound)).collect();
    // Nothing leaves the queue before the ring is some thread's.
    let posted = lanes.iter().filter(|&&lane| receive(&mut ring, lane, &far)).count();
    assert_eq!(posted, QUEUE_ENTRIES as usize);
    let last = lanes[posted];
    assert!(ring.is_idle(last), "handed back");
    ring.reap(|_, _| {});
    assert!(receive(&mut ring, last, &far), "there is room again");
}

#[test]
fn a_recalled_operation_moves_nothing_and_the_next_does() {
    let Some(mut ring) = ring("a_recalled_operation_moves_nothing_and_the_next_does") else { return };
    let (near, far) = connected();
    let lane = ring.add_lane(Token::Door, Direction::Inbound);
    ring.reap(|_, _| {});
    assert!(receive(&mut ring, lane, &far));
    ring.commit();
    let operation = ring.operation(lane).expect("waits for bytes");
    assert!(ring.recall(operation) && ring.recall(operation), "once is enough, twice does no harm");
    settle(&mut ring, lane);
    assert_eq!(ring.take(lane).expect("a result").expect("no fault").bytes, 0);
    std::io::Write::write_all(&mut &near, b"eight by").expect("write");
    assert!(receive(&mut ring, lane, &far));
    settle(&mut ring, lane);
    let finished = ring.take(lane).expect("a result").expect("no fault");
    assert_eq!((finished.bytes, finished.ahead), (8, b"eight by".as_slice()));
}
