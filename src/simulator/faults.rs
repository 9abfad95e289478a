//! What can go wrong on a call, before it has its effect or after.
//!
//! A lost request and a lost answer are different faults: after the second, the order exists. A
//! call meets at most one fault, the oldest injected for its endpoint. What a fault lets wait is
//! done when the wait is over, also when the caller has gone by then.

mod spoil;

use std::time::Duration;

use axum::{http::StatusCode, response::Response};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{
    connection::Cut,
    refusal::{HTML, Refusal, Written},
};
use crate::identity::RequestId;

/// What a proxy says.
const PAGE: &str =
    "<!DOCTYPE html><html><head><title>Sorry</title></head><body>Try again later.</body></html>";

/// The fields of a refusal.
const REFUSED: &str = r#""errorCode":"UnifiedWebService.REQUEST_FAILED.DeviceNotFound","errorMessage":"A device was not found.""#;

/// The calls the simulator knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    Token,
    Revoke,
    Login,
    Logout,
    Download,
    Status,
    ListCallbacks,
    RegisterCallback,
    DeregisterCallback,
}

/// Something that goes wrong on calls of one endpoint.
#[derive(Debug, Clone)]
pub struct Fault {
    pub endpoint: Endpoint,
    pub when: When,
    pub what: What,
    /// How many calls meet it; `None`: all, until the faults are cleared.
    pub times: Option<u32>,
    /// Only status calls about this request meet it.
    pub request: Option<RequestId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// The call has no effect (once it waited, with [`What::Delay`] and [`What::Hold`], it has).
    #[default]
    BeforeEffect,
    /// The call has its effect, the answer suffers.
    AfterEffect,
}

/// Before the effect, an answer that suffers is an HTTP 500.
#[derive(Debug, Clone)]
pub enum What {
    /// This answer instead.
    Status {
        status: StatusCode,
        content_type: &'static str,
        body: String,
    },
    /// This JSON instead, in which `{id}` stands for the request id of the order.
    Json {
        status: StatusCode,
        body: String,
    },
    /// HTTP 429 with code 900800, and `Retry-After` in seconds.
    Throttle {
        retry_after: Option<u64>,
    },
    /// HTTP 503 with a page of HTML, and `Retry-After` in seconds.
    Unavailable {
        retry_after: Option<u64>,
    },
    /// HTTP 307 to another place.
    Redirect {
        location: String,
    },
    /// The connection ends without a byte of an answer.
    Drop,
    /// The connection is reset without a byte of an answer.
    Reset,
    /// Headers with the full `Content-Length`, half of the body, then the connection is cut.
    CutBody,
    /// Half of the body, as if it were the whole.
    HalfBody,
    /// Headers with the full `Content-Length`, then a byte of the body after each pause.
    Trickle {
        pause: Duration,
    },
    /// So much white space, which JSON allows, before the body.
    Padded {
        bytes: usize,
    },
    /// So many headers more, of a hundred bytes each.
    Headers {
        count: usize,
    },
    Delay(Duration),
    /// Until the test opens the gate.
    Hold(Gate),
}

/// Answers that users of ThingSpace met.
impl What {
    /// HTTP 401: the bearer (of a token request, the key) is not valid.
    pub fn invalid_credentials() -> Self {
        Self::refusal(Refusal::invalid_credentials())
    }

    /// HTTP 403 in XML, which says 404.
    pub fn wrong_authentication() -> Self {
        Self::refusal(Refusal::wrong_authentication())
    }

    /// This status, in JSON as the pages of the eSIM calls have it.
    pub fn failed(status: StatusCode) -> Self {
        Self::refusal(Refusal::http(status, "The request could not be processed"))
    }

    /// A page of HTML, as from a proxy.
    pub fn page(status: StatusCode) -> Self {
        Self::Status { status, content_type: HTML, body: PAGE.to_owned() }
    }

    /// No body.
    pub fn bare(status: StatusCode) -> Self {
        Self::Status { status, content_type: "", body: String::new() }
    }

    /// HTTP 400 with a refusal, and beside it the order's request id in a field of this name.
    pub fn refused_with_id(name: &str) -> Self {
        Self::json(StatusCode::BAD_REQUEST, format!(r#"{{{REFUSED},"{name}":"{{id}}"}}"#))
    }

    /// HTTP 400 with a refusal, and another envelope that says that the API manager lost its
    /// connection.
    pub fn two_envelopes() -> Self {
        Self::json(StatusCode::BAD_REQUEST, format!(r#"{{{REFUSED},"fault":{{"code":"101503"}}}}"#))
    }

    /// HTTP 200 with this JSON as the request id: a number, a boolean, a word, or the id of another
    /// order.
    pub fn request_id(json: &str) -> Self {
        Self::json(StatusCode::OK, format!(r#"{{"requestId":{json}}}"#))
    }

    fn json(status: StatusCode, body: String) -> Self {
        Self::Json { status, body }
    }

    fn refusal(refusal: Refusal) -> Self {
        let Written { status, content_type, body } = refusal.written(false);
        Self::Status { status, content_type, body }
    }
}

impl Fault {
    pub fn once(endpoint: Endpoint, when: When, what: What) -> Self {
        Self { endpoint, when, what, times: Some(1), request: None }
    }

    pub fn always(endpoint: Endpoint, when: When, what: What) -> Self {
        Self { endpoint, when, what, times: None, request: None }
    }

    /// Only status calls about this request meet it.
    pub fn about(self, request: &RequestId) -> Self {
        Self { request: Some(request.clone()), ..self }
    }
}

/// Holds calls back until it is opened. It stays open.
#[derive(Debug, Clone, Default)]
pub struct Gate(CancellationToken);

impl Gate {
    pub fn open(&self) {
        self.0.cancel();
    }

    pub async fn opened(&self) {
        self.0.cancelled().await;
    }
}

/// The faults injected and not used up, oldest first.
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
        let meets = |fault: &Fault| {
            fault.endpoint == endpoint
                && fault.request.as_ref().is_none_or(|only| Some(only) == request)
        };
        let index = self.0.iter().position(meets)?;
        let fault = &mut self.0[index];
        let met = (fault.when, fault.what.clone());
        if let Some(times) = &mut fault.times {
            *times -= 1;
            if *times == 0 {
                self.0.remove(index);
            }
        }
        Some(met)
    }
}

/// A call with its fault, if it met one.
pub(super) async fn suffer(
    fault: Option<(When, What)>,
    cut: &Cut,
    effect: impl FnOnce() -> Response,
) -> Response {
    match fault {
        None => effect(),
        Some((When::AfterEffect, what)) => what.spoil(effect(), cut).await,
        Some((When::BeforeEffect, what @ (What::Delay(_) | What::Hold(_)))) => {
            what.spoil(Response::default(), cut).await;
            effect()
        }
        Some((When::BeforeEffect, what)) => {
            what.spoil(
                Refusal::http(StatusCode::INTERNAL_SERVER_ERROR, "nothing was done").respond(false),
                cut,
            )
            .await
        }
    }
}
