//! `quarantine list` and `quarantine show`: callbacks that could not be read, named no request or
//! named another account.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::info;

use super::{CommandError, GatewayParts};
use crate::{
    callbacks::quarantine::{ListedCallback, QuarantinedBody},
    telemetry::AUDIT,
};

pub(super) const LIST: &str = "/v1/quarantine";
const SHOW: &str = "/v1/quarantine/{id}";

pub(super) fn show_path(id: u64) -> String {
    SHOW.replace("{id}", &id.to_string())
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct QuarantineItem {
    pub(super) id: u64,
    pub(super) account: String,
    /// When the callback was received.
    pub(super) time: Timestamp,
    /// The size of the body.
    pub(super) bytes: u32,
}

#[derive(Serialize, Deserialize)]
pub(super) struct QuarantinedCallback {
    pub(super) id: u64,
    /// The body, with recognised passwords masked.
    pub(super) body: String,
}

pub(super) fn routes() -> Router<GatewayParts> {
    Router::new().route(LIST, get(list)).route(SHOW, get(show))
}

async fn list(
    State(parts): State<GatewayParts>,
) -> Result<Json<Vec<QuarantineItem>>, CommandError> {
    let item = |ListedCallback { number, time, account, size }| QuarantineItem {
        id: number,
        account,
        time,
        bytes: size,
    };
    let listed = parts.callbacks()?.quarantine().list().await?;
    Ok(Json(listed.into_iter().map(item).collect()))
}

async fn show(
    State(parts): State<GatewayParts>,
    Path(id): Path<u64>,
) -> Result<Json<QuarantinedCallback>, CommandError> {
    let Some(QuarantinedBody { account, body }) = parts.callbacks()?.quarantine().show(id).await?
    else {
        let message = format_args!(
            "there is no callback {id} in quarantine; callbacks are evicted when it is full"
        );
        return Err(CommandError::new(StatusCode::NOT_FOUND, &message));
    };
    info!(
        target: AUDIT,
        who = "an operator on the control socket",
        number = id,
        account,
        "an operator read a callback in quarantine; it may contain device identities"
    );
    Ok(Json(QuarantinedCallback { id, body }))
}
