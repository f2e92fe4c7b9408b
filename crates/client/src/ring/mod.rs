//! Two rings in shared memory between a process of an engine and the daemon of its node.
//!
//! ```text
//! client:  frame -> Producer::push -> take_sleep? -> doorbell (eventfd)       daemon: Consumer::pop -> hub
//! daemon:  frame -> Producer::push -> take_sleep? -> futex                    client: Consumer::pop -> caller
//! ```
//!
//! One memfd holds both. The records are the very frames of the attach socket, so every message works over both, and
//! the ring carries the order: a frame that does not fit, or brings a descriptor along, goes over the socket, and an
//! empty record in the ring says where it belongs. A full ring pushes back.
//!
//! The other side can write anything at any time. Each side keeps its own index for itself, checks what it reads of the
//! other's, and copies a record out before it looks at it. What cannot be is a [`Violation`], which ends the session.
//!
//! Why not a ring of fixed slots: a redeem may name one block or a thousand. Why not messages in place, without the
//! copy: a record that changes while it is parsed is a hole, and the copy of some hundred bytes is nothing.

mod mapping;
#[cfg(test)]
mod model;
mod pair;
mod queue;
mod spin;
mod sync;

pub use mapping::RingError;
pub use pair::{ClientEnd, DaemonEnd, RING_BYTES_MAX, RING_BYTES_MIN, Sleeper, create, open};
pub use queue::{Consumer, Popped, Producer, Pushed, Violation};
pub(crate) use spin::Spin;
