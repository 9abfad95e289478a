//! `store accept-loss`: an operator accepts that the store forgot something. And the lines of `status` about that.

use axum::{Json, Router, extract::State, http::StatusCode, response::Response, routing::post};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::info;

use super::{Subject, refuse};

pub(super) const ACCEPT_LOSS: &str = "/v1/store/accept-loss";

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AcceptLoss {
    /// A backup was restored, whether or not the store can tell.
    pub(super) restored: bool,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Accepted {
    /// What was lost; `None`: nothing was.
    pub(super) accepted: Option<String>,
    pub(super) remembers_since: Option<Timestamp>,
}

/// What `status` says of the store's memory.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Memory {
    pub(super) lost: Option<Lost>,
    pub(super) remembers_since: Option<Timestamp>,
    /// Why there is no room for new orders.
    pub(super) shortage: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Lost {
    pub(super) what: String,
    pub(super) noticed: Timestamp,
}

pub(super) fn routes() -> Router<Subject> {
    Router::new().route(ACCEPT_LOSS, post(accept_loss))
}

pub(super) fn memory(subject: &Subject) -> Memory {
    let memory = subject.requests.store_memory();
    Memory {
        lost: memory.loss.map(|loss| Lost { what: loss.what, noticed: loss.noticed }),
        remembers_since: memory.remembers_since,
        shortage: memory.shortage,
    }
}

async fn accept_loss(
    State(subject): State<Subject>,
    Json(AcceptLoss { restored }): Json<AcceptLoss>,
) -> Result<Json<Accepted>, Response> {
    let accepted = match subject.requests.accept_loss(restored).await {
        Ok(loss) => loss.map(|loss| loss.what),
        Err(error) => return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, &error)),
    };
    if let Some(what) = &accepted {
        info!(target: "audit", what, restored, "an operator accepted that the store forgot something");
    }
    let remembers_since = subject.requests.store_memory().remembers_since;
    Ok(Json(Accepted { accepted, remembers_since }))
}
