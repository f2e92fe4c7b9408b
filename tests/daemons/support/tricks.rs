//! The data half of the hostile relay: bytes pass between reader and holder, but for what a trick does to them.
//!
//! A trick's place counts from the moment it was set. Between two transfers nothing flows, so place 0 is the first
//! byte of the next transfer: 56 bytes of header, then the payload.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use kvferry_transport_tcp::frame::{Frame, HEADER_BYTES};

/// What happens to the bytes of one direction.
#[derive(Clone, Debug)]
pub(crate) enum Trick {
    /// Nothing.
    Pass,
    /// The connection is closed after this many bytes.
    Close { at: u64 },
    /// This bit pattern is laid over the byte at this place.
    Flip { at: u64, bits: u8 },
    /// The first frame is another one.
    Forge(fn(Frame) -> Frame),
    /// Nothing passes after this many bytes until the trick changes. The sender is not read from either.
    Hold { at: u64 },
    /// These bytes stand in place of those that were sent.
    Overwrite { at: u64, bytes: Vec<u8> },
    /// The connection is reset after this many bytes.
    Reset { at: u64 },
}

/// One direction of all connections.
#[derive(Clone)]
pub(crate) struct Lane(Arc<(Mutex<LaneState>, Condvar)>);

struct LaneState {
    trick: Trick,
    passed: u64,
}

impl Lane {
    fn new() -> Self {
        Self(Arc::new((Mutex::new(LaneState { trick: Trick::Pass, passed: 0 }), Condvar::new())))
    }

    /// Sets a trick; its places count from here.
    pub(crate) fn set(&self, trick: Trick) {
        *self.0.0.lock().expect("lane") = LaneState { trick, passed: 0 };
        self.0.1.notify_all();
    }

    /// Bytes that have passed since the trick was set.
    pub(crate) fn passed(&self) -> u64 {
        self.0.0.lock().expect("lane").passed
    }

    /// What becomes of `bytes`: how many may go now, and how it goes on.
    fn take(&self, bytes: &mut [u8]) -> (usize, Next) {
        let mut state = self.0.0.lock().expect("lane");
        let length = bytes.len() as u64;
        let start = state.passed;
        // Where in `bytes` a place is, if it is not behind them.
        let within = |at: u64| usize::try_from(at.saturating_sub(start)).ok().filter(|index| *index < bytes.len());
        let (count, next) = match &state.trick {
            Trick::Close { at } => within(*at).map_or((bytes.len(), Next::Read), |count| (count, Next::Close)),
            Trick::Reset { at } => within(*at).map_or((bytes.len(), Next::Read), |count| (count, Next::Reset)),
            Trick::Hold { at } => within(*at).map_or((bytes.len(), Next::Read), |count| (count, Next::Wait)),
            Trick::Flip { at, bits } => {
                if start <= *at
                    && let Some(index) = within(*at)
                {
                    bytes[index] ^= bits;
                }
                (bytes.len(), Next::Read)
            }
            Trick::Overwrite { at, bytes: other } => {
                for (place, byte) in (*at..).zip(other) {
                    if start <= place && place < start + length {
                        bytes[usize::try_from(place - start).expect("inside")] = *byte;
                    }
                }
                (bytes.len(), Next::Read)
            }
            Trick::Forge(forge) => {
                if start == 0 {
                    let header = bytes.first_chunk_mut::<HEADER_BYTES>().expect("a whole header");
                    *header = forge(Frame::decode(header).expect("a frame")).encode();
                }
                (bytes.len(), Next::Read)
            }
            Trick::Pass => (bytes.len(), Next::Read),
        };
        state.passed += count as u64;
        (count, next)
    }

    /// Waits while a Hold is on; `false` after a time in which its test has long ended.
    fn wait(&self) -> bool {
        let (state, wake) = &*self.0;
        let held = |state: &mut LaneState| matches!(state.trick, Trick::Hold { .. });
        let state = state.lock().expect("lane");
        !wake.wait_timeout_while(state, Duration::from_secs(60), held).expect("lane").1.timed_out()
    }

    /// Moves one connection's bytes until one end is closed.
    fn pump(&self, from: &TcpStream, to: &TcpStream) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = (&*from).read(&mut buffer) {
            let mut bytes = &mut buffer[..count];
            while !bytes.is_empty() {
                let (count, next) = self.take(bytes);
                let (now, later) = bytes.split_at_mut(count);
                if (&*to).write_all(now).is_err() {
                    return;
                }
                bytes = later;
                match next {
                    Next::Read => {}
                    Next::Close => return,
                    Next::Reset => {
                        for end in [from, to] {
                            rustix::net::sockopt::set_socket_linger(end, Some(Duration::ZERO)).expect("linger");
                        }
                        return;
                    }
                    Next::Wait if self.wait() => {}
                    Next::Wait => return,
                }
            }
        }
    }
}

enum Next {
    Read,
    Close,
    Reset,
    Wait,
}

/// A listener whose connections go on to a holder's data port.
pub(crate) struct DataRelay {
    pub(crate) port: u16,
    /// From the reader to the holder.
    pub(crate) up: Lane,
    /// From the holder to the reader.
    pub(crate) down: Lane,
}

impl DataRelay {
    /// Listens; whoever comes is led to the address that is in `holder` by then.
    pub(crate) fn start(holder: Arc<Mutex<Option<SocketAddr>>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = listener.local_addr().expect("address").port();
        let (up, down) = (Lane::new(), Lane::new());
        let lanes = (up.clone(), down.clone());
        // Ends with the process: nothing is lost when it does.
        std::thread::spawn(move || {
            for reader in listener.incoming().map_while(Result::ok) {
                let Some(address) = *holder.lock().expect("holder") else { continue };
                if let Ok(holder) = TcpStream::connect(address) {
                    lead(&Arc::new(reader), &Arc::new(holder), &lanes.0, &lanes.1);
                }
            }
        });
        Self { port, up, down }
    }
}

fn lead(reader: &Arc<TcpStream>, holder: &Arc<TcpStream>, up: &Lane, down: &Lane) {
    for end in [reader, holder] {
        end.set_nodelay(true).expect("nodelay");
    }
    for (from, to, lane) in [(reader, holder, up), (holder, reader, down)] {
        let (from, to, lane) = (Arc::clone(from), Arc::clone(to), lane.clone());
        std::thread::spawn(move || {
            lane.pump(&from, &to);
            // The other direction's thread sees an end and lets go of its sockets, which closes them; a lingering time
            // of zero makes that a reset.
            for end in [from, to] {
                let how = if end.linger_is_zero() { Shutdown::Read } else { Shutdown::Both };
                drop(end.shutdown(how));
            }
        });
    }
}

trait Lingers {
    fn linger_is_zero(&self) -> bool;
}

impl Lingers for TcpStream {
    fn linger_is_zero(&self) -> bool {
        rustix::net::sockopt::socket_linger(self).is_ok_and(|time| time == Some(Duration::ZERO))
    }
}
