//! The decisions of KVFerry, without any I/O, clock or lock.
//!
//! ```text
//! Layout (source) --+
//! Layout (target) --+--> Plan (runs) --> split over streams --> Cursor (slices of one side)
//! block lists ------+
//! blocks --> LeaseTable --> Ticket --> redeem --> Transfer (handle_*, poll_*) --> delivered or failed
//! ```
//!
//! Time is an argument ([`Time`]), randomness is an argument, and nothing in here can block. Bytes from outside
//! (tickets) are parsed into values or refused; they never panic.
#![forbid(unsafe_code)]

pub mod ids;
pub mod layout;
pub mod lease;
pub mod plan;
mod spin;
pub mod ticket;
pub mod transfer;

pub use ids::{BlockIndex, Epoch, Fingerprint, LeaseId, Rank, Time, WorkId};
pub use spin::Spin;
