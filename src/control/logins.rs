//! `unblock`, which lets stopped logins be tried once more, and a line of `status` for each set of
//! credentials.

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
use crate::thingspace::{self, Error, UnblockMode, UnblockOutcome, UnblockRefusal};

const UNBLOCK: &str = "/v1/credentials/{name}/unblock";

pub(super) fn unblock_path(name: &str) -> String {
    UNBLOCK.replace("{name}", name)
}

/// The state of the logins of a set of credentials.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Login {
    pub(super) credentials: String,
    /// False: an operator has to act, also if a session still works.
    pub(super) healthy: bool,
    pub(super) standing: String,
}

/// How the operator wants it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Unblock {
    /// The operator has logged in elsewhere, which clears what ThingSpace has counted.
    pub(super) force: bool,
    /// With `force`: although no login was accepted since the last time.
    pub(super) risk_lock: bool,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Unblocked {
    /// False: nothing was in the way.
    pub(super) changed: bool,
    /// Rejected logins in a row that ThingSpace may have counted.
    pub(super) rejections: u32,
    /// Rejected logins in a row after which it locks the user.
    pub(super) lock: u32,
}

pub(super) fn routes() -> Router<Subject> {
    Router::new().route(UNBLOCK, post(unblock))
}

pub(super) fn logins(subject: &Subject) -> Vec<Login> {
    let standings = subject.client.standings().map(|(name, standing)| {
        let standing = standing.borrow().clone();
        Login {
            credentials: name.to_owned(),
            healthy: standing.healthy,
            standing: standing.sentence,
        }
    });
    standings.collect()
}

async fn unblock(
    State(subject): State<Subject>,
    Path(name): Path<String>,
    Json(Unblock { force, risk_lock }): Json<Unblock>,
) -> Result<Json<Unblocked>, Response> {
    let mode = match (force, risk_lock) {
        (false, _) => UnblockMode::Retry,
        (true, false) => UnblockMode::LoggedIn,
        (true, true) => UnblockMode::RiskLock,
    };
    let Some(done) = subject.client.unblock(&name, mode).await else {
        return Err(refuse(
            StatusCode::NOT_FOUND,
            &format_args!("there are no credentials named {name}"),
        ));
    };
    let done = done.map_err(|error| match error {
        Error::Store(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, &error),
        error => refuse(StatusCode::CONFLICT, &error),
    })?;
    let thingspace::Unblocked { outcome, rejections, lock } = done;
    let changed = match outcome {
        UnblockOutcome::Done => true,
        UnblockOutcome::NotNeeded => false,
        UnblockOutcome::Refused(why) => {
            let why = match why {
                UnblockRefusal::LastAttempt => last_attempt(&name, rejections, lock),
                UnblockRefusal::Refuted => refuted(&name, lock),
                UnblockRefusal::AlreadyForced => already_forced(&name, lock),
            };
            return Err(refuse(StatusCode::CONFLICT, &why));
        }
    };
    info!(
        credentials = name,
        changed, force, risk_lock, rejections, "an operator let credentials be tried once more"
    );
    Ok(Json(Unblocked { changed, rejections, lock }))
}

fn refuted(name: &str, lock: u32) -> String {
    format!(
        "ThingSpace rejected the password that the files of credentials {name} hold, after the last \
         `unblock --force`. It is not the password that worked elsewhere: write that one into the \
         file. {}",
        once_more(name, lock)
    )
}

fn already_forced(name: &str, lock: u32) -> String {
    format!(
        "no login of the user of credentials {name} was accepted after the last `unblock --force`, \
         so it may have been a mistake. Correct the files: a user name or a password that is not \
         the one that worked elsewhere is the usual cause. {}",
        once_more(name, lock)
    )
}

fn once_more(name: &str, lock: u32) -> String {
    format!(
        "If logins stay stopped then, log in once more elsewhere, with exactly what the files hold, \
         and run `thingspace-gateway unblock {name} --force --risk-lock`. Each such command permits \
         one login. If nobody has logged in elsewhere before it, ThingSpace may lock the user, which \
         it does at {lock} rejected logins in a row; only Verizon's support unlocks a user"
    )
}

fn last_attempt(name: &str, rejections: u32, lock: u32) -> String {
    format!(
        "ThingSpace may have counted {rejections} rejected logins in a row and locks the user at {lock}, so logins \
         with credentials {name} stay stopped. Log in once elsewhere with the password that the files hold, for \
         example in ThingSpace's portal: that clears the count. Then run `thingspace-gateway unblock {name} --force`"
    )
}
