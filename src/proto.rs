//! Code generated from `proto/`, and the descriptor set for reflection.

/// The API.
#[expect(clippy::pedantic, clippy::allow_attributes_without_reason, reason = "generated code")]
pub mod esim {
    tonic::include_proto!("thingspace.esim.v1");
    /// The descriptors of `thingspace.esim.v1`, with comments and imports.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/esim.binpb"));
}

/// The storage format.
#[expect(clippy::pedantic, reason = "generated code")]
pub mod storage {
    tonic::include_proto!("gateway.storage.v1");
}
