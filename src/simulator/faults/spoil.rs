//! What a fault does to an answer.

use std::{convert::Infallible, io, time::Duration};

use axum::{
    body::{Body, to_bytes},
    http::{HeaderValue, StatusCode, header, response::Parts},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::Value;
use tokio::time;

use super::What;
use crate::simulator::{
    connection::Cut,
    refusal::{JSON, Refusal, Written},
};

/// The value of a header that is one too many.
const FILLER: &str =
    "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567";

impl What {
    pub(super) async fn spoil(self, answer: Response, cut: &Cut) -> Response {
        match self {
            Self::Status { status, content_type, body } => {
                Written { status, content_type, body }.into_response()
            }
            Self::Json { status, body } => {
                let id = request_id(answer).await;
                Written { status, content_type: JSON, body: body.replace("{id}", &id) }
                    .into_response()
            }
            Self::Throttle { retry_after } => {
                come_back(retry_after, Refusal::throttled().respond(false))
            }
            Self::Unavailable { retry_after } => {
                let page = Self::page(StatusCode::SERVICE_UNAVAILABLE);
                come_back(retry_after, Box::pin(page.spoil(answer, cut)).await)
            }
            Self::Redirect { location } => {
                (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response()
            }
            Self::Drop => {
                cut.make();
                answer
            }
            Self::Reset => {
                cut.reset();
                answer
            }
            Self::CutBody => cut_body(answer).await,
            Self::HalfBody => half_body(answer).await,
            Self::Trickle { pause } => trickle(answer, pause).await,
            Self::Padded { bytes } => pad(answer, bytes).await,
            Self::Headers { count } => more_headers(answer, count),
            Self::Delay(time) => {
                time::sleep(time).await;
                answer
            }
            Self::Hold(gate) => {
                gate.opened().await;
                answer
            }
        }
    }
}

/// The request id in an answer, or nothing.
async fn request_id(answer: Response) -> String {
    let (_, body) = apart(answer).await;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    body["requestId"].as_str().unwrap_or_default().to_owned()
}

fn come_back(after: Option<u64>, mut answer: Response) -> Response {
    if let Some(seconds) = after {
        answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    answer
}

/// The answer's head, with the length of its body, and that body.
async fn apart(answer: Response) -> (Parts, Bytes) {
    let (mut parts, body) = answer.into_parts();
    let whole = to_bytes(body, usize::MAX).await.expect("the simulator's answers are in memory");
    parts.headers.insert(header::CONTENT_LENGTH, whole.len().into());
    (parts, whole)
}

async fn cut_body(answer: Response) -> Response {
    let (parts, whole) = apart(answer).await;
    let begin = whole.slice(..whole.len() / 2);
    let broken = stream::once(async {
        // One turn for the server to send what it has; it would throw that away with the error.
        tokio::task::yield_now().await;
        Err::<Bytes, _>(io::Error::from(io::ErrorKind::BrokenPipe))
    });
    Response::from_parts(parts, Body::from_stream(stream::iter([Ok(begin)]).chain(broken)))
}

async fn half_body(answer: Response) -> Response {
    let (mut parts, whole) = apart(answer).await;
    let half = whole.len() / 2;
    parts.headers.insert(header::CONTENT_LENGTH, half.into());
    Response::from_parts(parts, whole.slice(..half).into())
}

async fn trickle(answer: Response, pause: Duration) -> Response {
    let (parts, whole) = apart(answer).await;
    let bytes = stream::iter(0..whole.len()).then(move |at| {
        let byte = whole.slice(at..=at);
        async move {
            time::sleep(pause).await;
            Ok::<_, Infallible>(byte)
        }
    });
    Response::from_parts(parts, Body::from_stream(bytes))
}

async fn pad(answer: Response, bytes: usize) -> Response {
    let (mut parts, whole) = apart(answer).await;
    parts.headers.insert(header::CONTENT_LENGTH, (bytes + whole.len()).into());
    let mut body = vec![b' '; bytes];
    body.extend_from_slice(&whole);
    Response::from_parts(parts, body.into())
}

fn more_headers(mut answer: Response, count: usize) -> Response {
    for _ in 0..count {
        answer.headers_mut().append("x-filler", HeaderValue::from_static(FILLER));
    }
    answer
}
