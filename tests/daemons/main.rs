//! Real daemons, real sockets, stand-in engines: what must hold between two nodes, without vLLM.

mod admin;
mod bits;
mod cache;
mod churn;
mod client;
mod congestion;
mod engines;
mod footprint;
mod handover;
mod kills;
mod latency;
mod links;
mod namespaces;
mod ports;
mod requests;
mod rings;
mod scheduling;
mod sessions;
mod stalls;
mod support;
mod tickets;
mod tiers;
mod tls;
mod torture;
mod uring;
mod wire;
