//! What the black-box tests, the tests of the NATS store and the benches share.
#![allow(
    clippy::unwrap_used,
    missing_debug_implementations,
    missing_docs,
    reason = "only tests use this crate: one that cannot continue has failed"
)]

pub mod bench;
pub mod failure;
pub mod harness;
pub mod http2;
pub mod issuer;
pub mod nats_server;
pub mod pki;
pub mod sender;
