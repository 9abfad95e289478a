//! `quarantine list` and `quarantine show`: callbacks that nobody understood.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::Response,
    routing::get,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::info;

use super::{Subject, refuse};
use crate::{
    callbacks::quarantine::{Listed, Shown},
    telemetry::AUDIT,
};

pub(super) const LIST: &str = "/v1/quarantine";
const SHOW: &str = "/v1/quarantine/{id}";

pub(super) fn show_path(id: u64) -> String {
    SHOW.replace("{id}", &id.to_string())
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Quarantined {
    pub(super) id: u64,
    pub(super) account: String,
    /// When it came.
    pub(super) time: Timestamp,
    /// Of its body.
    pub(super) bytes: u32,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Body {
    pub(super) id: u64,
    /// Without the passwords that were found in it.
    pub(super) body: String,
}

pub(super) fn routes() -> Router<Subject> {
    Router::new().route(LIST, get(list)).route(SHOW, get(show))
}

async fn list(State(subject): State<Subject>) -> Result<Json<Vec<Quarantined>>, Response> {
    let shown = |Listed { number, time, account, size }| Quarantined {
        id: number,
        account,
        time,
        bytes: size,
    };
    match subject.callbacks()?.quarantine().list().await {
        Ok(listed) => Ok(Json(listed.into_iter().map(shown).collect())),
        Err(error) => Err(refuse(StatusCode::SERVICE_UNAVAILABLE, &error)),
    }
}

async fn show(State(subject): State<Subject>, Path(id): Path<u64>) -> Result<Json<Body>, Response> {
    match subject.callbacks()?.quarantine().show(id).await {
        Ok(Some(Shown { account, body })) => {
            info!(
                target: AUDIT,
                who = "an operator on the control socket",
                number = id,
                account,
                "a quarantined callback was shown; it may hold identities of devices"
            );
            Ok(Json(Body { id, body }))
        }
        Ok(None) => Err(refuse(
            StatusCode::NOT_FOUND,
            &format_args!("there is no callback {id} in quarantine; the oldest go when it is full"),
        )),
        Err(error) => Err(refuse(StatusCode::SERVICE_UNAVAILABLE, &error)),
    }
}
