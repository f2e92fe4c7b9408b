//! `kvferry bench` as its users run it: the real binary, both ends, tiny cells.

mod ends;
mod hop;
mod process;
mod refusals;
mod report;
mod results;
