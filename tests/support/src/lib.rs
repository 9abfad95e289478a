//! What the black-box tests, the tests of the NATS store and the benchmark share.

#![allow(
    clippy::unwrap_used,
    missing_debug_implementations,
    reason = "a test that cannot continue has failed, and these types are not printed"
)]

pub mod failure;
pub mod harness;
pub mod nats_server;
pub mod sender;
