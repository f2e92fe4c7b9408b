//! The TCP transport: several streams a peer, straight between registered memory and sockets.
//!
//! ```text
//! holder: region --sum--> sendmsg(header, slices...) ==== streams ==== readv(slices..., next header) --sum--> region :reader
//! ```
//!
//! One end dials, the other admits; one of them reads and the other holds. Both name the endpoint alike and agree on
//! one-time keys beforehand. The holder sends what the reader fetches, or pushes into what the reader expects. Every
//! piece carries a checksum that the reader verifies, every part of a plan ends in a trailer that says whether the
//! lease was live after the last byte had left. A read completes with `Ok` only when all trailers say so. What the
//! bytes look like is in [`frame`].
//!
//! One epoll or one ring of `io_uring` for each thread, as [`Settings::io`] says and the kernel allows. No thread and no
//! clock but those of [`Threads`]: without them [`Transport::turn`](kvferry_transport::Transport::turn) does everything.
//! Its `now` must be read anew for each call, because a trailer relies on it.
//!
//! Limits: [`Settings`]. Failure: a stream that breaks, stalls or says something else than the protocol ends its
//! endpoint; everything posted completes exactly once, within its deadline. Shutdown: close the endpoints, or drop.
//!
//! Why both: raw sockets gain on a ring with several streams, but container runtimes often forbid it and one stream
//! ties (docs/adr/0011). Frames, readers and holders are the same code on either.

mod admission;
mod congestion;
mod counters;
mod early;
mod endpoint;
mod event_loop;
pub mod frame;
mod holder;
mod inflow;
mod joint;
mod mailbox;
mod outflow;
mod pace;
mod raw;
mod read;
mod reader;
mod serve;
mod settings;
mod share;
mod socket;
mod spread;
mod stream;
mod threads;
mod tls;
mod token;
mod transport;
mod uring;
mod wire;

pub use congestion::Congestion;
pub use counters::Counters;
pub use raw::RawStream;
pub use settings::{Io, STREAMS_MAX, Settings};
pub use threads::{THREADS_MAX, Threads};
pub use tls::{Pem, Tls, TlsError};
pub use transport::TcpTransport;
pub use uring::{Choice, Missing, probe as probe_uring};
