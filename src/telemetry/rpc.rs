//! A server span, a log line and the metrics of each call, from its request to the end of its last
//! message.
//!
//! Whether a call has a span is decided when it begins ([`Sampler`]).
//!
//! A call ends as CANCELLED when its caller hangs up or resets it, even before the request has
//! arrived completely. Spans contain nothing from the messages. Log lines contain only the caller,
//! the account and the id of the request.

mod subject;

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Instant,
};

use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use opentelemetry::{
    Context as TraceContext,
    propagation::{Extractor, TextMapPropagator},
    trace::{TraceContextExt, TraceId},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::Code;
use tonic_types::{ErrorInfo, StatusExt};
use tower::Service;
use tracing::{Instrument, Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{
    Sampler,
    metrics::{attribute, caller_attribute, metrics},
    names, recent_errors, sampler,
};
use crate::log_throttle::LogThrottle;
pub(crate) use subject::CallSubject;

const ORDER: &str = "thingspace.esim.v1.EsimService/DownloadProfile";

/// The methods that metrics, spans and log lines name. A path of a caller's choice is not named,
/// because it may be long, or an identity.
const METHODS: [&str; 8] = [
    ORDER,
    "thingspace.esim.v1.EsimService/GetRequestStatus",
    "thingspace.esim.v1.EsimService/WatchRequest",
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/Watch",
    "grpc.health.v1.Health/List",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// The codes that mean a failure of the server, not of the caller.
const FAILURES: [Code; 6] = [
    Code::Unknown,
    Code::DeadlineExceeded,
    Code::Unimplemented,
    Code::Internal,
    Code::Unavailable,
    Code::DataLoss,
];

/// The reasons of failures that callers can cause as often as they call, or that are part of the
/// normal end of a watch. Their lines are limited.
const EXPECTED: [&str; 5] =
    ["UNKNOWN_METHOD", "MALFORMED_CALL", "DEADLINE", "DRAINING", "STREAM_AGE"];
const EXPECTED_LINES: u32 = 100;

static EXPECTED_FAILURES: LogThrottle = LogThrottle::with_lines(EXPECTED_LINES);

/// Adds spans and log lines to a gRPC server.
#[derive(Debug, Clone)]
pub(crate) struct Rpc<S> {
    inner: S,
    sampler: Sampler,
}

impl<S> Rpc<S> {
    pub(crate) fn new(inner: S, sampler: Sampler) -> Self {
        Self { inner, sampler }
    }
}

impl<S, In, Out> Service<Request<In>> for Rpc<S>
where
    S: Service<Request<ObservedBody<In, ResetFlag>>, Response = Response<Out>>,
    S::Future: Send + 'static,
    Out: Body,
{
    type Response = Response<ObservedBody<Out, RpcCall>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<In>) -> Self::Future {
        let mut call = RpcCall::begin(&request, &self.sampler);
        request.extensions_mut().insert(call.subject.clone());
        let observer = call.reset.clone();
        let request = request.map(|inner| ObservedBody { inner, observer });
        let response =
            call.span.in_scope(|| self.inner.call(request)).instrument(call.span.clone());
        Box::pin(async move {
            let response = match response.await {
                Ok(response) => response,
                Err(error) => {
                    call.end(Code::Unknown, None);
                    return Err(error);
                }
            };
            // An error without messages has its status in the headers, and its body is not read.
            if let Some(code) = code(response.headers()) {
                call.end(code, Some(response.headers()));
            } else if response.body().is_end_stream() {
                call.end(Code::Unknown, None);
            }
            Ok(response.map(|inner| ObservedBody { inner, observer: call }))
        })
    }
}

/// Observes the frames of a body.
pub(crate) trait FrameObserver: Unpin {
    /// Calls `poll`, in a span if there is one.
    fn in_scope<T>(&self, poll: impl FnOnce() -> T) -> T {
        poll()
    }

    /// Observes a frame, or the end of the body (`None`). `is_end_stream` is the body's value.
    fn observe<D, E>(&mut self, frame: Option<&Result<Frame<D>, E>>, is_end_stream: bool);
}

/// A body whose frames are observed.
#[derive(Debug)]
pub(crate) struct ObservedBody<B, O> {
    inner: B,
    observer: O,
}

impl<B: Body + Unpin, O: FrameObserver> Body for ObservedBody<B, O> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let Self { inner, observer } = &mut *self;
        let frame = ready!(observer.in_scope(|| Pin::new(&mut *inner).poll_frame(context)));
        observer.observe(frame.as_ref(), inner.is_end_stream());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Whether the caller reset the call before its request had arrived completely. The answer to such
/// a call says nothing about the server.
#[derive(Debug, Clone, Default)]
pub(crate) struct ResetFlag(Arc<AtomicBool>);

impl FrameObserver for ResetFlag {
    fn observe<D, E>(&mut self, frame: Option<&Result<Frame<D>, E>>, is_end_stream: bool) {
        // If a stream was reset, hyper ends its body without an error, but `is_end_stream` stays
        // false.
        if frame.map_or(!is_end_stream, Result::is_err) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// A call in progress. It ends once, at the latest when it is dropped.
#[derive(Debug)]
pub(crate) struct RpcCall {
    span: Span,
    method: &'static str,
    subject: CallSubject,
    /// The id of the caller's trace, if it sent one.
    caller_trace: TraceId,
    began: Instant,
    reset: ResetFlag,
    ended: bool,
}

impl RpcCall {
    fn begin<B>(request: &Request<B>, sampler: &Sampler) -> Self {
        let path = request.uri().path().trim_start_matches('/');
        let method = METHODS.iter().find(|known| **known == path).copied().unwrap_or(names::OTHER);
        let headers = request.headers();
        let caller = headers
            .contains_key(TRACE_PARENT)
            .then(|| TraceContextPropagator::new().extract(&TraceHeaders(headers)));
        let caller_trace =
            caller.as_ref().map_or(TraceId::INVALID, |it| it.span().span_context().trace_id());
        let span = if sampler.traces_call(method == ORDER, caller.as_ref()) {
            span(method, caller)
        } else {
            Span::none()
        };
        let (subject, reset) = Default::default();
        Self { span, method, subject, caller_trace, began: Instant::now(), reset, ended: false }
    }

    fn end(&mut self, code: Code, headers: Option<&HeaderMap>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let code = if self.reset.0.load(Ordering::Relaxed) { Code::Cancelled } else { code };
        let (is_failure, is_ok, code) = (FAILURES.contains(&code), code == Code::Ok, name(code));
        let info = if is_ok { None } else { headers.and_then(error_info) };
        if let Some(info) = &info {
            recent_errors::count(&info.reason);
        }
        self.measure(code, is_failure, info.as_ref());
        self.span.record(names::RPC_RESPONSE_STATUS_CODE, code);
        if is_failure {
            self.span.record(names::ERROR_TYPE, code);
            self.span.record("otel.status_code", "error");
        }
        // So that the line has the span's trace in the collector, too.
        self.span.in_scope(|| self.log(code, is_failure, info.as_ref().map(|info| &*info.reason)));
    }

    fn measure(&self, code: &'static str, is_failure: bool, info: Option<&ErrorInfo>) {
        let metrics = metrics();
        let method = attribute(names::RPC_METHOD, self.method);
        let status = attribute(names::RPC_RESPONSE_STATUS_CODE, code);
        let attributes = [
            attribute(names::RPC_SYSTEM_NAME, "grpc"),
            method.clone(),
            status.clone(),
            attribute(names::ERROR_TYPE, code),
        ];
        let attributes = if is_failure { &attributes } else { &attributes[..3] };
        metrics.rpc_server_call_duration.record(self.began.elapsed(), attributes);
        if let Some(caller) = self.subject.caller() {
            metrics.caller_calls.add(&[caller_attribute(caller), method.clone(), status]);
        }
        if let Some(info) = info {
            let reason = attribute(names::REASON, info.reason.clone());
            metrics.call_failures.add(&[method, reason]);
            if let Some(limit) = info.metadata.get("limit") {
                metrics.limits_reached.add(&[attribute(names::LIMIT, limit.clone())]);
            }
        }
    }

    fn log(&self, code: &str, is_failure: bool, reason: Option<&str>) {
        let method = self.method;
        let milliseconds = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if !is_failure {
            tracing::debug!(method, code, milliseconds, "call ended");
            return;
        }
        let times = if reason.is_some_and(|reason| EXPECTED.contains(&reason)) {
            let Some(times) = EXPECTED_FAILURES.count() else { return };
            Some(times)
        } else {
            None
        };
        let about = self.subject.about();
        let account = about.map(|(account, _)| tracing::field::display(account));
        let request = about.and_then(|(_, request)| request.as_ref()).map(tracing::field::display);
        tracing::info!(
            method,
            code,
            reason,
            caller = self.subject.caller(),
            account,
            request.id = request,
            trace_id = self.trace_id(),
            milliseconds,
            times,
            "call failed"
        );
    }

    /// Returns the id of the call's trace. Without a span, it is that of the caller, if any.
    fn trace_id(&self) -> Option<String> {
        let trace = if self.span.is_disabled() {
            self.caller_trace
        } else {
            self.span.context().span().span_context().trace_id()
        };
        (trace != TraceId::INVALID).then(|| trace.to_string())
    }
}

fn span(method: &'static str, caller: Option<TraceContext>) -> Span {
    let span = tracing::info_span!(
        sampler::CALL,
        otel.name = method,
        otel.kind = "server",
        otel.status_code = Empty,
        { names::RPC_SYSTEM_NAME } = "grpc",
        { names::RPC_METHOD } = method,
        { names::RPC_RESPONSE_STATUS_CODE } = Empty,
        { names::ERROR_TYPE } = Empty,
    );
    if let Some(caller) = caller {
        // The parent cannot change after the span is entered. This span is new.
        let _ = span.set_parent(caller);
    }
    span
}

/// The header of the W3C trace context.
const TRACE_PARENT: &str = "traceparent";

impl FrameObserver for RpcCall {
    fn in_scope<T>(&self, poll: impl FnOnce() -> T) -> T {
        self.span.in_scope(poll)
    }

    fn observe<D, E>(&mut self, frame: Option<&Result<Frame<D>, E>>, _is_end_stream: bool) {
        match frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.end(code(trailers).unwrap_or(Code::Unknown), Some(trailers));
                }
            }
            Some(Err(_)) | None => self.end(Code::Unknown, None),
        }
    }
}

impl Drop for RpcCall {
    fn drop(&mut self) {
        self.end(Code::Cancelled, None);
    }
}

/// Returns the name of a code, such as `DEADLINE_EXCEEDED`.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Returns the code in `grpc-status`. Unknown numbers are UNKNOWN.
fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|status| Code::from_bytes(status.as_bytes()))
}

fn error_info(headers: &HeaderMap) -> Option<ErrorInfo> {
    tonic::Status::from_header_map(headers)?.get_details_error_info()
}

/// The headers from which the caller's trace is read.
struct TraceHeaders<'a>(&'a HeaderMap);

impl Extractor for TraceHeaders<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests;
