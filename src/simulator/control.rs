//! The simulator's control API: HTTP with JSON on a port of its own, for tests of services that use
//! the gateway.
//!
//! It offers a part of what [`Handle`] offers to tests in Rust. It has no authentication and is off
//! by default.

use std::{io, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{delete, get, post, put},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{DeviceResult, Endpoint, Fault, Handle, What, When};
use crate::identity::{Device, RequestId};

const HELP: &str = include_str!("control.txt");

type ControlResult = Result<StatusCode, ControlError>;

/// The status and the body of an error.
type ControlError = (StatusCode, String);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultBody {
    endpoint: Endpoint,
    #[serde(default)]
    when: When,
    answer: FaultyAnswer,
    /// The number of calls; without it all, until the faults are cleared.
    times: Option<u32>,
}

/// The values of `answer` in `control.txt`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum FaultyAnswer {
    Status { code: u16, body: Option<String> },
    Throttle { retry_after_seconds: Option<u64> },
    Unavailable { retry_after_seconds: Option<u64> },
    Delay { milliseconds: u64 },
    Drop,
    Reset,
    CutBody,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestResultBody {
    outcome: DeviceResult,
    /// An EID or ICCID; without it, all devices.
    device: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResultBody {
    /// `null`: the last digit of the ICCID decides again.
    outcome: Option<DeviceResult>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PasswordBody {
    password: String,
}

/// Serves until `stop`.
pub async fn run(listener: TcpListener, handle: Handle, stop: CancellationToken) -> io::Result<()> {
    let router = Router::new()
        .route("/", get(async || HELP))
        .route("/happened", get(happened))
        .route("/faults", post(inject).delete(async |handle| apply(handle, Handle::clear_faults)))
        .route("/outcome", put(set_result))
        .route("/requests/{id}", put(finish))
        .route("/bearer", delete(async |handle| apply(handle, Handle::expire_bearer)))
        .route("/sessions", delete(async |handle| apply(handle, Handle::expire_sessions)))
        .route("/password", put(set_password))
        .route("/lock", delete(async |handle| apply(handle, Handle::unlock)))
        .fallback(async || (StatusCode::NOT_FOUND, HELP))
        .with_state(handle);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn happened(State(handle): State<Handle>) -> Json<Value> {
    let ledger = handle.ledger();
    // The EID of a device, or its ICCID.
    let name = |device: &Device| {
        let id = if device.eid.is_empty() { &device.iccid } else { &device.eid };
        id.as_str().to_owned()
    };
    let orders = ledger.orders.iter().map(|order| {
        json!({
            "request_id": order.request_id.as_str(),
            "account": order.account.as_str(),
            "devices": order.devices.iter().map(name).collect::<Vec<_>>(),
        })
    });
    let callbacks = ledger.callbacks();
    Json(json!({
        "orders": orders.collect::<Vec<_>>(),
        "calls": {
            "token": ledger.token_requests(),
            "login": ledger.logins(),
            "download": ledger.calls(Endpoint::Download),
            "status": ledger.polls(),
        },
        "logins": {
            "accepted": ledger.logins_accepted,
            "rejected": ledger.logins_rejected,
            "rejected_in_a_row": ledger.rejected_in_a_row,
            "locked": ledger.locked,
        },
        "callbacks": {
            "sent": callbacks.sent,
            "acknowledged": callbacks.acknowledged,
            "refused": callbacks.refused.values().sum::<u64>(),
            "broken": callbacks.broken,
        },
    }))
}

fn apply(State(handle): State<Handle>, change: fn(&Handle)) -> StatusCode {
    change(&handle);
    StatusCode::NO_CONTENT
}

async fn inject(State(handle): State<Handle>, body: String) -> ControlResult {
    let FaultBody { endpoint, when, answer, times } = read(&body)?;
    handle.inject(Fault { endpoint, when, what: answer.what()?, times, request: None });
    Ok(StatusCode::NO_CONTENT)
}

async fn set_result(State(handle): State<Handle>, body: String) -> ControlResult {
    let ResultBody { outcome } = read(&body)?;
    handle.set_result(outcome);
    Ok(StatusCode::NO_CONTENT)
}

async fn finish(
    State(handle): State<Handle>,
    Path(id): Path<String>,
    body: String,
) -> ControlResult {
    let RequestResultBody { outcome, device } = read(&body)?;
    let request = RequestId::parse(&id).map_err(|error| bad_request(&error))?;
    let finished = handle.try_finish(&request, device.as_deref(), outcome);
    finished.map_err(|missing| (StatusCode::NOT_FOUND, missing))?;
    Ok(StatusCode::NO_CONTENT)
}

async fn set_password(State(handle): State<Handle>, body: String) -> ControlResult {
    let PasswordBody { password } = read(&body)?;
    handle.set_password(&password);
    Ok(StatusCode::NO_CONTENT)
}

/// Reads JSON. The content type does not matter, so that `curl -d` is enough.
fn read<T: DeserializeOwned>(body: &str) -> Result<T, ControlError> {
    serde_json::from_str(body).map_err(|error| bad_request(&error))
}

fn bad_request(problem: &impl ToString) -> ControlError {
    (StatusCode::BAD_REQUEST, problem.to_string())
}

impl FaultyAnswer {
    fn what(self) -> Result<What, ControlError> {
        Ok(match self {
            Self::Status { code, body } => {
                let status = StatusCode::from_u16(code).map_err(|error| bad_request(&error))?;
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
