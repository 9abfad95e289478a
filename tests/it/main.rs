//! Tests of the gateway's promises from outside: real sockets, the simulator as ThingSpace, a real
//! gRPC client, and the real binary where a process matters. They are one binary, because linking
//! takes long.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test that cannot continue has failed; nothing links to a test"
)]

mod admin;
mod audit;
mod callbacks;
mod callers;
mod callers_jwt;
mod callers_tls;
mod collector;
mod conformance;
mod contract;
mod control;
mod correlation;
mod deadlines;
mod descriptors;
mod dev;
mod disclosure;
mod discovery;
mod doctor;
mod embedded;
mod frames;
mod lag;
mod limits;
mod losses;
mod matrix;
mod metrics;
mod orders;
mod process;
mod reasons;
mod registration;
mod replicas;
mod resume;
mod shares;
mod spellings;
mod status;
mod status_calls;
mod status_page;
mod telemetry;
mod tokens;
mod truth;
mod watch;
mod watch_ends;

use test_support::{harness, http2, nats_server};
