//! Talks to the KVFerry daemon of this node: attach, grant, redeem, ask.
//!
//! ```text
//! Client::start -> thread: connect -> Hello -> [Attach + fd] -> read replies and events -> lost? fail all, back off, again
//! grant, status: call -> wait at most `reply_timeout` -> reply
//! redeem:        call -> key at once ... poll -> TransferDone{key}, exactly once, also when the daemon dies
//! ```
//!
//! A daemon that does not answer costs an engine nothing but recompute: calls fail at once while there is no connection,
//! and after `reply_timeout` when there is one. The region is sent again after each reconnect, so a restarted daemon
//! serves the same engine.
#![forbid(unsafe_code)]

mod client;
mod connection;
mod event;
mod frame;
mod request;

pub use client::{Client, ClientConfig, ClientError};
pub use event::Event;
pub use request::{AttachSpec, Granted, GroupLayout, LayerSpan, Layout, Role, WantedBlocks};
