//! `store accept-loss`, by which an operator accepts a store loss, and the lines of `status` about
//! the store.

use axum::{
    Json, Router,
    extract::{ConnectInfo, State},
    routing::post,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    CommandError, GatewayParts,
    audit::{DONE, Operator, UNCHANGED},
};
use crate::{store::Loss, telemetry::AuditEntry};

pub(super) const ACCEPT_LOSS: &str = "/v1/store/accept-loss";

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AcceptLossRequest {
    /// A backup was restored: begin a new epoch even if the gateway noticed no loss.
    pub(super) restored: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AcceptLossResponse {
    /// The accepted loss. `None`: there was none.
    pub(super) accepted: Option<String>,
    /// Whether the gateway still had everything and has written it to the store again.
    #[serde(default)]
    pub(super) recovered: bool,
    pub(super) remembers_since: Option<Timestamp>,
}

/// What `status` shows about losses and protection of the store.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StoreStatus {
    pub(crate) lost: Option<Loss>,
    pub(crate) remembers_since: Option<Timestamp>,
    /// Why the store has no room for new orders.
    pub(crate) shortage: Option<String>,
    /// Why the next start would not notice an older copy of the store, and what to do.
    #[serde(default)]
    pub(crate) unprotected: Option<String>,
}

pub(super) fn routes() -> Router<GatewayParts> {
    Router::new().route(ACCEPT_LOSS, post(accept_loss))
}

pub(super) fn status(parts: &GatewayParts) -> StoreStatus {
    let state = parts.requests.store_state();
    StoreStatus {
        lost: state.loss,
        remembers_since: state.remembers_since,
        shortage: state.shortage,
        unprotected: state.unprotected,
    }
}

async fn accept_loss(
    ConnectInfo(operator): ConnectInfo<Operator>,
    State(parts): State<GatewayParts>,
    Json(AcceptLossRequest { restored }): Json<AcceptLossRequest>,
) -> Result<Json<AcceptLossResponse>, CommandError> {
    let flags = [("--restored", restored)];
    let command = operator.begin("store accept-loss", &flags, AuditEntry::default());
    let before = parts.requests.store_state().remembers_since;
    let response = parts.requests.accept_loss(restored).await.map(|loss| {
        let remembers_since = parts.requests.store_state().remembers_since;
        let accepted = loss.map(|loss| loss.what);
        // Accepting a loss changes this time, unless the gateway still had everything.
        let recovered = accepted.is_some() && before.is_some() && remembers_since == before;
        Json(AcceptLossResponse { accepted, recovered, remembers_since })
    });
    command.end(response.map_err(CommandError::from), |Json(response)| {
        if response.accepted.is_some() { DONE } else { UNCHANGED }
    })
}
