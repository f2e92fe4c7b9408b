//! Plain connections between the two ends, for ceilings: opened by the far end's word, shown with a key.
//!
//! ```text
//! far: listen -> port by the control connection -> near: dial, key of 32 bytes -> far: accept, key compared
//! ```
//!
//! Limits: [`WAIT_MAX`] for each. A caller without the key is let go.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kvferry_transport::Key;
use kvferry_transport_tcp::Congestion;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use socket2::{Domain, Protocol, Socket, Type};

/// How long a connection may take, and how long one may stand still.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(10);
/// Callers without the key before this end gives up.
const STRANGERS_MAX: usize = 16;

/// Far end: a free port on this address.
pub(super) fn offer(address: IpAddr, congestion: &Congestion) -> Result<(TcpListener, u16)> {
    let listener = TcpListener::bind((address, 0)).context("listen for plain connections")?;
    congestion.apply(&listener)?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

/// Far end: `count` connections that show the key.
pub(super) fn accept(listener: &TcpListener, key: &Key, count: usize) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::with_capacity(count);
    let mut strangers = 0;
    while streams.len() < count {
        ensure!(readable(listener, WAIT_MAX), "no plain connection came within {WAIT_MAX:?}");
        let (mut stream, _) = listener.accept().context("accept a plain connection")?;
        stream.set_read_timeout(Some(WAIT_MAX))?;
        let mut shown = Key::default();
        if stream.read_exact(&mut shown).is_ok() && shown == *key {
            set_up(&stream)?;
            streams.push(stream);
        } else {
            strangers += 1;
            ensure!(strangers <= STRANGERS_MAX, "too many callers without the key");
        }
    }
    Ok(streams)
}

/// Near end: `count` connections.
pub(super) fn dial(address: SocketAddr, key: &Key, count: usize, congestion: &Congestion) -> Result<Vec<TcpStream>> {
    let open = |_| {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        congestion.apply(&socket)?;
        socket.connect_timeout(&address.into(), WAIT_MAX).context("open a plain connection")?;
        let mut stream = TcpStream::from(socket);
        stream.write_all(key).context("open a plain connection")?;
        set_up(&stream)?;
        Ok(stream)
    };
    (0..count).map(open).collect()
}

fn set_up(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(WAIT_MAX))?;
    Ok(stream.set_write_timeout(Some(WAIT_MAX))?)
}

/// Readable, or not within the time.
pub(super) fn readable(fd: &impl AsFd, within: Duration) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
    // Interrupted by a signal, it is asked again by whoever waits for longer.
    poll(&mut fds, Timespec::try_from(within).ok().as_ref()).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_let_go() {
        let (listener, port) = offer([127, 0, 0, 1].into(), &Congestion::System).expect("listen");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        drop(TcpStream::connect(address).expect("one that says nothing"));
        let wrong = dial(address, &[2; 32], 1, &Congestion::System).expect("one with another key");
        let right = dial(address, &[1; 32], 2, &Congestion::System).expect("two with the key");
        let accepted = accept(&listener, &[1; 32], 2).expect("two");
        let peers: Vec<_> = accepted.iter().map(|stream| stream.peer_addr().expect("a peer")).collect();
        let own: Vec<_> = right.iter().map(|stream| stream.local_addr().expect("an address")).collect();
        assert_eq!(peers, own);
        drop(wrong);
    }
}
