//! kill -9 of a process that stores, removes and recovers, at random moments.
//!
//! ```text
//! victim: recover -> check -> journal "filling" -> store -> journal "there" -> ... killed
//! test:   every block "there" is there, with all its bytes; none that was not stored or was removed
//! ```
//!
//! `KVFERRY_KILLS=10000 cargo test -p kvferry-tier --test kills -- --nocapture` kills more often, and says how far it is;
//! `KVFERRY_TEST_SEED` makes the choices of another run again.

mod disk;
mod host;
mod journal;
mod victim;
