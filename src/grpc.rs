//! The API: convert, call [`crate::requests`], convert back. Thin on purpose.
//!
//! [`status`] is the only place that names a gRPC code; [`edge`] sees to it that every error of
//! every service has a reason. Nothing here holds state of its own, apart from the place a stream
//! has reached.

mod convert;
mod deadline;
mod edge;
mod fragment;
mod service;
pub(crate) mod status;

pub use edge::EdgeLayer;
pub use service::{Esim, Settings};

/// The name by which health is asked.
pub const SERVICE_NAME: &str = "thingspace.esim.v1.EsimService";

/// The largest message taken or sent, in bytes.
pub const MAX_MESSAGE: usize = 4 << 20;

/// The largest page of a status, in bytes.
pub const MAX_PAGE_BYTES: usize = 1 << 20;

/// The largest message of a watch, in bytes. It is small because every reader that stands still
/// holds one.
pub const MAX_WATCH_MESSAGE: usize = 64 << 10;
