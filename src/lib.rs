//! One gRPC service that owns eSIM profile downloads through Verizon's ThingSpace.

pub mod app;
pub mod cli;
pub mod config;
pub mod grpc;
pub mod identity;
pub mod proto;
pub mod requests;
pub mod server;
pub mod shutdown;
pub mod simulator;
pub mod store;
pub mod telemetry;
pub mod thingspace;
