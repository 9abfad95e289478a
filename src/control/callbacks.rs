//! `callbacks list`, `register`, `deregister` and `rotate`: where ThingSpace calls back. Of a
//! registered URL only the host is told.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::Response,
    routing::{get, post},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use tracing::info;

use super::{Subject, refuse};
use crate::{
    callbacks::registration::{Error, Outcome, Registration},
    identity::AccountName,
};

pub(super) const LIST: &str = "/v1/callbacks";
pub(super) const ACCOUNT: &str = "/v1/callbacks/{account}";
pub(super) const REGISTER: &str = "/v1/callbacks/{account}/register";
pub(super) const DEREGISTER: &str = "/v1/callbacks/{account}/deregister";
pub(super) const ROTATE: &str = "/v1/callbacks/{account}/rotate";

/// Accounts that are asked about at once.
const AT_ONCE: usize = 8;

pub(super) fn path(route: &str, account: &AccountName) -> String {
    route.replace("{account}", account.as_str())
}

/// What is registered for an account.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Registered {
    pub(super) account: String,
    pub(super) registrations: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) service: String,
    /// Of the URL, whose path is a secret.
    pub(super) host: String,
    /// It leads to this gateway.
    pub(super) ours: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct How {
    /// Register also over another's URL.
    pub(super) force: bool,
    /// Rotate the secret in the path, not the pair.
    pub(super) path: bool,
}

/// What came of a command.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(tag = "done", rename_all = "snake_case")]
pub(super) enum Done {
    /// It was right already.
    Unchanged,
    Registered,
    Deregistered,
    Rotated,
    /// Rotated; an operator deregistered the account before, and it stays so.
    RotatedOnly,
    /// The files of user name and password are as they were.
    NotRotated,
}

pub(super) fn routes() -> Router<Subject> {
    Router::new()
        .route(LIST, get(list))
        .route(ACCOUNT, get(list_account))
        .route(REGISTER, post(register))
        .route(DEREGISTER, post(deregister))
        .route(ROTATE, post(rotate))
}

async fn list(State(subject): State<Subject>) -> Result<Json<Vec<Registered>>, Response> {
    let registration = registration(&subject)?;
    let accounts: Vec<_> = subject.callbacks()?.secrets().accounts().cloned().collect();
    let listed = stream::iter(accounts).map(|account| registered(registration, account));
    Ok(Json(listed.buffered(AT_ONCE).try_collect().await?))
}

async fn list_account(
    State(subject): State<Subject>,
    Path(account): Path<AccountName>,
) -> Result<Json<Vec<Registered>>, Response> {
    Ok(Json(vec![registered(registration(&subject)?, account).await?]))
}

async fn registered(
    registration: &Registration,
    account: AccountName,
) -> Result<Registered, Response> {
    let listed = registration.list(&account).await.map_err(|error| failed(&account, &error))?;
    let entry = |listed: crate::callbacks::registration::Listed| Entry {
        service: listed.service,
        host: listed.host,
        ours: listed.ours,
    };
    Ok(Registered {
        account: account.to_string(),
        registrations: listed.into_iter().map(entry).collect(),
    })
}

async fn register(
    State(subject): State<Subject>,
    Path(account): Path<AccountName>,
    Json(How { force, .. }): Json<How>,
) -> Result<Json<Done>, Response> {
    let outcome = registration(&subject)?.register(&account, force).await;
    let done = match outcome.map_err(|error| failed(&account, &error))? {
        Outcome::Unchanged => Done::Unchanged,
        outcome => done(outcome),
    };
    info!(%account, force, ?done, "an operator registered callbacks");
    Ok(Json(done))
}

async fn deregister(
    State(subject): State<Subject>,
    Path(account): Path<AccountName>,
) -> Result<Json<Done>, Response> {
    let outcome = registration(&subject)?.deregister(&account).await;
    outcome.map_err(|error| failed(&account, &error))?;
    info!(%account, "an operator deregistered callbacks");
    Ok(Json(Done::Deregistered))
}

async fn rotate(
    State(subject): State<Subject>,
    Path(account): Path<AccountName>,
    Json(How { path, .. }): Json<How>,
) -> Result<Json<Done>, Response> {
    let registration = registration(&subject)?;
    let outcome = if path {
        registration.rotate_path(&account).await
    } else {
        registration.rotate(&account).await
    };
    let done = done(outcome.map_err(|error| failed(&account, &error))?);
    info!(%account, path, ?done, "an operator rotated secrets of callbacks");
    Ok(Json(done))
}

fn done(outcome: Outcome) -> Done {
    match outcome {
        Outcome::Unchanged => Done::NotRotated,
        Outcome::Registered => Done::Registered,
        Outcome::Rotated => Done::Rotated,
        Outcome::RotatedOnly => Done::RotatedOnly,
        Outcome::Deregistered => Done::Deregistered,
    }
}

#[expect(clippy::result_large_err, reason = "it is the answer")]
fn registration(subject: &Subject) -> Result<&Registration, Response> {
    subject.callbacks()?;
    let none = || {
        let unknown =
            "the gateway does not know where ThingSpace reaches it: callbacks.public_url is empty";
        refuse(StatusCode::CONFLICT, &unknown)
    };
    subject.registration.as_ref().ok_or_else(none)
}

fn failed(account: &AccountName, error: &Error) -> Response {
    let status = match error {
        Error::NotConfigured(_) => StatusCode::NOT_FOUND,
        Error::Taken(_) | Error::Stopped(_) => StatusCode::CONFLICT,
        Error::NotListed { .. } => StatusCode::BAD_GATEWAY,
        Error::ThingSpace(error) => {
            return refuse(
                StatusCode::BAD_GATEWAY,
                &format_args!("account {account}, at ThingSpace: {error}"),
            );
        }
        Error::Secrets(_) => StatusCode::SERVICE_UNAVAILABLE,
        Error::PublicUrl | Error::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
    };
    refuse(status, error)
}
