//! The gRPC API: converts a call, calls [`crate::requests`], and converts the result.
//!
//! Only [`status`] names gRPC codes. A call passes these layers before it reaches [`service`]:
//! [`gate`] (only gRPC), [`authenticate`], [`limits`], [`authorize`], [`receive`] (the message),
//! and [`middleware`], which limits the time of every call and adds a reason to every error. The
//! only state here is what callers use, and the progress of each open stream.

mod authenticate;
mod authorize;
mod class;
mod convert;
mod counts;
mod deadline;
mod fragment;
mod gate;
mod limits;
mod middleware;
mod receive;
mod service;
pub(crate) mod status;
mod watch_messages;
mod watch_stream;

use std::time::Duration;

use tonic::service::Routes;

use crate::{
    auth::Authenticator,
    server::CallService,
    telemetry::{Sampler, rpc::Rpc},
};
use authenticate::Authenticate;
use authorize::Authorize;
use gate::Gate;
use limits::Limit;
use middleware::Middleware;
use receive::Receive;

pub(crate) use limits::{CALL_BYTES, Limits};
pub(crate) use middleware::{aged, trailers};
pub(crate) use service::Esim;
pub(crate) use watch_stream::EsimServer;

/// The name of the service in health checks.
pub(crate) const SERVICE_NAME: &str = "thingspace.esim.v1.EsimService";

/// The beginning of the paths of the service's methods.
const API: &str = "/thingspace.esim.v1.EsimService/";

/// The largest message that is received or sent, in bytes.
pub(crate) const MAX_MESSAGE: usize = 4 << 20;

/// The largest page of a status, in bytes.
pub(crate) const MAX_PAGE_BYTES: usize = 1 << 20;

/// The largest message of a watch, in bytes. It is small because a slow reader has one in memory.
pub(crate) const MAX_WATCH_MESSAGE: usize = 64 << 10;

/// Returns the services with their layers. The last one sees a call first.
pub(crate) fn layers(
    routes: Routes,
    authenticator: Authenticator,
    limits: Limits,
    receive_timeout: Duration,
    sampler: Sampler,
) -> impl CallService {
    counts::start();
    let service = Middleware::new(routes);
    let service = Receive::new(service, receive_timeout);
    let service = Authorize::new(service, authenticator.clone());
    let service = Limit::new(service, limits);
    let service = Authenticate::new(service, authenticator);
    Gate::new(Rpc::new(service, sampler))
}
