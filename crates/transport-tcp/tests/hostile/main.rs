//! Peers that lie, stall, vanish and babble, played with plain sockets against the real transport.
//!
//! Whatever they do: no panic, every posted work completes exactly once with the right fault, no memory is touched
//! after that, and nothing else on the transport suffers.

#[path = "../certificates/mod.rs"]
mod certificates;
mod door;
mod encrypted;
mod holder;
mod mutation;
mod push;
mod reader;
mod silence;
mod stage;

/// What the transport under test moves bytes by.
fn io() -> kvferry_transport_tcp::Io {
    kvferry_transport_tcp::Io::Epoll
}
