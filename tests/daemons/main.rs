//! Real daemons, real sockets, stand-in engines: what must hold between two nodes, without vLLM.

mod handover;
mod support;
