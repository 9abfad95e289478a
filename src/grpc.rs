//! The gRPC API: converts a call, calls [`crate::requests`], and converts the result.
//!
//! Only [`status`] names gRPC codes. [`edge`] limits the time of every call and adds a reason to
//! every error. The only state here is the progress of each open stream.

mod convert;
mod deadline;
mod edge;
mod fragment;
mod service;
pub(crate) mod status;

pub use edge::Edge;
pub use service::Esim;

/// The name of the service in health checks.
pub const SERVICE_NAME: &str = "thingspace.esim.v1.EsimService";

/// The largest message that is received or sent, in bytes.
pub const MAX_MESSAGE: usize = 4 << 20;

/// The largest page of a status, in bytes.
pub const MAX_PAGE_BYTES: usize = 1 << 20;

/// The largest message of a watch, in bytes. It is small because the gateway holds one for every
/// caller that does not read.
pub const MAX_WATCH_MESSAGE: usize = 64 << 10;
