//! An open watch: the body of its response.
//!
//! - A message is made when the server asks for it. Between two messages a watch keeps none.
//! - The body is our own, not tonic's: tonic copies each message into a buffer of the stream, and
//!   keeps the buffer. [`EsimServer`] puts it into the response.
//! - A watch ends at the earliest of the caller's deadline, its age, and the time at which the
//!   caller's token expires. When its connection closes or the gateway drains, it ends at a random
//!   moment of a window, so that not all callers come back at once. Its status has the token that
//!   resumes it. Only the deadline ends it within a revision that is sent in parts.

use std::{
    convert::Infallible,
    future::pending,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use opentelemetry::Value;
use tokio::time::Instant;
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tonic::{Status, body::Body, server::NamedService};
use tonic_types::StatusExt;
use tower::Service;
use tracing::Span;

use super::{
    fragment::Partial,
    service::{DEADLINE, Esim},
    status,
    watch_messages::{WatchMessage, WatchMessages},
};
use crate::{
    config::GrpcConfig,
    lock::lock,
    proto::esim::esim_service_server::EsimServiceServer,
    requests::{
        Error,
        watch::{Watch, WatchEvent, Watched},
    },
    server::spread_age,
    store::StoreError,
    telemetry::{
        causes,
        metrics::{Held, attribute, metrics},
        names,
    },
};

/// When the gateway drains, at most this many watches end in a second, unless there are too many
/// for [`DRAIN_SHARE`].
const ENDS_PER_SECOND: u32 = 10_000;

/// When the gateway drains, all watches end within one part in this many of `grpc.drain`.
const DRAIN_SHARE: u32 = 4;

/// When a connection closes, its watches end within one part in this many of
/// `grpc.connection_grace`.
const GRACE_SHARE: u32 = 2;

/// What all watches share.
#[derive(Debug)]
pub(super) struct WatchContext {
    messages: WatchMessages,
    stream_age: Duration,
    connection_grace: Duration,
    drain_time: Duration,
    /// Cancelled when the drain begins.
    drain: CancellationToken,
    /// Tracks calls in progress.
    calls: TaskTracker,
}

impl WatchContext {
    pub(super) fn new(config: &GrpcConfig, drain: CancellationToken, calls: TaskTracker) -> Self {
        Self {
            messages: WatchMessages::default(),
            stream_age: config.stream_age,
            connection_grace: config.connection_grace,
            drain_time: config.drain,
            drain,
            calls,
        }
    }

    /// Returns the time within which the watches of a closing connection end.
    fn window(&self) -> Duration {
        if !self.drain.is_cancelled() {
            return self.connection_grace / GRACE_SHARE;
        }
        let calls = u32::try_from(self.calls.len()).unwrap_or(u32::MAX);
        (Duration::from_secs(1) / ENDS_PER_SECOND * calls).min(self.drain_time / DRAIN_SHARE)
    }
}

/// Why a watch ends before its request is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WatchEnd {
    Deadline,
    Age,
    TokenExpired,
    Drain,
}

/// An open watch.
pub(super) struct WatchStream {
    watch: Watch,
    partial: Partial,
    context: Arc<WatchContext>,
    deadline: Option<Instant>,
    /// The earliest end.
    end: (Instant, WatchEnd),
    /// Its cancellation makes the end earlier: that of the connection, then that of the drain.
    /// `None`: both were cancelled.
    closing: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    ended: bool,
    /// Counts the watch as open.
    _open: Held<0>,
    /// The drain waits until this is dropped.
    _call: TaskTrackerToken,
}

impl WatchStream {
    /// - `deadline`: when the caller wants an answer at the latest.
    /// - `expires`: when the caller's token expires.
    /// - `closing`: cancelled when the connection closes.
    pub(super) fn new(
        watch: Watch,
        context: &Arc<WatchContext>,
        deadline: Option<Instant>,
        expires: Option<Instant>,
        closing: CancellationToken,
        call: TaskTrackerToken,
    ) -> Self {
        let age = spread_age(context.stream_age);
        let ends = [
            Some((Instant::now() + age, WatchEnd::Age)),
            deadline.map(|at| (at, WatchEnd::Deadline)),
            expires.map(|at| (at, WatchEnd::TokenExpired)),
        ];
        let end = ends.into_iter().flatten().min_by_key(|(at, _)| *at);
        let start = if watch.token().is_some() { "resume" } else { "snapshot" };
        metrics().watches_begun.add(&[attribute(names::START, start)]);
        Self {
            watch,
            partial: Partial::Nothing,
            context: Arc::clone(context),
            deadline,
            end: end.expect("each watch has an age"),
            closing: Some(Box::pin(closing.cancelled_owned())),
            ended: false,
            _open: metrics().watches_open.hold([]),
            _call: call,
        }
    }

    /// Returns the response. [`EsimServer`] gives it this watch as its body.
    pub(super) fn into_response<T>(self) -> tonic::Response<stream::Empty<T>> {
        // The block borrows the watch. A method that takes it would keep its space twice.
        let frames = stream::unfold(self, |mut watch| async move {
            let frame = watch.step().await?;
            Some((Ok::<_, Infallible>(frame), watch))
        });
        let body = Body::new(StreamBody::new(frames));
        let mut response = tonic::Response::new(stream::empty());
        response.extensions_mut().insert(WatchBody(Arc::new(Mutex::new(body))));
        response
    }

    async fn step(&mut self) -> Option<Frame<Bytes>> {
        if self.ended {
            return None;
        }
        Some(match self.next().await {
            Ok(Some(message)) => Frame::data(message),
            Ok(None) => self.finish(&Status::ok("")),
            Err(status) => self.finish(&status),
        })
    }

    fn finish(&mut self, status: &Status) -> Frame<Bytes> {
        self.ended = true;
        let reason = status.get_details_error_info().map(|info| info.reason);
        count_end(reason.map_or(FINAL.into(), Value::from));
        Frame::trailers(status::trailers(status))
    }

    /// Returns the next message, or `None` after the final state.
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        let event = loop {
            // A token exists only after a complete revision.
            let is_between = self.partial == Partial::Nothing;
            let end = if is_between { Some(self.end.0) } else { self.deadline };
            // Checked first, because a timer for a past instant fires too late. By then the
            // middleware has ended the stream without its token.
            if end.is_some_and(|end| Instant::now() >= end) {
                return Err(self.ended(is_between));
            }
            let watched = tokio::select! {
                watched = self.watch.next(end) => watched,
                () = cancelled(self.closing.as_mut()), if is_between => {
                    self.close();
                    continue;
                }
            };
            match watched.map_err(|error| self.failed(&error))? {
                Watched::Event(event) => break event,
                Watched::Final => return Ok(None),
                Watched::TimedOut => {}
            }
        };
        let Some(message) = self.context.messages.next(&self.watch, &event, self.partial) else {
            // The rest of a partly sent revision is no longer available. The caller resumes before
            // that revision.
            let reason = "the history of the request is no longer complete".to_owned();
            return Err(self.failed(&Error::Store(StoreError::Unavailable(reason))));
        };
        if !matches!(event, WatchEvent::Heartbeat { .. }) {
            causes::link(&Span::current(), self.watch.id());
        }
        let WatchMessage { bytes, completes, partial } = message;
        self.partial = partial;
        match (completes, event) {
            (Some(end), _) => self.watch.complete(end),
            // The watch returns the same transitions again by itself, but has to keep a snapshot.
            (None, WatchEvent::Snapshot(snapshot)) => self.watch.pause(snapshot),
            (None, _) => {}
        }
        Ok(Some(bytes))
    }

    /// Makes the end earlier, because the connection closes or the gateway drains.
    fn close(&mut self) {
        let is_draining = self.context.drain.is_cancelled();
        let why = if is_draining { WatchEnd::Drain } else { WatchEnd::Age };
        let at = Instant::now() + self.context.window().mul_f64(fastrand::f64());
        if at < self.end.0 {
            self.end = (at, why);
        }
        let drain = || Box::pin(self.context.drain.clone().cancelled_owned());
        self.closing = (!is_draining).then(drain);
    }

    /// Returns the status of a watch whose time is up. Within a revision only the deadline ends it.
    fn ended(&self, is_between: bool) -> Status {
        match self.end.1 {
            WatchEnd::Age if is_between => status::stream_age(self.watch.token()),
            WatchEnd::TokenExpired if is_between => status::expired(self.watch.token()),
            WatchEnd::Drain if is_between => self.failed(&Error::Draining),
            _ => self.failed(&DEADLINE),
        }
    }

    fn failed(&self, error: &Error) -> Status {
        status::of_watch(error, self.watch.token())
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        if !self.ended {
            count_end(LEFT.into());
        }
    }
}

/// Counts a watch that ended: for the reason in its status, or for one of these.
fn count_end(reason: Value) {
    metrics().watches_ended.add(&[attribute(names::REASON, reason)]);
}

/// The state of the request is final.
const FINAL: &str = "FINAL";

/// The caller left, was too slow, or its deadline passed before a message could be sent.
const LEFT: &str = "LEFT";

/// Waits for a cancellation, or forever.
async fn cancelled(cancelled: Option<&mut Pin<Box<WaitForCancellationFutureOwned>>>) {
    match cancelled {
        Some(cancelled) => cancelled.as_mut().await,
        None => pending().await,
    }
}

/// The body of a watch's response, on its way from the method to [`EsimServer`]. It is taken out
/// once; extensions have to be `Clone` and `Sync`.
#[derive(Clone)]
struct WatchBody(Arc<Mutex<Body>>);

/// The service of the API, whose watches have bodies of their own.
#[derive(Debug, Clone)]
pub(crate) struct EsimServer(EsimServiceServer<Esim>);

impl EsimServer {
    pub(crate) fn new(service: EsimServiceServer<Esim>) -> Self {
        Self(service)
    }
}

impl NamedService for EsimServer {
    const NAME: &'static str = EsimServiceServer::<Esim>::NAME;
}

impl Service<Request<Body>> for EsimServer {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let response = self.0.call(request);
        Box::pin(async move {
            let mut response = response.await?;
            if let Some(WatchBody(body)) = response.extensions_mut().remove() {
                *response.body_mut() = std::mem::take(&mut *lock(&body));
            }
            Ok(response)
        })
    }
}
