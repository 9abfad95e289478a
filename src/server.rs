//! The serve loop of all listeners: the API, callbacks and probes.
//!
//! [`listener`] accepts connections within limits and finishes the TLS handshake. [`http1`] serves
//! HTTP/1.1 for callbacks and probes, [`http2`] serves gRPC calls.
//!
//! - Connections are bounded, in total and per address, below the limit of open files.
//! - Every wait for a peer has a limit. A peer that stands still never holds up a drain.
//! - A connection ends with GOAWAY, and its calls have time to end.
//!
//! The server never reads a request's body by itself, and does not know what a call means.

mod connections;
pub(crate) mod http1;
mod http2;
mod listener;
pub(crate) mod tls;

pub(crate) use connections::{CountedRequest, Peer, source};
pub(crate) use http2::serve as serve_grpc;
pub(crate) use http2::{
    CallService, Connection, Http2Options, PeerCertificate, ResponseEnd, spread_age,
};
pub(crate) use listener::ListenerOptions;
