//! What can go wrong on a call, before it has its effect or after.
//!
//! A lost request and a lost answer are different faults: after the second, the order exists. A call meets at most one
//! fault, the oldest injected for its endpoint. What a fault lets wait is done when the wait is over, also when
//! the caller has gone by then.

use std::{io, time::Duration};

use axum::{
    body::{Body, to_bytes},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::{connection::Cut, refusal::Refusal};

/// The calls the simulator knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The call has no effect (once it waited, with [`What::Delay`] and [`What::Hold`], it has).
    BeforeEffect,
    /// The call has its effect, the answer suffers.
    AfterEffect,
}

#[derive(Debug, Clone)]
pub enum What {
    /// This answer instead.
    Status {
        status: StatusCode,
        content_type: &'static str,
        body: String,
    },
    /// HTTP 429 with code 900800, and `Retry-After` in seconds.
    Throttle {
        retry_after: Option<u64>,
    },
    /// HTTP 307 to another place.
    Redirect {
        location: String,
    },
    /// The connection is cut without a byte of an answer.
    Drop,
    /// Headers with the full `Content-Length`, half of the body, then the connection is cut.
    CutBody,
    Delay(Duration),
    /// Until the test opens the gate.
    Hold(Gate),
}

impl Fault {
    pub fn once(endpoint: Endpoint, when: When, what: What) -> Self {
        Self { endpoint, when, what, times: Some(1) }
    }

    pub fn always(endpoint: Endpoint, when: When, what: What) -> Self {
        Self { endpoint, when, what, times: None }
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

    pub(super) fn take(&mut self, endpoint: Endpoint) -> Option<(When, What)> {
        let index = self.0.iter().position(|fault| fault.endpoint == endpoint)?;
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

impl What {
    async fn spoil(self, answer: Response, cut: &Cut) -> Response {
        match self {
            Self::Status { status, content_type, body } => {
                (status, [(header::CONTENT_TYPE, content_type)], body).into_response()
            }
            Self::Throttle { retry_after } => {
                let mut answer = Refusal::throttled().respond(false);
                if let Some(seconds) = retry_after {
                    answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
                }
                answer
            }
            Self::Redirect { location } => {
                (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response()
            }
            Self::Drop => {
                cut.make();
                answer
            }
            Self::CutBody => half(answer).await,
            Self::Delay(time) => {
                tokio::time::sleep(time).await;
                answer
            }
            Self::Hold(gate) => {
                gate.opened().await;
                answer
            }
        }
    }
}

/// The answer, but its body breaks in the middle.
async fn half(answer: Response) -> Response {
    let (mut parts, body) = answer.into_parts();
    let whole = to_bytes(body, usize::MAX).await.expect("the simulator's answers are in memory");
    parts.headers.insert(header::CONTENT_LENGTH, whole.len().into());
    let begin = whole.slice(..whole.len() / 2);
    let broken = stream::once(async {
        // One turn for the server to send what it has; it would throw that away with the error.
        tokio::task::yield_now().await;
        Err::<Bytes, _>(io::Error::from(io::ErrorKind::BrokenPipe))
    });
    Response::from_parts(parts, Body::from_stream(stream::iter([Ok(begin)]).chain(broken)))
}
