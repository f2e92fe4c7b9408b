//! Leases: the holder's promise to keep blocks unchanged until a deadline.
//!
//! [`LeaseTable`] decides who may read and when the engine gets its blocks back; [`LeaseGate`] lets a data thread see
//! that decision without a lock.

mod gate;
mod table;

pub use gate::LeaseGate;
pub use table::{
    EndReason, GrantError, Granted, LeaseEvent, LeaseLimits, LeaseSpec, LeaseTable, RedeemError, Redeemed,
};
