//! Talks to the KVFerry daemon of this node: attach, grant, redeem, ask.
//!
//! ```text
//! Client::start -> thread: connect -> Hello -> [Attach + fd] -> read replies and events -> lost? fail all, back off, again
//! grant, status: call -> wait at most `reply_timeout` -> reply
//! redeem:        call -> key at once ... poll -> TransferDone{key}, exactly once, also when the daemon dies
//! lookup, load, store: as redeem -> Found, Loaded, Copied -> commit -> Stored
//! ```
//!
//! Requests, replies and events travel through rings in shared memory where the daemon offers them ([`ring`]), else over
//! the socket, whose closing tells either side that the other is gone.
//!
//! A daemon that does not answer costs an engine nothing but recompute: calls fail at once while there is no connection,
//! and after `reply_timeout` when there is one. The region is sent again after each reconnect, so a restarted daemon
//! serves the same engine.
//!
//! Unsafe code lives in [`ring`] alone, which maps the memory that client and daemon share.
#![deny(unsafe_code)]

mod asked;
mod clearing;
mod client;
mod connection;
mod event;
mod frame;
mod hop;
mod operator;
mod request;
#[expect(unsafe_code, reason = "the rings are in memory that another process writes")]
pub mod ring;
mod tier;

pub use client::{Client, ClientConfig, ClientError};
pub use event::Event;
pub use hop::RingSettings;
pub use operator::{Sweep, SweepSpec};
pub use request::{
    AttachSpec, BlockHash, Granted, GroupLayout, LayerSpan, Layout, LoadedBlocks, Role, StoredBlocks, WantedBlocks,
};
