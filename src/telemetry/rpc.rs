//! A server span and a log line for each call, from its request to the end of its last message.
//!
//! A call that nobody waits for any more, because its caller hung up or reset it, ends as
//! CANCELLED, also where its message had not arrived as a whole. Neither span nor line holds
//! anything of the messages but the account and the request's id.

use std::{
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Instant,
};

use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use opentelemetry::{global, propagation::Extractor};
use tonic_types::StatusExt;
use tower::{Layer, Service};
use tracing::{Instrument, Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::semconv;
use crate::identity::{AccountName, RequestId};

/// gRPC's codes by number.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
/// The longest method that is named, in bytes. What is longer is none of ours: whoever can connect
/// could fill the log with it.
const MAX_METHOD: usize = 128;
const OTHER: &str = "_OTHER";

const CANCELLED: &str = "CANCELLED";
const UNKNOWN: &str = "UNKNOWN";

/// The codes that mean a failure of the server; the others are the caller's affair.
const FAILURES: [&str; 6] =
    ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"];

/// What a call is about, for its log line. The service says so once it has read and checked the
/// message; it finds this among the request's extensions.
#[derive(Debug, Clone, Default)]
pub struct About(Arc<OnceLock<(AccountName, Option<RequestId>)>>);

impl About {
    pub fn say(&self, account: &AccountName, request: Option<&RequestId>) {
        // A call is about one thing only.
        let _ = self.0.set((account.clone(), request.cloned()));
    }
}

/// Put around a gRPC server.
#[derive(Debug, Clone, Copy, Default)]
pub struct RpcLayer;

impl<S> Layer<S> for RpcLayer {
    type Service = Rpc<S>;

    fn layer(&self, inner: S) -> Rpc<S> {
        Rpc { inner }
    }
}

/// See [`RpcLayer`].
#[derive(Debug, Clone)]
pub struct Rpc<S> {
    inner: S,
}

impl<S, In, Out> Service<Request<In>> for Rpc<S>
where
    S: Service<Request<RequestBody<In>>, Response = Response<Out>>,
    S::Future: Send + 'static,
    Out: Body,
{
    type Response = Response<CallBody<Out>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<In>) -> Self::Future {
        let mut call = Call::begin(&request);
        request.extensions_mut().insert(call.about.clone());
        let reset = Arc::clone(&call.reset);
        let request = request.map(|inner| RequestBody { inner, reset });
        let response =
            call.span.in_scope(|| self.inner.call(request)).instrument(call.span.clone());
        Box::pin(async move {
            let response = match response.await {
                Ok(response) => response,
                Err(error) => {
                    call.end(UNKNOWN, None);
                    return Err(error);
                }
            };
            // An error without messages has its status here already, and no body that will be read.
            if let Some(code) = code(response.headers()) {
                call.end(code, Some(response.headers()));
            } else if response.body().is_end_stream() {
                call.end(UNKNOWN, None);
            }
            Ok(response.map(|inner| CallBody { inner, call }))
        })
    }
}

/// A request body that notices when its caller resets the call before its end.
#[derive(Debug)]
pub struct RequestBody<B> {
    inner: B,
    reset: Arc<AtomicBool>,
}

impl<B: Body + Unpin> Body for RequestBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        let is_reset = match &frame {
            // hyper gives no error for a stream that was cancelled, but does not call it ended.
            None => !self.inner.is_end_stream(),
            Some(frame) => frame.is_err(),
        };
        if is_reset {
            self.reset.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A response body that ends its call.
#[derive(Debug)]
pub struct CallBody<B> {
    inner: B,
    call: Call,
}

impl<B: Body + Unpin> Body for CallBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let Self { inner, call } = &mut *self;
        let frame = ready!(call.span.in_scope(|| Pin::new(inner).poll_frame(context)));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    call.end(code(trailers).unwrap_or(UNKNOWN), Some(trailers));
                }
            }
            Some(Err(_)) | None => call.end(UNKNOWN, None),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A call under way; ends once, at the latest when it is dropped.
#[derive(Debug)]
struct Call {
    span: Span,
    method: String,
    about: About,
    began: Instant,
    /// Whether the caller reset the call before its request had arrived as a whole. What the call
    /// is answered then says nothing of the server, and nobody reads it.
    reset: Arc<AtomicBool>,
    ended: bool,
}

impl Call {
    fn begin<B>(request: &Request<B>) -> Self {
        let method = request.uri().path().trim_start_matches('/');
        let method = if method.len() > MAX_METHOD { OTHER } else { method }.to_owned();
        let span = tracing::info_span!(
            "rpc",
            otel.name = method,
            otel.kind = "server",
            otel.status_code = Empty,
            { semconv::RPC_SYSTEM_NAME } = "grpc",
            { semconv::RPC_METHOD } = method,
            { semconv::RPC_RESPONSE_STATUS_CODE } = Empty,
            { semconv::ERROR_TYPE } = Empty,
        );
        let parent = global::get_text_map_propagator(|propagator| {
            propagator.extract(&Headers(request.headers()))
        });
        // Before the span is entered for the first time: afterwards its parent is fixed. Without an
        // exporter there is nobody to tell.
        let _ = span.set_parent(parent);
        let (about, reset) = Default::default();
        Self { span, method, about, began: Instant::now(), reset, ended: false }
    }

    fn end(&mut self, code: &'static str, headers: Option<&HeaderMap>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let code = if self.reset.load(Ordering::Relaxed) { CANCELLED } else { code };
        let method = &self.method;
        let milliseconds = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.span.record(semconv::RPC_RESPONSE_STATUS_CODE, code);
        // Outside of the span, which would say all of it again.
        if FAILURES.contains(&code) {
            self.span.record(semconv::ERROR_TYPE, code);
            self.span.record("otel.status_code", "error");
            let reason = headers.and_then(reason);
            let about = self.about.0.get();
            let account = about.map(|(account, _)| tracing::field::display(account));
            let request =
                about.and_then(|(_, request)| request.as_ref()).map(tracing::field::display);
            tracing::info!(
                parent: None,
                method,
                code,
                reason,
                account,
                request.id = request,
                milliseconds,
                "call failed"
            );
        } else {
            tracing::debug!(parent: None, method, code, milliseconds, "call ended");
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(CANCELLED, None);
    }
}

/// What `grpc-status` says; a number of no code is UNKNOWN.
fn code(headers: &HeaderMap) -> Option<&'static str> {
    let status = headers.get("grpc-status")?;
    let number = status.to_str().ok().and_then(|text| text.parse::<usize>().ok());
    Some(number.and_then(|number| CODES.get(number).copied()).unwrap_or(UNKNOWN))
}

/// The reason in a status's details.
fn reason(headers: &HeaderMap) -> Option<String> {
    Some(tonic::Status::from_header_map(headers)?.get_details_error_info()?.reason)
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests;
