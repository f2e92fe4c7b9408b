//! Readiness: edges from one epoll, then `sendmsg` and `recvmsg` until a short one, at most four a stream and turn.

use std::io;
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::flow::Flow;
use crate::{Failure, Wait, Way};

const CALLS_MAX: usize = 4;

fn wait_for(set: &OwnedFd, wait: Wait, calls: &mut u64, mut ready: impl FnMut(usize)) -> Result<(), Failure> {
    let none = Timespec { tv_sec: 0, tv_nsec: 0 };
    if wait == Wait::Poll {
        *calls += 1;
        poll(&mut [PollFd::new(set, PollFlags::IN)], None)?;
    }
    let mut room = [MaybeUninit::uninit(); 64];
    *calls += 1;
    let (events, _) = epoll::wait(set, &mut room, if wait == Wait::Own { None } else { Some(&none) })?;
    for event in &*events {
        ready(usize::try_from(event.data.u64())?);
    }
    Ok(())
}

fn run(mut flows: Vec<Flow>, way: Way, wait: Wait, send: bool) -> Result<u64, Failure> {
    let set = epoll::create(CreateFlags::CLOEXEC)?;
    let interest = EventFlags::ET | if send { EventFlags::OUT } else { EventFlags::IN };
    for (index, flow) in flows.iter().enumerate() {
        flow.socket.set_nonblocking(true)?;
        epoll::add(&set, &flow.socket, EventData::new_u64(index as u64), interest)?;
    }
    let mut ready = vec![true; flows.len()];
    let calls_max = if way == Way::EpollOnce { 1 } else { CALLS_MAX };
    let mut calls = 0;
    while flows.iter().any(|flow| !flow.is_done()) {
        let mut busy = false;
        for (flow, ready) in flows.iter_mut().zip(&mut ready) {
            for _ in 0..calls_max {
                if !*ready || flow.is_done() {
                    break;
                }
                let asked = flow.gather()?;
                let mut message = flow.message();
                calls += 1;
                // SAFETY: the message names the flow's vectors, and they name its region, both alive in this call.
                let moved = unsafe {
                    if send {
                        libc::sendmsg(flow.socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
                    } else {
                        libc::recvmsg(flow.socket.as_raw_fd(), &raw mut message, 0)
                    }
                };
                let moved = match u64::try_from(moved) {
                    Ok(0) => return Err("the other end has gone".into()),
                    Ok(moved) => moved,
                    Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => 0,
                    Err(_) => return Err(io::Error::last_os_error().into()),
                };
                flow.done += moved;
                *ready = moved == asked;
            }
            busy |= *ready && !flow.is_done();
        }
        let done = flows.iter().all(Flow::is_done);
        if !done {
            let wait = if busy { Wait::Spin } else { wait };
            wait_for(&set, wait, &mut calls, |index| ready[index] = true)?;
        }
    }
    Ok(calls)
}

pub(crate) fn send(flows: Vec<Flow>, way: Way, wait: Wait) -> Result<u64, Failure> {
    run(flows, way, wait, true)
}

pub(crate) fn receive(flows: Vec<Flow>, way: Way, wait: Wait) -> Result<u64, Failure> {
    run(flows, way, wait, false)
}

pub(crate) fn echo(mut socket: &TcpStream, wait: Wait, count: usize, first: bool) -> Result<Vec<Duration>, Failure> {
    use std::io::{Read, Write};
    socket.set_nonblocking(true)?;
    let set = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&set, socket, EventData::new_u64(0), EventFlags::ET | EventFlags::IN)?;
    let mut bytes = [7; 64];
    let (mut times, mut calls) = (Vec::with_capacity(count), 0);
    for _ in 0..count {
        let begun = Instant::now();
        if first {
            socket.write_all(&bytes)?;
        }
        let mut ready = false;
        while !ready {
            wait_for(&set, wait, &mut calls, |_| ready = true)?;
        }
        socket.read_exact(&mut bytes)?;
        if !first {
            socket.write_all(&bytes)?;
        }
        times.push(begun.elapsed());
    }
    Ok(times)
}
