//! What every transport must do, as properties that run against a real one.
//!
//! A transport passes the suite by one line in its tests:
//!
//! ```text
//! kvferry_transport::conformance!(tcp, make_rig); // fn make_rig(clock: &Clock) -> Rig
//! ```
//!
//! ```text
//! property -> Stage: lay regions and plans -> post -> step (turn both ends, sleep on their fds) -> ledger of completions
//!                                                              |
//!                                                              +-> Violation: what was broken, by which work
//! ```
//!
//! Each property makes a rig of its own and is a `#[test]` of its own, so that a failure has a name. Whatever a
//! property is about, the stage looks at every event for what must always hold: one completion for each work, before
//! the endpoint goes down; no region held and no byte written after it; success only with the right bytes. At the end
//! of each, nothing may be in flight, held or mapped, and the transport must be idle.
//!
//! Limits: every wait ends after [`Rig::patience`] with [`Violation::TimedOut`]. The largest property maps 128 MiB.
//! Here, and only here, this room reads a clock: [`Clock`], which a property can also push forward.

mod clock;
mod closing;
mod ending;
mod leasing;
mod moving;
mod pairing;
mod posting;
mod rig;
mod shape;
mod stage;
mod transfer;
mod violation;

pub use clock::Clock;
pub use closing::{close_completes_everything_first, dropping_the_transport_lets_go, holder_close_reaches_the_reader};
pub use ending::{
    cancel_before_the_first_turn, cancel_midway, cancel_of_stale_ids_is_ignored, deadline_already_passed,
    deadline_midway,
};
pub use leasing::{lease_closed_midway, lease_ended_before_the_post, lease_expired_midway};
pub use moving::{moves_an_empty_plan, moves_many_works_interleaved, moves_mixed_layouts, moves_one_large_work};
pub use pairing::{
    plans_that_differ_move_nothing, serve_cancelled_midway, serve_ends_at_its_deadline, serve_is_fetched_once,
    serve_may_come_after_the_read, unexpected_push_is_refused, unknown_serve_is_refused,
};
pub use posting::{
    foreign_work_is_handed_back, id_in_flight_is_handed_back, out_of_bounds_is_handed_back,
    post_beyond_the_limit_is_handed_back, unknown_endpoint_is_nobody,
};
pub use rig::{Rig, Seat};
pub use violation::Violation;

/// Makes a fresh rig, with its endpoint up.
pub type Make<'a> = &'a dyn Fn(&Clock) -> Rig;

/// Something every transport must do.
pub type Property = fn(Make<'_>) -> Result<(), Violation>;

/// Runs one property as a test.
///
/// # Panics
///
/// If it does not hold, with what was broken.
pub fn assert_holds(property: Property, make: Make<'_>) {
    if let Err(violation) = property(make) {
        panic!("{violation}");
    }
}

/// Writes one `#[test]` for each property of the suite into a module `$name`; `$make` is the name of a
/// `fn(&Clock) -> Rig` beside it.
#[macro_export]
macro_rules! conformance {
    ($name:ident, $make:ident) => {
        mod $name {
            $crate::conformance!(@tests $make
                cancel_before_the_first_turn
                cancel_midway
                cancel_of_stale_ids_is_ignored
                close_completes_everything_first
                deadline_already_passed
                deadline_midway
                dropping_the_transport_lets_go
                foreign_work_is_handed_back
                holder_close_reaches_the_reader
                id_in_flight_is_handed_back
                lease_closed_midway
                lease_ended_before_the_post
                lease_expired_midway
                moves_an_empty_plan
                moves_many_works_interleaved
                moves_mixed_layouts
                moves_one_large_work
                out_of_bounds_is_handed_back
                plans_that_differ_move_nothing
                post_beyond_the_limit_is_handed_back
                serve_cancelled_midway
                serve_ends_at_its_deadline
                serve_is_fetched_once
                serve_may_come_after_the_read
                unexpected_push_is_refused
                unknown_endpoint_is_nobody
                unknown_serve_is_refused
            );
        }
    };
    (@tests $make:ident $($property:ident)*) => {
        $(
            #[test]
            fn $property() {
                $crate::conformance::assert_holds($crate::conformance::$property, &super::$make);
            }
        )*
    };
}
