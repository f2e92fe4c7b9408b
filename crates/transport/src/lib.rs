//! The one seam between KVFerry and the ways to move bytes.
//!
//! ```text
//! Transfer -> ReadWork/ServeWork -> Endpoint::post -> Transport::turn ... turn -> Event::Completed, once
//!                                        |                (copies, sends, receives, verifies)
//!                                        +-> (Fault, Work) handed back: full, out of bounds, not for this transport
//! ```
//!
//! One data thread owns a transport and calls [`Transport::turn`]; nothing in here reads a clock or logs, and only the
//! copy transport starts threads, where it is told to. Time is an argument. A turn does a bounded amount of work, so that many transfers share a thread fairly.
//!
//! Limits: every endpoint has a most number of works in flight; a post beyond it is handed back as [`Fault::Full`].
//! Failure: everything posted completes exactly once, also when the peer, the endpoint or the lease dies. From its
//! completion on, a transport neither touches nor holds the regions of that work.
//! Shutdown: [`Transport::close`] on each endpoint, then turns until [`Event::EndpointDown`]; or drop the transport.
//!
//! Why not a future for each transfer: a future that is dropped takes its buffers with it while a socket, a NIC or a
//! copy still writes to them. Here the transport's own table holds the regions until the completion.
#![forbid(unsafe_code)]

pub mod conformance;
mod copy;
mod endpoint;
mod event;
mod fault;
mod faulty;
mod metered;
mod work;

pub use copy::{COPY_THREADS_MAX, CopySettings, CopyTransport};
pub use endpoint::{Admission, Dial, Endpoint, EndpointId, Key, Role, Transport};
pub use event::{Completion, Event};
pub use fault::Fault;
pub use faulty::{Act, Faulty, Script};
pub use metered::{Counts, Metered, Totals};
pub use work::{ReadWork, ServeWork, Source, Start, Work, plan_fits};
