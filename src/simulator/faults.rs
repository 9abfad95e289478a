//! Faults of calls, before or after the effect of the call.
//!
//! A lost request and a lost answer are different faults: if the answer is lost, the order exists.
//! A call has at most one fault, the oldest for its endpoint. A delayed call is executed after the
//! delay, even if the caller has disconnected.

mod answer;

use std::time::Duration;

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{
    connection::ConnectionCut,
    error::{HTML, TextAnswer},
};
use crate::identity::RequestId;

const PAGE: &str =
    "<!DOCTYPE html><html><head><title>Sorry</title></head><body>Try again later.</body></html>";

const REFUSED: &str = "\"errorCode\":\"UnifiedWebService.REQUEST_FAILED.DeviceNotFound\",\
    \"errorMessage\":\"A device was not found.\"";

/// The calls that the simulator serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say all")]
pub enum Endpoint {
    Token,
    Login,
    Download,
    Status,
    ListCallbacks,
    RegisterCallback,
    DeregisterCallback,
}

/// A fault of the calls of one endpoint.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the types of the other fields are documented")]
pub struct Fault {
    pub endpoint: Endpoint,
    pub when: When,
    pub what: What,
    /// The number of calls that have the fault; `None`: all, until the faults are cleared.
    pub times: Option<u32>,
    /// If set, only status queries about this request have the fault.
    pub request: Option<RequestId>,
}

/// Whether a call with a fault is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// The call is not executed. [`What::Delay`] and [`What::Hold`] only delay its execution.
    #[default]
    BeforeEffect,
    /// The call is executed, and only its answer has the fault.
    AfterEffect,
}

/// A kind of fault. If the call is not executed, the answer that a fault changes is an HTTP 500.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the variants document their fields")]
pub enum What {
    /// This answer.
    Status { status: StatusCode, content_type: &'static str, body: String },
    /// This JSON, in which `{id}` stands for the request id of the order.
    Json { status: StatusCode, body: String },
    /// HTTP 429 with code 900800, and `Retry-After` in seconds.
    Throttle { retry_after: Option<u64> },
    /// HTTP 503 with a page of HTML, and `Retry-After` in seconds.
    Unavailable { retry_after: Option<u64> },
    /// HTTP 307.
    Redirect { location: String },
    /// The connection ends without a byte of an answer.
    Drop,
    /// The connection is reset without a byte of an answer.
    Reset,
    /// Headers with the full `Content-Length`, half of the body, then the connection is cut.
    CutBody,
    /// Half of the body, with a `Content-Length` that fits.
    HalfBody,
    /// Headers with the full `Content-Length`, then one byte of the body after each pause.
    Trickle { pause: Duration },
    /// Additional headers, of a hundred bytes each.
    Headers { count: usize },
    /// The answer comes after this time.
    Delay(Duration),
    /// The answer comes after the test has opened the gate.
    Hold(Gate),
}

/// Answers that users of ThingSpace saw.
impl What {
    /// HTTP 401: the bearer token is not valid, or the key of a token request.
    pub fn invalid_credentials() -> Self {
        Self::error(TextAnswer::invalid_credentials())
    }

    /// HTTP 403 with XML that says 404.
    pub fn wrong_authentication() -> Self {
        Self::error(TextAnswer::wrong_authentication())
    }

    /// This status, with the JSON of the eSIM calls.
    pub fn failed(status: StatusCode) -> Self {
        Self::error(TextAnswer::http(status, "The request could not be processed"))
    }

    /// A page of HTML, as of a proxy.
    pub fn page(status: StatusCode) -> Self {
        Self::Status { status, content_type: HTML, body: PAGE.to_owned() }
    }

    /// This status, without a body.
    pub fn bare(status: StatusCode) -> Self {
        Self::Status { status, content_type: "", body: String::new() }
    }

    /// HTTP 400 with a refusal. A field of this name has the request id of the order.
    pub fn refused_with_id(name: &str) -> Self {
        Self::json(StatusCode::BAD_REQUEST, format!(r#"{{{REFUSED},"{name}":"{{id}}"}}"#))
    }

    /// HTTP 400 with a refusal, and a second envelope that says that the API manager lost its
    /// connection.
    pub fn two_envelopes() -> Self {
        Self::json(StatusCode::BAD_REQUEST, format!(r#"{{{REFUSED},"fault":{{"code":"101503"}}}}"#))
    }

    /// HTTP 200 with this JSON as the request id.
    pub fn request_id(json: &str) -> Self {
        Self::json(StatusCode::OK, format!(r#"{{"requestId":{json}}}"#))
    }

    fn json(status: StatusCode, body: String) -> Self {
        Self::Json { status, body }
    }

    fn error(error: TextAnswer) -> Self {
        let TextAnswer { status, content_type, text: body } = error;
        Self::Status { status, content_type, body }
    }
}

impl Fault {
    /// A fault of the next call.
    pub fn once(endpoint: Endpoint, when: When, what: What) -> Self {
        Self { endpoint, when, what, times: Some(1), request: None }
    }

    /// A fault of all calls until [`Handle::clear_faults`](super::Handle::clear_faults).
    pub fn always(endpoint: Endpoint, when: When, what: What) -> Self {
        Self { endpoint, when, what, times: None, request: None }
    }

    /// Limits the fault to status queries about this request.
    pub fn about(self, request: &RequestId) -> Self {
        Self { request: Some(request.clone()), ..self }
    }
}

/// Holds calls until a test opens it. It stays open.
#[derive(Debug, Clone, Default)]
pub struct Gate(CancellationToken);

impl Gate {
    /// Lets all calls continue.
    pub fn open(&self) {
        self.0.cancel();
    }

    /// Waits until the gate is open.
    pub async fn opened(&self) {
        self.0.cancelled().await;
    }
}

/// The remaining faults, oldest first.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        if fault.times != Some(0) {
            self.0.push(fault);
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn take(
        &mut self,
        endpoint: Endpoint,
        request: Option<&RequestId>,
    ) -> Option<(When, What)> {
        let concerns = |fault: &Fault| {
            fault.endpoint == endpoint
                && fault.request.as_ref().is_none_or(|only| Some(only) == request)
        };
        let index = self.0.iter().position(concerns)?;
        let fault = &mut self.0[index];
        let result = (fault.when, fault.what.clone());
        if let Some(times) = &mut fault.times {
            *times -= 1;
            if *times == 0 {
                self.0.remove(index);
            }
        }
        Some(result)
    }
}

pub(super) async fn execute(
    fault: Option<(When, What)>,
    cut: &ConnectionCut,
    effect: impl FnOnce() -> Response,
) -> Response {
    match fault {
        None => effect(),
        Some((When::AfterEffect, what)) => what.change(effect(), cut).await,
        Some((When::BeforeEffect, what @ (What::Delay(_) | What::Hold(_)))) => {
            what.change(Response::default(), cut).await;
            effect()
        }
        Some((When::BeforeEffect, what)) => {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            let answer = TextAnswer::http(status, "The call was not executed");
            what.change(answer.into_response(), cut).await
        }
    }
}
