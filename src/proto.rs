//! Code generated from `proto/`, and the descriptor set for reflection.

/// The API.
#[allow(
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    missing_debug_implementations,
    unreachable_pub,
    reason = "generated code; not every lint applies to each version of the generator"
)]
pub mod esim {
    tonic::include_proto!("thingspace.esim.v1");
    /// `thingspace.esim.v1` with comments and imports.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/esim.binpb"));
}

/// The storage format.
#[allow(
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    unreachable_pub,
    reason = "generated code; not every lint applies to each version of the generator"
)]
pub mod storage {
    tonic::include_proto!("gateway.storage.v1");
}
