//! Applies a fault to an answer.

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
    connection::ConnectionCut,
    error::{JSON, TextAnswer},
};

const FILLER: &str =
    "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567";

impl What {
    pub(super) async fn change(self, answer: Response, cut: &ConnectionCut) -> Response {
        match self {
            Self::Status { status, content_type, body } => {
                TextAnswer { status, content_type, text: body }.into_response()
            }
            Self::Json { status, body } => {
                let text = body.replace("{id}", &request_id(answer).await);
                TextAnswer { status, content_type: JSON, text }.into_response()
            }
            Self::Throttle { retry_after } => {
                with_retry_after(TextAnswer::throttled().into_response(), retry_after)
            }
            Self::Unavailable { retry_after } => {
                let page = Self::page(StatusCode::SERVICE_UNAVAILABLE);
                with_retry_after(Box::pin(page.change(answer, cut)).await, retry_after)
            }
            Self::Redirect { location } => {
                (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response()
            }
            Self::Drop => {
                cut.cut();
                answer
            }
            Self::Reset => {
                cut.reset();
                answer
            }
            Self::CutBody => cut_body(answer).await,
            Self::HalfBody => half_body(answer).await,
            Self::Trickle { pause } => trickle(answer, pause).await,
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

/// Returns the request id in an answer, or an empty string.
async fn request_id(answer: Response) -> String {
    let (_, body) = into_parts(answer).await;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    body["requestId"].as_str().unwrap_or_default().to_owned()
}

fn with_retry_after(mut answer: Response, retry_after: Option<u64>) -> Response {
    if let Some(seconds) = retry_after {
        answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    answer
}

/// Returns the answer's head, with a `Content-Length`, and its body.
async fn into_parts(answer: Response) -> (Parts, Bytes) {
    let (mut parts, body) = answer.into_parts();
    let whole = to_bytes(body, usize::MAX).await.expect("the simulator's answers are in memory");
    parts.headers.insert(header::CONTENT_LENGTH, whole.len().into());
    (parts, whole)
}

async fn cut_body(answer: Response) -> Response {
    let (parts, whole) = into_parts(answer).await;
    let begin = whole.slice(..whole.len() / 2);
    let broken = stream::once(async {
        // Lets the server send the first half before it sees the error.
        tokio::task::yield_now().await;
        Err::<Bytes, _>(io::Error::from(io::ErrorKind::BrokenPipe))
    });
    Response::from_parts(parts, Body::from_stream(stream::iter([Ok(begin)]).chain(broken)))
}

async fn half_body(answer: Response) -> Response {
    let (mut parts, whole) = into_parts(answer).await;
    let half = whole.len() / 2;
    parts.headers.insert(header::CONTENT_LENGTH, half.into());
    Response::from_parts(parts, whole.slice(..half).into())
}

async fn trickle(answer: Response, pause: Duration) -> Response {
    let (parts, whole) = into_parts(answer).await;
    let bytes = stream::iter(0..whole.len()).then(move |at| {
        let byte = whole.slice(at..=at);
        async move {
            time::sleep(pause).await;
            Ok::<_, Infallible>(byte)
        }
    });
    Response::from_parts(parts, Body::from_stream(bytes))
}

fn more_headers(mut answer: Response, count: usize) -> Response {
    for _ in 0..count {
        answer.headers_mut().append("x-filler", HeaderValue::from_static(FILLER));
    }
    answer
}
