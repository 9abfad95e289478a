//! `store accept-loss`: an operator accepts that the store forgot something. And the lines of
//! `status` about that.

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
pub(super) struct Acceptance {
    /// What was accepted; `None`: there was nothing to accept.
    pub(super) accepted: Option<String>,
    /// Nothing was forgotten: the gateway still had everything, and wrote it again.
    #[serde(default)]
    pub(super) recovered: bool,
    pub(super) remembers_since: Option<Timestamp>,
}

/// What `status` says of the store's memory.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Memory {
    pub(super) lost: Option<Lost>,
    pub(super) remembers_since: Option<Timestamp>,
    /// Why there is no room for new orders.
    pub(super) shortage: Option<String>,
    /// Why the next start would not notice an older copy of the store, and what to do.
    #[serde(default)]
    pub(super) unprotected: Option<String>,
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
    let memory = subject.requests.store_state();
    Memory {
        lost: memory.loss.map(|loss| Lost { what: loss.what, noticed: loss.noticed }),
        remembers_since: memory.remembers_since,
        shortage: memory.shortage,
        unprotected: memory.unprotected,
    }
}

async fn accept_loss(
    State(subject): State<Subject>,
    Json(AcceptLoss { restored }): Json<AcceptLoss>,
) -> Result<Json<Acceptance>, Response> {
    let before = subject.requests.store_state().remembers_since;
    let accepted = match subject.requests.accept_loss(restored).await {
        Ok(loss) => loss.map(|loss| loss.what),
        Err(error) => return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, &error)),
    };
    let remembers_since = subject.requests.store_state().remembers_since;
    // A store that forgot something begins anew.
    let recovered = accepted.is_some() && before.is_some() && remembers_since == before;
    if let Some(what) = &accepted {
        let message = "an operator accepted that the store forgot something";
        info!(target: "audit", what, restored, recovered, "{message}");
    }
    Ok(Json(Acceptance { accepted, recovered, remembers_since }))
}
