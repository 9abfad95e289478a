//! What the gateway promises, from outside: real sockets, the simulator as ThingSpace, a real gRPC
//! client, and the real binary where a process matters. One binary, because linking is what takes
//! long.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test that cannot go on has failed; nothing links to a test"
)]

mod admin;
mod callbacks;
mod contract;
mod control;
mod correlation;
mod deadlines;
mod descriptors;
mod dev;
mod discovery;
mod embedded;
#[allow(dead_code, reason = "shared with the heavy tests")]
mod fleet;
#[allow(dead_code, reason = "shared with the heavy tests")]
mod harness;
mod lag;
mod losses;
mod matrix;
#[allow(dead_code, reason = "shared with tests that do more to their servers")]
mod nats_server;
mod orders;
mod process;
mod questions;
mod reasons;
mod registration;
mod replicas;
mod resets;
mod resume;
mod shares;
mod spellings;
mod status;
mod telemetry;
mod tokens;
mod truth;
mod watch;
