//! Types generated from `proto/kvferry/v1`, nothing else. The proto files are their documentation.
#![forbid(unsafe_code)]

/// Version 1 of both protocols.
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/kvferry.v1.rs"));

    /// The version that both sides must name in their first message.
    pub const PROTOCOL: u32 = 1;
    /// The longest frame on the attach socket, bytes. A Redeem of 1,000,000 blocks takes about 8 MiB.
    pub const LOCAL_FRAME_MAX: usize = 16 << 20;
}
