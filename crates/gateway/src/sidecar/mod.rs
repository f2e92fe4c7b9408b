//! The prefill/decode sidecar: the two-phase protocol of llm-d's routing sidecar, in front of one decode engine.
//!
//! ```text
//! client -> sidecar -> P: same body, one token, "do the decode elsewhere"  -> kv_transfer_params (the ticket)
//!                   -> D: same body + kv_transfer_params                   -> answer, relayed frame by frame
//! ```
//!
//! - **Two phases** happen for `POST /v1/completions` and `POST /v1/chat/completions` when a prefiller is named: by the
//!   router in `x-prefiller-host-port` (must be on the allow-list), or by configuration. Everything else goes to the
//!   decode engine as it came.
//! - **A failed prefill costs a recompute, not the request**: whatever went wrong on P, the decode engine gets the
//!   client's own body and prefills by itself. An error of the request (say, an unknown model) is then told by the
//!   decode engine.
//! - **`kv_transfer_params` in a client's body are removed**, on every path: they tell an engine to fetch memory from an
//!   address, so believing them would let any client aim the engine. [`SidecarConfig::trust_client_params`] turns this
//!   off, for routers that did the prefill themselves. For this, JSON bodies are read whole before they are sent on;
//!   a JSON object the sidecar cannot read is refused, because the engine might read it differently.
//! - **One `x-request-id`** marks both phases, the log lines and the response.
//! - **Limits**: connections, body bytes, and the time of each wait are bounded by [`SidecarConfig`]. At the limit of
//!   connections new ones wait in the listener's queue.
//! - **Failure**: a client that goes away closes the connection to whichever engine works for it, which aborts the
//!   request there. A decode engine that breaks off mid-answer breaks off the client's connection too: a truncated
//!   answer never looks complete.
//! - **Shutdown**: no new connections; answers under way get [`SidecarConfig::drain_max`], then they are cut.
//! - **Own paths**: `/kvferry/livez`, `/kvferry/readyz` and `/kvferry/metrics`. `/health` is the engine's.
//! - **Not carried**: WebSocket upgrades, HTTP/2 and TLS; a gateway in front does those.
//!
//! Why not `reqwest` for the legs: it normalises URLs, follows proxies named in the environment and adds headers. A
//! sidecar should add nothing that was not decided here.

mod address;
mod config;
mod document;
mod error;
mod headers;
mod metrics;
mod options;
mod prefill;
mod proxy;
mod refusal;
mod relay;
mod server;

pub use address::{AddressError, Allowed, EngineUrl, HostPort};
pub use config::SidecarConfig;
pub use error::SidecarError;
pub use options::SidecarOptions;
pub use server::{Sidecar, serve};
