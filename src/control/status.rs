//! `status`: how the gateway is doing.

use axum::{Json, Router, extract::State, routing::get};
use serde::{Deserialize, Serialize};

use super::{
    Subject,
    logins::{Login, logins},
};

pub(super) const PATH: &str = "/v1/status";

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Status {
    /// Calls can be answered.
    pub(super) ready: bool,
    /// Its file, or where it is.
    pub(super) store: String,
    pub(super) open_requests: usize,
    pub(super) open_devices: usize,
    /// `None`: the store does not say.
    pub(super) unknown_orders: Option<usize>,
    /// Requests that ended since the start.
    pub(super) finished_by_callback: u64,
    pub(super) finished_by_poll: u64,
    pub(super) logins: Vec<Login>,
}

pub(super) fn routes() -> Router<Subject> {
    Router::new().route(PATH, get(status))
}

async fn status(State(subject): State<Subject>) -> Json<Status> {
    // What is known is told also while the store is away.
    let unknown = subject.requests.unknown_orders().await.ok().map(|orders| orders.len());
    let overview = subject.requests.overview();
    Json(Status {
        ready: overview.ready,
        store: subject.store.to_string(),
        open_requests: overview.open_requests,
        open_devices: overview.open_devices,
        unknown_orders: unknown,
        finished_by_callback: overview.finished_by_callback,
        finished_by_poll: overview.finished_by_poll,
        logins: logins(&subject),
    })
}
