//! `callbacks list`, `register`, `deregister` and `rotate`: where ThingSpace sends callbacks. Shows
//! only the host of a registered URL, because its path is a secret.

use axum::{
    Json, Router,
    extract::{ConnectInfo, Path, State},
    http::StatusCode,
    routing::{get, post},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use super::{
    CommandError, GatewayParts,
    audit::{DONE, Operator, PendingCommand, UNCHANGED},
};
use crate::{
    callbacks::registration::{
        ListedRegistration, Registrar, RegistrationError, RegistrationOutcome, RegistrationResult,
    },
    identity::AccountName,
    telemetry::AuditEntry,
};

pub(super) const LIST: &str = "/v1/callbacks";
pub(super) const ACCOUNT: &str = "/v1/callbacks/{account}";
pub(super) const REGISTER: &str = "/v1/callbacks/{account}/register";
pub(super) const DEREGISTER: &str = "/v1/callbacks/{account}/deregister";
pub(super) const ROTATE: &str = "/v1/callbacks/{account}/rotate";
pub(super) const PROBE: &str = "/v1/callbacks/{account}/probe";

/// The number of accounts whose registrations are listed at the same time.
const CONCURRENT_LISTS: usize = 8;

pub(super) fn path(route: &str, account: &AccountName) -> String {
    route.replace("{account}", account.as_str())
}

/// The registrations of an account.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AccountRegistrations {
    pub(super) account: String,
    pub(super) registrations: Vec<RegistrationItem>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RegistrationItem {
    pub(super) service: String,
    /// The host of the URL.
    pub(super) host: String,
    /// Whether the URL leads to this gateway.
    pub(super) ours: bool,
    /// Whether the URL has this gateway's address and a path secret that its store does not know.
    #[serde(default)]
    pub(super) same_address: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct RegistrationRequest {
    /// `register`: replace the registration of another system.
    pub(super) force: bool,
    /// `rotate`: replace the path secret instead of the pair.
    pub(super) path: bool,
}

/// Whether the public address leads to this gateway.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ProbeResponse {
    pub(crate) leads_here: bool,
    /// What the requests to the public address found.
    pub(crate) found: String,
}

/// The result of a command.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(tag = "done", rename_all = "snake_case")]
pub(super) enum RegistrationResponse {
    /// The account was registered already.
    Unchanged,
    Registered,
    Deregistered,
    Rotated,
    /// Rotated but not registered, because an operator has deregistered the account.
    RotatedOnly,
    /// Not rotated, because the files of user name and password have not changed.
    NotRotated,
}

pub(super) fn routes() -> Router<GatewayParts> {
    Router::new()
        .route(LIST, get(list))
        .route(ACCOUNT, get(list_account))
        .route(REGISTER, post(register))
        .route(DEREGISTER, post(deregister))
        .route(ROTATE, post(rotate))
        .route(PROBE, get(probe))
}

type ListResult = Result<Json<Vec<AccountRegistrations>>, CommandError>;
type ChangeResult = Result<Json<RegistrationResponse>, CommandError>;

async fn list(State(parts): State<GatewayParts>) -> ListResult {
    let registration = parts.registration()?;
    let accounts: Vec<_> = parts.callbacks()?.secrets().accounts().cloned().collect();
    let lists = stream::iter(accounts).map(|account| registrations(registration, account));
    Ok(Json(lists.buffered(CONCURRENT_LISTS).try_collect().await?))
}

async fn list_account(
    State(parts): State<GatewayParts>,
    Path(account): Path<AccountName>,
) -> ListResult {
    Ok(Json(vec![registrations(parts.registration()?, account).await?]))
}

async fn registrations(
    registration: &Registrar,
    account: AccountName,
) -> Result<AccountRegistrations, CommandError> {
    let listed = registration.list(&account).await.map_err(|error| to_error(&account, &error))?;
    let item = |listed: ListedRegistration| RegistrationItem {
        service: listed.service,
        host: listed.host,
        ours: listed.ours,
        same_address: listed.same_address,
    };
    let registrations = listed.into_iter().map(item).collect();
    Ok(AccountRegistrations { account: account.to_string(), registrations })
}

async fn probe(
    State(parts): State<GatewayParts>,
    Path(account): Path<AccountName>,
) -> Result<Json<ProbeResponse>, CommandError> {
    let probed = parts.registration()?.probe(&account).await;
    let (leads_here, found) = match probed.map_err(|error| to_error(&account, &error))? {
        Ok(()) => (true, "it leads to this gateway, or to a replica of it".to_owned()),
        Err(why) => (false, why),
    };
    Ok(Json(ProbeResponse { leads_here, found }))
}

async fn register(
    ConnectInfo(operator): ConnectInfo<Operator>,
    State(parts): State<GatewayParts>,
    Path(account): Path<AccountName>,
    Json(RegistrationRequest { force, .. }): Json<RegistrationRequest>,
) -> ChangeResult {
    let flags = [("--force", force)];
    let command = operator.begin("callbacks register", &flags, about(&account));
    let result = async {
        let outcome = parts.registration()?.register(&account, force).await;
        to_response(&account, outcome, RegistrationResponse::Unchanged)
    };
    end(command, result.await)
}

async fn deregister(
    ConnectInfo(operator): ConnectInfo<Operator>,
    State(parts): State<GatewayParts>,
    Path(account): Path<AccountName>,
) -> ChangeResult {
    let command = operator.begin("callbacks deregister", &[], about(&account));
    let result = async {
        let outcome = parts.registration()?.deregister(&account).await;
        outcome.map_err(|error| to_error(&account, &error))?;
        Ok(RegistrationResponse::Deregistered)
    };
    end(command, result.await)
}

async fn rotate(
    ConnectInfo(operator): ConnectInfo<Operator>,
    State(parts): State<GatewayParts>,
    Path(account): Path<AccountName>,
    Json(RegistrationRequest { path, .. }): Json<RegistrationRequest>,
) -> ChangeResult {
    let command = operator.begin("callbacks rotate", &[("--path", path)], about(&account));
    let result = async {
        let registration = parts.registration()?;
        let outcome = if path {
            registration.rotate_path(&account).await
        } else {
            registration.rotate(&account).await
        };
        to_response(&account, outcome, RegistrationResponse::NotRotated)
    };
    end(command, result.await)
}

fn about(account: &AccountName) -> AuditEntry {
    AuditEntry { account: Some(account.to_string()), ..AuditEntry::default() }
}

fn end(
    command: PendingCommand,
    result: Result<RegistrationResponse, CommandError>,
) -> ChangeResult {
    let outcome = |response: &RegistrationResponse| match response {
        RegistrationResponse::Unchanged | RegistrationResponse::NotRotated => UNCHANGED,
        RegistrationResponse::Registered
        | RegistrationResponse::Deregistered
        | RegistrationResponse::Rotated
        | RegistrationResponse::RotatedOnly => DONE,
    };
    command.end(result, outcome).map(Json)
}

fn to_response(
    account: &AccountName,
    outcome: RegistrationResult,
    unchanged: RegistrationResponse,
) -> Result<RegistrationResponse, CommandError> {
    Ok(match outcome.map_err(|error| to_error(account, &error))? {
        RegistrationOutcome::Unchanged => unchanged,
        RegistrationOutcome::Registered => RegistrationResponse::Registered,
        RegistrationOutcome::Rotated => RegistrationResponse::Rotated,
        RegistrationOutcome::RotatedOnly => RegistrationResponse::RotatedOnly,
        RegistrationOutcome::Deregistered => RegistrationResponse::Deregistered,
    })
}

fn to_error(account: &AccountName, error: &RegistrationError) -> CommandError {
    let status = match error {
        RegistrationError::NotConfigured(_) => StatusCode::NOT_FOUND,
        RegistrationError::Taken { .. } | RegistrationError::Stopped(_) => StatusCode::CONFLICT,
        RegistrationError::NotListed { .. } => StatusCode::BAD_GATEWAY,
        RegistrationError::ThingSpace(error) | RegistrationError::NotListable(error) => {
            let message = format_args!("account {account}, at ThingSpace: {error}");
            return CommandError::new(StatusCode::BAD_GATEWAY, &message);
        }
        RegistrationError::Secrets(_) => StatusCode::SERVICE_UNAVAILABLE,
        RegistrationError::PublicUrl | RegistrationError::Panicked => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    CommandError::new(status, error)
}
