//! `unblock`, which allows one more login, and the lines of `status` about credentials.

use axum::{
    Json, Router,
    extract::{ConnectInfo, Path, State},
    http::StatusCode,
    routing::post,
};
use serde::{Deserialize, Serialize};

use super::{
    CommandError, GatewayParts,
    audit::{DONE, Operator, UNCHANGED},
};
use crate::{
    telemetry::AuditEntry,
    thingspace::{
        Error, LoginHealth, LoginState, UnblockMode, UnblockOutcome, UnblockRefusal, Unblocked,
    },
};

const UNBLOCK: &str = "/v1/credentials/{name}/unblock";

pub(super) fn unblock_path(name: &str) -> String {
    UNBLOCK.replace("{name}", name)
}

/// The state of the logins with a set of credentials.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LoginStatus {
    pub(crate) credentials: String,
    /// False if an operator has to act, even while a session token is still valid.
    pub(crate) healthy: bool,
    /// The state in one sentence.
    pub(crate) standing: String,
    #[serde(default)]
    pub(crate) state: LoginState,
    /// Whether calls have tokens, which work until they expire or ThingSpace ends the session.
    #[serde(default)]
    pub(crate) has_tokens: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct UnblockRequest {
    /// The operator confirms a login elsewhere, which has reset ThingSpace's count.
    pub(super) force: bool,
    /// Allows `force` even if no login was accepted since the last forced unblock.
    pub(super) risk_lock: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct UnblockResponse {
    /// False if logins were not stopped.
    pub(super) changed: bool,
    /// The rejected logins in a row that ThingSpace may have counted.
    pub(super) rejections: u32,
    /// The number of rejected logins in a row after which ThingSpace locks the user.
    pub(super) lock: u32,
}

pub(super) fn routes() -> Router<GatewayParts> {
    Router::new().route(UNBLOCK, post(unblock))
}

pub(super) fn logins(parts: &GatewayParts) -> Vec<LoginStatus> {
    let logins = parts.client.login_health().map(|(name, health)| {
        let LoginHealth { healthy, sentence, state, has_tokens } = health.borrow().clone();
        let credentials = name.to_owned();
        LoginStatus { credentials, healthy, standing: sentence, state, has_tokens }
    });
    logins.collect()
}

async fn unblock(
    ConnectInfo(operator): ConnectInfo<Operator>,
    State(parts): State<GatewayParts>,
    Path(name): Path<String>,
    Json(UnblockRequest { force, risk_lock }): Json<UnblockRequest>,
) -> Result<Json<UnblockResponse>, CommandError> {
    let about = AuditEntry { credentials: Some(name.clone()), ..AuditEntry::default() };
    let flags = [("--force", force), ("--risk-lock", risk_lock)];
    let command = operator.begin("unblock", &flags, about);
    let mode = match (force, risk_lock) {
        (false, _) => UnblockMode::Retry,
        (true, false) => UnblockMode::LoggedIn,
        (true, true) => UnblockMode::RiskLock,
    };
    let response = allow_login(&parts, &name, mode).await.map(Json);
    command.end(response, |Json(response)| if response.changed { DONE } else { UNCHANGED })
}

async fn allow_login(
    parts: &GatewayParts,
    name: &str,
    mode: UnblockMode,
) -> Result<UnblockResponse, CommandError> {
    let Some(unblocked) = parts.client.unblock(name, mode).await else {
        let unknown = format_args!("there are no credentials named {name}");
        return Err(CommandError::new(StatusCode::NOT_FOUND, &unknown));
    };
    let Unblocked { outcome, rejections, lock } = unblocked.map_err(|error| match error {
        Error::Store(error) => error.into(),
        error => CommandError::conflict(&error),
    })?;
    let changed = match outcome {
        UnblockOutcome::Done => true,
        UnblockOutcome::NotNeeded => false,
        UnblockOutcome::Refused(why) => {
            return Err(CommandError::conflict(&match why {
                UnblockRefusal::LastAttempt => last_attempt(name, rejections, lock),
                UnblockRefusal::PasswordRejected => password_rejected(name, lock),
                UnblockRefusal::ForceUsed => force_used(name, lock),
            }));
        }
    };
    Ok(UnblockResponse { changed, rejections, lock })
}

fn password_rejected(name: &str, lock: u32) -> String {
    format!(
        "ThingSpace rejected the password in the files of credentials {name} after the last \
         `unblock --force`. So the file does not hold the password that worked elsewhere: write \
         that password into the file. {}",
        risk_lock(name, lock)
    )
}

fn force_used(name: &str, lock: u32) -> String {
    format!(
        "no login of the user of credentials {name} was accepted after the last `unblock --force`, \
         so that command may have been a mistake. Correct the files: usually they do not hold the \
         user name or the password that worked elsewhere. {}",
        risk_lock(name, lock)
    )
}

fn risk_lock(name: &str, lock: u32) -> String {
    format!(
        "If logins are still stopped after that, log in elsewhere once more, with exactly the user \
         name and password in the files, and run `thingspace-gateway unblock {name} --force \
         --risk-lock`. Each such command allows one login. Without a login elsewhere before it, \
         ThingSpace may lock the user: it does so after {lock} rejected logins in a row, and only \
         Verizon's support unlocks a user"
    )
}

fn last_attempt(name: &str, rejections: u32, lock: u32) -> String {
    format!(
        "ThingSpace may have counted {rejections} rejected logins in a row and locks the user at \
         {lock}, so logins with credentials {name} stay stopped. Log in once elsewhere with the \
         password in the files, for example in ThingSpace's portal: that resets the count. Then \
         run `thingspace-gateway unblock {name} --force`"
    )
}
