//! The sidecar between a real HTTP client and stand-ins for the engines: real servers with scripted answers, no model.
//!
//! Nothing here sleeps to wait for something: every order of events is forced by a channel.

mod fallback;
mod forward;
mod lifecycle;
mod log;
mod phases;
mod refusals;
mod stand_in;
mod streams;
