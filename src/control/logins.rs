//! `unblock`: what was stopped may be tried once more. And a line of `status` for each set of credentials.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::Response,
    routing::post,
};
use serde::{Deserialize, Serialize};
use tracing::info;

use super::{Subject, refuse};
use crate::thingspace::Error;

const UNBLOCK: &str = "/v1/credentials/{name}/unblock";

pub(super) fn unblock_path(name: &str) -> String {
    UNBLOCK.replace("{name}", name)
}

/// How the logins of a set of credentials are doing.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Login {
    pub(super) credentials: String,
    /// False: there will be no login until somebody acts.
    pub(super) healthy: bool,
    pub(super) standing: String,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Unblocked {
    /// False: nothing was in the way.
    pub(super) changed: bool,
}

pub(super) fn routes() -> Router<Subject> {
    Router::new().route(UNBLOCK, post(unblock))
}

pub(super) fn logins(subject: &Subject) -> Vec<Login> {
    let standings = subject.client.standings().map(|(name, standing)| {
        let standing = standing.borrow().clone();
        Login { credentials: name.to_owned(), healthy: standing.healthy, standing: standing.sentence }
    });
    standings.collect()
}

async fn unblock(
    State(subject): State<Subject>,
    Path(name): Path<String>,
) -> Result<Json<Unblocked>, Response> {
    let Some(done) = subject.client.unblock(&name).await else {
        return Err(refuse(StatusCode::NOT_FOUND, &format_args!("there are no credentials named {name}")));
    };
    match done {
        Ok(changed) => {
            info!(credentials = name, changed, "an operator let credentials be tried once more");
            Ok(Json(Unblocked { changed }))
        }
        Err(Error::Store(error)) => Err(refuse(StatusCode::SERVICE_UNAVAILABLE, &error)),
        Err(error) => Err(refuse(StatusCode::CONFLICT, &error)),
    }
}
