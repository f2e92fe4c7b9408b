//! Completion: one operation a stream and direction on a ring, one enter a turn.

use std::alloc::Layout;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::flow::Flow;
use crate::{Failure, Wait, Way};

const BUFFERS: u16 = 64;
const BUFFER_BYTES: u32 = 64 << 10;

/// A ring, and the eventfd that it signals: with deferred task work, polling the ring's own descriptor was seen to miss
/// completions (Linux 6.18).
struct Ring {
    ring: IoUring,
    eventfd: OwnedFd,
}

impl std::ops::Deref for Ring {
    type Target = IoUring;

    fn deref(&self) -> &IoUring {
        &self.ring
    }
}

impl std::ops::DerefMut for Ring {
    fn deref_mut(&mut self) -> &mut IoUring {
        &mut self.ring
    }
}

fn ring() -> Result<Ring, Failure> {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_cqsize(4096);
    let mut ring = builder.build(256)?;
    let eventfd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
    ring.submitter().register_eventfd(eventfd.as_raw_fd())?;
    // Signals are wanted while the thread sleeps and at no other time.
    ring.completion().disable_eventfd();
    Ok(Ring { ring, eventfd })
}

/// Hands over what is queued and waits as told; nothing is asked of the kernel while there is nothing to ask.
fn turn(ring: &mut Ring, wait: Wait, calls: &mut u64) -> Result<(), Failure> {
    let queued = !ring.submission().is_empty();
    let work = ring.submission().taskrun();
    if wait == Wait::Own && ring.completion().is_empty() {
        *calls += 1;
        ring.submitter().submit_and_wait(1)?;
        return Ok(());
    }
    if queued || work {
        *calls += 1;
        // With deferred task work a want of none still runs it, through the flag for events.
        enter(ring)?;
    }
    if wait == Wait::Poll && ring.completion().is_empty() {
        ring.completion().enable_eventfd();
        fence(Ordering::SeqCst);
        // What came before the signal was enabled would not be signalled.
        if !ring.submission().taskrun() && ring.completion().is_empty() {
            *calls += 2;
            poll(&mut [PollFd::new(&ring.eventfd, PollFlags::IN)], None)?;
            rustix::io::read(&ring.eventfd, &mut [0; 8])?;
        }
        ring.completion().disable_eventfd();
        *calls += 1;
        enter(ring)?;
    }
    Ok(())
}

fn enter(ring: &mut Ring) -> Result<(), Failure> {
    const GETEVENTS: u32 = 1;
    let queued = u32::try_from(ring.submission().len())?;
    // SAFETY: no argument is a pointer.
    unsafe { ring.submitter().enter::<libc::sigset_t>(queued, 0, GETEVENTS, None)? };
    Ok(())
}

fn push(ring: &mut Ring, entry: &squeue::Entry) -> Result<(), Failure> {
    // SAFETY: each entry names a flow's socket, vectors and region, which live until the loop has seen its completion.
    unsafe { ring.submission().push(entry)? };
    Ok(())
}

fn post(
    ring: &mut Ring,
    flow: &mut Flow,
    way: Way,
    send: bool,
    message: &mut libc::msghdr,
    tag: usize,
) -> Result<(), Failure> {
    flow.gather()?;
    *message = flow.message();
    let fd = types::Fd(flow.socket.as_raw_fd());
    let (vectors, count) = (flow.vectors.as_ptr(), u32::try_from(flow.vectors.len())?);
    let entry = match (way, send) {
        (Way::Fixed, true) => opcode::WritevFixed::new(fd, vectors, count, 0).build(),
        (Way::Fixed, false) => opcode::ReadvFixed::new(fd, vectors, count, 0).build(),
        (Way::ZeroCopy, true) => opcode::SendMsgZc::new(fd, message).build(),
        (_, true) => opcode::SendMsg::new(fd, message).build(),
        (_, false) => opcode::RecvMsg::new(fd, message).build(),
    };
    push(ring, &entry.user_data(tag as u64))
}

fn register(ring: &Ring, flow: &Flow) -> Result<(), Failure> {
    let whole = flow.field.region.io_slice(0, flow.field.region.len())?;
    let vector = libc::iovec { iov_base: whole.as_mut_ptr().cast(), iov_len: whole.len() };
    // SAFETY: the region outlives the ring: the flows hold it.
    unsafe { ring.submitter().register_buffers(&[vector])? };
    Ok(())
}

fn run(mut flows: Vec<Flow>, way: Way, wait: Wait, send: bool) -> Result<u64, Failure> {
    let mut ring = ring()?;
    if way == Way::Fixed {
        register(&ring, &flows[0])?;
    }
    let (mut calls, mut notices) = (0, 0_u64);
    let mut messages = vec![flows[0].message(); flows.len()];
    let mut idle = vec![true; flows.len()];
    while notices > 0 || flows.iter().any(|flow| !flow.is_done()) {
        for (index, flow) in flows.iter_mut().enumerate() {
            if idle[index] && !flow.is_done() {
                post(&mut ring, flow, way, send, &mut messages[index], index)?;
                idle[index] = false;
            }
        }
        turn(&mut ring, wait, &mut calls)?;
        for done in ring.completion() {
            if cqueue::notif(done.flags()) {
                notices -= 1;
                continue;
            }
            let index = usize::try_from(done.user_data())?;
            notices += u64::from(cqueue::more(done.flags()));
            match u64::try_from(done.result()) {
                Ok(0) => return Err("the other end has gone".into()),
                Ok(moved) => flows[index].done += moved,
                Err(_) => return Err(std::io::Error::from_raw_os_error(-done.result()).into()),
            }
            idle[index] = true;
        }
    }
    Ok(calls)
}

pub(crate) fn send(flows: Vec<Flow>, way: Way, wait: Wait) -> Result<u64, Failure> {
    run(flows, if way == Way::Multishot { Way::Ring } else { way }, wait, true)
}

pub(crate) fn receive(flows: Vec<Flow>, way: Way, wait: Wait) -> Result<u64, Failure> {
    match way {
        Way::Multishot => multishot(flows, wait),
        Way::ZeroCopy => run(flows, Way::Ring, wait, false),
        _ => run(flows, way, wait, false),
    }
}

/// Memory that the kernel may write, aligned to a page and never named by a reference.
struct Lent {
    base: *mut u8,
    layout: Layout,
}

impl Lent {
    fn new(bytes: usize) -> Result<Self, Failure> {
        let layout = Layout::from_size_align(bytes, 4096)?;
        // SAFETY: the layout is not empty.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        if base.is_null() { Err("no memory".into()) } else { Ok(Self { base, layout }) }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and the ring that named it is gone.
        unsafe { std::alloc::dealloc(self.base, self.layout) };
    }
}

/// The kernel picks a buffer, the thread copies it into place.
fn multishot(mut flows: Vec<Flow>, wait: Wait) -> Result<u64, Failure> {
    let each = usize::try_from(BUFFER_BYTES)?;
    let (buffers, entries) = (Lent::new(each * usize::from(BUFFERS))?, Lent::new(16 * usize::from(BUFFERS))?);
    let mut ring = ring()?;
    // SAFETY: the entries are zeroed, page-aligned, as many as said, and live longer than the ring.
    unsafe { ring.submitter().register_buf_ring_with_flags(entries.base as u64, BUFFERS, 0, 0)? };
    let mut tail: u16 = 0;
    let mut give = |buffer: u16| {
        let slot = usize::from(tail % BUFFERS);
        // SAFETY: the slot lies inside the entries, which only this thread writes; the kernel reads what lies before
        // the tail, and the tail is released after the entry is whole.
        unsafe {
            let entry = entries.base.cast::<types::BufRingEntry>().add(slot);
            (*entry).set_addr(buffers.base.add(usize::from(buffer) * each) as u64);
            (*entry).set_len(BUFFER_BYTES);
            (*entry).set_bid(buffer);
            tail = tail.wrapping_add(1);
            let shared = types::BufRingEntry::tail(entries.base.cast()).cast::<AtomicU16>();
            (*shared).store(tail, Ordering::Release);
        }
    };
    (0..BUFFERS).for_each(&mut give);
    let mut calls = 0;
    let mut armed = vec![false; flows.len()];
    while flows.iter().any(|flow| !flow.is_done()) {
        for (index, flow) in flows.iter().enumerate().filter(|(_, flow)| !flow.is_done()) {
            if !armed[index] {
                let fd = types::Fd(flow.socket.as_raw_fd());
                push(&mut ring, &opcode::RecvMulti::new(fd, 0).build().user_data(index as u64))?;
                armed[index] = true;
            }
        }
        turn(&mut ring, wait, &mut calls)?;
        for done in ring.completion() {
            let index = usize::try_from(done.user_data())?;
            armed[index] &= cqueue::more(done.flags());
            let moved = match usize::try_from(done.result()) {
                Ok(0) if flows[index].is_done() => continue,
                Ok(0) => return Err("the other end has gone".into()),
                Ok(moved) => moved,
                Err(_) if -done.result() == libc::ENOBUFS => continue,
                Err(_) => return Err(std::io::Error::from_raw_os_error(-done.result()).into()),
            };
            let buffer = cqueue::buffer_select(done.flags()).ok_or("no buffer was named")?;
            let mut taken = 0;
            while taken < moved {
                let (spot, room) = flows[index].spot(flows[index].done)?;
                let length = room.min(moved - taken);
                // SAFETY: the kernel has given this buffer up, and the spot has room inside its region.
                unsafe {
                    spot.copy_from_nonoverlapping(buffers.base.add(usize::from(buffer) * each + taken), length);
                }
                taken += length;
                flows[index].done += length as u64;
            }
            give(buffer);
        }
    }
    Ok(calls)
}

pub(crate) fn echo(socket: &TcpStream, wait: Wait, count: usize, first: bool) -> Result<Vec<Duration>, Failure> {
    let mut ring = ring()?;
    let lent = Lent::new(4096)?;
    let fd = types::Fd(socket.as_raw_fd());
    let (mut times, mut calls) = (Vec::with_capacity(count), 0);
    let mut lacking = 2_u32;
    push(&mut ring, &opcode::Recv::new(fd, lent.base, 64).build().user_data(1))?;
    for round in 0..count {
        let begun = Instant::now();
        if first {
            push(&mut ring, &opcode::Send::new(fd, lent.base.wrapping_add(64), 64).build().user_data(2))?;
        }
        let mut received = false;
        while !received || (first && lacking > 1) {
            turn(&mut ring, wait, &mut calls)?;
            for done in ring.completion() {
                if done.result() != 64 {
                    return Err("not 64 bytes".into());
                }
                if done.user_data() == 1 { received = true } else { lacking -= 1 }
            }
        }
        lacking = 2;
        if round + 1 < count {
            push(&mut ring, &opcode::Recv::new(fd, lent.base, 64).build().user_data(1))?;
        }
        if !first {
            push(&mut ring, &opcode::Send::new(fd, lent.base.wrapping_add(64), 64).build().user_data(2))?;
        }
        times.push(begun.elapsed());
    }
    while !first && lacking > 1 {
        turn(&mut ring, Wait::Spin, &mut calls)?;
        lacking -= u32::try_from(ring.completion().filter(|done| done.user_data() == 2).count())?;
    }
    Ok(times)
}
