//! Code generated from `proto/`, and the descriptor set that reflection serves.

/// The contract.
#[allow(
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    missing_debug_implementations,
    unreachable_pub,
    reason = "generated"
)]
pub mod esim {
    tonic::include_proto!("thingspace.esim.v1");
    /// `thingspace.esim.v1` with comments and imports.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/esim.binpb"));
}

/// What is stored.
#[allow(
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    missing_debug_implementations,
    unreachable_pub,
    reason = "generated"
)]
pub mod storage {
    tonic::include_proto!("gateway.storage.v1");
}
