//! TLS 1.3 of a stream: rustls' state machine between a stream's frames and its socket.
//!
//! ```text
//! send:    frames, region --copy--> staging --seal--> [records] --sendmsg--> socket
//! receive: socket --recvmsg--> [records] --open in place--> region, or the stream's read-ahead
//! ```
//!
//! Nothing here touches a socket or a region: a [`Channel`] turns bytes into records and records into bytes, and the
//! stream does the rest. Region bytes are copied out before they are encrypted, because an engine may write them at any
//! moment and a cipher must see one value of each.
//!
//! Limits: a handshake of [`channel::HANDSHAKE_BYTES_MAX`] each way; records of one call in a buffer of
//! [`buffer::RECORDS_BYTES`] each way, lent from a [`Pool`] while a stream has something in it. Failure: everything that TLS
//! objects to is [`Fault::Untrusted`](kvferry_transport::Fault::Untrusted), with an alert for the peer; the end of a
//! connection, announced or not, is never an end of data: only trailers are.
//!
//! Why not our own records under rustls' keys, or kernel TLS: docs/adr/0012.

mod buffer;
mod channel;
mod config;
pub(crate) mod flow;

pub(crate) use buffer::Pool;
pub(crate) use channel::Channel;
pub use config::{Pem, Tls, TlsError};
