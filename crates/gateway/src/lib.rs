//! What stands in front of the engines and speaks HTTP to clients and routers.
//!
//! [`sidecar`] runs beside a decode engine and carries out the two phases of a disaggregated request: prefill
//! elsewhere, decode here. It moves no KV cache itself; it moves the ticket that lets the decode engine fetch it.

#![forbid(unsafe_code)]

pub mod sidecar;
