//! How sockets are made: non-blocking, without Nagle, with keepalive and a congestion control that suits them.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::settings::Settings;

/// Connections that wait in the kernel to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 1024;
/// An idle peer that vanished is noticed after 10 s + 3 * 5 s; a busy one by the stall limit.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;

/// A socket that listens.
pub(crate) fn listen(address: SocketAddr, settings: &Settings) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // Before listening: an accepted socket inherits both, and the window scale is agreed in the handshake.
    set_buffers(&socket, settings.socket_buffer_bytes)?;
    settings.congestion.apply(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A socket on its way to `address`. Whether it gets there shows when it becomes writable.
pub(crate) fn dial(address: SocketAddr, settings: &Settings) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    set_buffers(&socket, settings.socket_buffer_bytes)?;
    settings.congestion.apply(&socket)?;
    tune(&socket)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// Makes an accepted socket like a dialled one.
pub(crate) fn adopt(stream: TcpStream) -> io::Result<TcpStream> {
    let socket = Socket::from(stream);
    tune(&socket)?;
    Ok(socket.into())
}

/// Has the kernel call a socket readable only once this many bytes are there, or its end.
pub(crate) fn set_low_water(socket: BorrowedFd<'_>, bytes: u32) -> Result<(), Errno> {
    let value = libc::c_int::try_from(bytes).map_err(|_| Errno::INVAL)?;
    let length = libc::socklen_t::try_from(size_of_val(&value)).map_err(|_| Errno::INVAL)?;
    // SAFETY: the fd is open for as long as it is borrowed; the option takes an int, which `value` is and outlives the
    // call, and `length` is its size.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            std::ptr::from_ref(&value).cast(),
            length,
        )
    };
    if done == 0 { Ok(()) } else { Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)) }
}

fn tune(socket: &Socket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    // A Fetch, a Trailer and the tail of a piece must not wait for an acknowledgement.
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY);
    socket.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_RETRIES))
}

fn set_buffers(socket: &Socket, bytes: u32) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    socket.set_send_buffer_size(bytes)?;
    socket.set_recv_buffer_size(bytes)
}
