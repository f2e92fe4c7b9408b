//! An order to clear the tiers, until a daemon has carried it out.
//!
//! ```text
//! clear -> owed, told to the daemon; told to each next one before anything else is asked of it
//! lookup -> behind the order on the same connection -> Found without a failure -> owed no more
//! ```
//!
//! Orders and answers of one connection keep their order, and a daemon that is still at it answers no lookup. So an
//! answer proves that the order was carried out, whole. A failure proves nothing; nor does a daemon that has no tiers
//! now, as the next may have some with what was stored before. Told once a connection, the order takes nothing that is
//! stored later.

use kvferry_proto::v1::{self, to_daemon};

/// The ids of orders and lookups grow.
#[derive(Default)]
pub(crate) struct Clearing {
    /// The last order, if nothing shows that it was carried out.
    owed: Option<u64>,
    /// The order that was sent over this connection.
    told: Option<u64>,
}

impl Clearing {
    pub(crate) const fn order(&mut self, id: u64) {
        self.owed = Some(id);
    }

    /// What the next daemon has to be told first.
    pub(crate) fn owed(&self) -> Option<v1::ToDaemon> {
        self.owed.map(|id| v1::ToDaemon { id, body: Some(to_daemon::Body::Clear(v1::Clear {})) })
    }

    /// This went out.
    pub(crate) const fn sent(&mut self, message: &v1::ToDaemon) {
        if let Some(to_daemon::Body::Clear(_)) = message.body {
            self.told = Some(message.id);
        }
    }

    /// Whether an answer to a lookup would be one from before the order.
    pub(crate) fn is_untold(&self) -> bool {
        self.owed.is_some() && self.owed != self.told
    }

    /// A lookup was answered, over the connection that there is.
    pub(crate) fn found(&mut self, found: &v1::Found) {
        if found.failure.is_empty() && !self.is_untold() && self.owed.is_some_and(|id| id < found.key) {
            self.owed = None;
        }
    }

    /// The connection is gone.
    pub(crate) const fn lost(&mut self) {
        self.told = None;
    }
}
