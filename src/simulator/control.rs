//! The simulator's control API: HTTP with JSON, on a port of its own, for tests of services that
//! use the gateway.
//!
//! It does what a [`Handle`] does for tests in Rust. It has no authentication, and is only there if
//! asked for.

use std::{io, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{delete, get, post, put},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Endpoint, Fault, Handle, Outcome, What, When, ledger::Ledger};
use crate::identity::RequestId;

/// What `GET /` answers.
const HELP: &str = include_str!("control.txt");

/// A refusal, in words.
type Refused = (StatusCode, String);

type Done = Result<StatusCode, Refused>;

/// What goes wrong with coming calls.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewFault {
    endpoint: Endpoint,
    #[serde(default)]
    when: When,
    answer: Answer,
    /// How many calls; without it, all until the faults are cleared.
    times: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Answer {
    /// This status, and this body as JSON.
    Status { code: u16, body: Option<String> },
    /// HTTP 429.
    Throttle { retry_after_seconds: Option<u64> },
    /// HTTP 503 with a page of HTML.
    Unavailable { retry_after_seconds: Option<u64> },
    /// The right answer, late.
    Delay { milliseconds: u64 },
    /// The connection is closed without an answer.
    Drop,
    /// The connection is reset without an answer.
    Reset,
    /// Half of the answer, then the connection is closed.
    CutBody,
}

/// What devices come to.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Pending,
    Success,
    Failed,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfRequest {
    outcome: Word,
    /// An EID or ICCID; without it, all devices.
    device: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfOrders {
    /// `null`: the last digit of the ICCID decides again.
    outcome: Option<Word>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewPassword {
    password: String,
}

#[derive(Debug, Serialize)]
struct Happened {
    /// In the order in which they were accepted.
    orders: Vec<Ordered>,
    calls: Calls,
    logins: Logins,
    callbacks: Callbacks,
}

#[derive(Debug, Serialize)]
struct Ordered {
    request_id: String,
    account: String,
    /// The EID of each device; its ICCID, where it has no EID.
    devices: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Calls {
    token: u64,
    login: u64,
    download: u64,
    status: u64,
}

#[derive(Debug, Serialize)]
struct Logins {
    accepted: u64,
    rejected: u64,
    rejected_in_a_row: u32,
    locked: bool,
}

#[derive(Debug, Serialize)]
struct Callbacks {
    sent: u64,
    acknowledged: u64,
    refused: u64,
    broken: u64,
}

/// Serves until `stop`.
pub async fn run(listener: TcpListener, handle: Handle, stop: CancellationToken) -> io::Result<()> {
    let router = Router::new()
        .route("/", get(async || HELP))
        .route("/happened", get(happened))
        .route("/faults", post(inject).delete(clear))
        .route("/outcome", put(set_outcome))
        .route("/requests/{id}", put(finish))
        .route("/bearer", delete(expire_bearer))
        .route("/sessions", delete(expire_sessions))
        .route("/password", put(set_password))
        .route("/lock", delete(unlock))
        .fallback(async || (StatusCode::NOT_FOUND, HELP))
        .with_state(handle);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn happened(State(handle): State<Handle>) -> Json<Happened> {
    Json(Happened::of(&handle.ledger()))
}

async fn inject(State(handle): State<Handle>, body: String) -> Done {
    let NewFault { endpoint, when, answer, times } = read(&body)?;
    let what = answer.what()?;
    handle.inject(Fault { endpoint, when, what, times, request: None });
    Ok(StatusCode::NO_CONTENT)
}

async fn clear(State(handle): State<Handle>) -> StatusCode {
    handle.clear_faults();
    StatusCode::NO_CONTENT
}

async fn set_outcome(State(handle): State<Handle>, body: String) -> Done {
    let OfOrders { outcome } = read(&body)?;
    handle.set_outcome(outcome.map(Word::outcome));
    Ok(StatusCode::NO_CONTENT)
}

async fn finish(State(handle): State<Handle>, Path(id): Path<String>, body: String) -> Done {
    let OfRequest { outcome, device } = read(&body)?;
    let request = RequestId::parse(&id).map_err(|problem| bad(problem.to_string()))?;
    let set = handle.try_finish(&request, device.as_deref(), outcome.outcome());
    set.map_err(|missing| (StatusCode::NOT_FOUND, missing))?;
    Ok(StatusCode::NO_CONTENT)
}

async fn expire_bearer(State(handle): State<Handle>) -> StatusCode {
    handle.expire_bearer();
    StatusCode::NO_CONTENT
}

async fn expire_sessions(State(handle): State<Handle>) -> StatusCode {
    handle.expire_sessions();
    StatusCode::NO_CONTENT
}

async fn set_password(State(handle): State<Handle>, body: String) -> Done {
    let NewPassword { password } = read(&body)?;
    handle.set_password(&password);
    Ok(StatusCode::NO_CONTENT)
}

async fn unlock(State(handle): State<Handle>) -> StatusCode {
    handle.unlock();
    StatusCode::NO_CONTENT
}

/// JSON whatever its content type, so that `curl -d` is enough.
fn read<T: DeserializeOwned>(body: &str) -> Result<T, Refused> {
    serde_json::from_str(body).map_err(|problem| bad(problem.to_string()))
}

fn bad(problem: String) -> Refused {
    (StatusCode::BAD_REQUEST, problem)
}

impl Answer {
    fn what(self) -> Result<What, Refused> {
        Ok(match self {
            Self::Status { code, body } => {
                let status =
                    StatusCode::from_u16(code).map_err(|problem| bad(problem.to_string()))?;
                body.map_or_else(|| What::bare(status), |body| What::Json { status, body })
            }
            Self::Throttle { retry_after_seconds } => {
                What::Throttle { retry_after: retry_after_seconds }
            }
            Self::Unavailable { retry_after_seconds } => {
                What::Unavailable { retry_after: retry_after_seconds }
            }
            Self::Delay { milliseconds } => What::Delay(Duration::from_millis(milliseconds)),
            Self::Drop => What::Drop,
            Self::Reset => What::Reset,
            Self::CutBody => What::CutBody,
        })
    }
}

impl Word {
    fn outcome(self) -> Outcome {
        match self {
            Self::Pending => Outcome::Pending,
            Self::Success => Outcome::Success,
            Self::Failed => Outcome::Failed,
        }
    }
}

impl Happened {
    fn of(ledger: &Ledger) -> Self {
        let name = |id: &crate::identity::Device| {
            let id = if id.eid.is_empty() { &id.iccid } else { &id.eid };
            id.as_str().to_owned()
        };
        let orders = ledger.orders.iter().map(|order| Ordered {
            request_id: order.request_id.to_string(),
            account: order.account.to_string(),
            devices: order.devices.iter().map(name).collect(),
        });
        let callbacks = ledger.callbacks();
        Self {
            orders: orders.collect(),
            calls: Calls {
                token: ledger.token_requests(),
                login: ledger.logins(),
                download: ledger.calls(Endpoint::Download),
                status: ledger.polls(),
            },
            logins: Logins {
                accepted: ledger.logins_accepted,
                rejected: ledger.logins_rejected,
                rejected_in_a_row: ledger.strikes,
                locked: ledger.locked,
            },
            callbacks: Callbacks {
                sent: callbacks.sent,
                acknowledged: callbacks.acknowledged,
                refused: callbacks.refused.values().sum(),
                broken: callbacks.broken,
            },
        }
    }
}
