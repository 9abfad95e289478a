//! `status`: how the gateway is doing.

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};

use super::{Subject, refuse};

pub(super) const PATH: &str = "/v1/status";

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Status {
    /// Calls can be answered.
    pub(super) ready: bool,
    /// Its file, or where it is.
    pub(super) store: String,
    pub(super) open_requests: usize,
    pub(super) open_devices: usize,
    pub(super) unknown_orders: usize,
    /// Requests that ended since the start.
    pub(super) finished_by_callback: u64,
    pub(super) finished_by_poll: u64,
}

pub(super) fn routes() -> Router<Subject> {
    Router::new().route(PATH, get(status))
}

async fn status(State(subject): State<Subject>) -> Response {
    let unknown = match subject.requests.unknown_orders().await {
        Ok(unknown) => unknown.len(),
        Err(error) => return refuse(StatusCode::SERVICE_UNAVAILABLE, &error),
    };
    let overview = subject.requests.overview();
    Json(Status {
        ready: overview.ready,
        store: subject.store.to_string(),
        open_requests: overview.open_requests,
        open_devices: overview.open_devices,
        unknown_orders: unknown,
        finished_by_callback: overview.finished_by_callback,
        finished_by_poll: overview.finished_by_poll,
    })
    .into_response()
}
