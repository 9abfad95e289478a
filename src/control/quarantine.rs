//! `quarantine list` and `quarantine show`: callbacks that could not be read, named no request or
//! named another account.

use axum::{
    Json, Router,
    extract::{ConnectInfo, Path, State},
    http::StatusCode,
    routing::get,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    CommandError, GatewayParts,
    audit::{DONE, Operator},
};
use crate::{
    callbacks::quarantine::{ListedCallback, QuarantinedBody},
    telemetry::AuditEntry,
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
    ConnectInfo(operator): ConnectInfo<Operator>,
    State(parts): State<GatewayParts>,
    Path(id): Path<u64>,
) -> Result<Json<QuarantinedCallback>, CommandError> {
    let about = AuditEntry { callback: Some(id), ..AuditEntry::default() };
    let mut command = operator.begin("quarantine show", &[], about);
    let found = find(&parts, id).await.map(|QuarantinedBody { account, body }| {
        command.about().account = Some(account);
        Json(QuarantinedCallback { id, body })
    });
    command.end(found, |_| DONE)
}

async fn find(parts: &GatewayParts, id: u64) -> Result<QuarantinedBody, CommandError> {
    parts.callbacks()?.quarantine().show(id).await?.ok_or_else(|| {
        let message = format_args!(
            "there is no callback {id} in quarantine; callbacks are evicted when it is full"
        );
        CommandError::new(StatusCode::NOT_FOUND, &message)
    })
}
