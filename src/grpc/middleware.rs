//! The middleware around all gRPC services: enforces deadlines and adds a reason to every error.
//!
//! A call without an answer, or a stream that is still open, ends at the deadline with
//! DEADLINE_EXCEEDED, never CANCELLED. Errors of the gRPC library and of the health and reflection
//! services get the `ErrorInfo` that the API promises. Errors of our own service stay unchanged.
//!
//! Streams of health and reflection end when their connection closes, or when their caller's token
//! expires. Those of our own service end by themselves, with their token.

use std::{
    fmt,
    future::{pending, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, sleep_until};
use tonic::Status;
use tower::Service;

use super::{API, authenticate::Sender, class::CallClass, deadline::Deadline, status};
use crate::{
    requests::{Effect, Error},
    server::{Connection, ResponseEnd},
};

/// A service that adds the middleware to the service `inner`.
#[derive(Debug, Clone)]
pub(crate) struct Middleware<S> {
    inner: S,
}

impl<S> Middleware<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S, In, Out> Service<Request<In>> for Middleware<S>
where
    S: Service<Request<In>, Response = Response<Out>>,
    S::Future: Send + 'static,
    S::Error: Send,
    Out: Send + 'static,
{
    type Response = Response<MiddlewareBody<Out>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<In>) -> Self::Future {
        // Where the message was received first, the deadline counts from the headers.
        let known = request.extensions().get().copied();
        let deadline = known.or_else(|| Deadline::from_headers(request.headers()));
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(deadline);
        }
        // The only method that changes something at ThingSpace.
        let is_order = CallClass::of(request.uri().path()) == CallClass::Order;
        let effect = if is_order { Effect::Unknown } else { Effect::None };
        let is_ours = request.uri().path().starts_with(API);
        let connection = request.extensions().get().filter(|_| !is_ours).cloned();
        let sender: Option<&Sender> = request.extensions().get();
        let expires = sender.and_then(|sender| sender.caller.expires());
        let response = self.inner.call(request);
        Box::pin(async move {
            let mut response = match deadline {
                None => response.await?,
                Some(Deadline { cut, .. }) => {
                    let Some(response) = ready_before(cut, response).await else {
                        let status = status::of(&Error::Deadline(effect));
                        return Ok(status.into_http().map(|()| MiddlewareBody::default()));
                    };
                    let mut response = response?;
                    let end = ResponseEnd { at: cut, trailers: deadline_trailers };
                    response.extensions_mut().insert(end);
                    response
                }
            };
            // An error before the first message has its status in the headers.
            add_reason(response.headers_mut());
            let end = connection
                .map(|connection| -> StreamEnd { Box::pin(end_of_stream(connection, expires)) });
            Ok(response.map(|inner| MiddlewareBody { inner: Some(inner), end }))
        })
    }
}

/// Returns the status of a stream when it has to end, because its connection closes or its caller's
/// token expires.
async fn end_of_stream(connection: Connection, expires: Option<Instant>) -> Status {
    let expired = async {
        match expires {
            Some(expires) => sleep_until(expires).await,
            None => pending().await,
        }
    };
    tokio::select! {
        () = expired => status::expired(None),
        () = connection.closing().cancelled() => {
            if connection.is_server_stopping() {
                status::of(&Error::Draining)
            } else {
                status::stream_age(None)
            }
        }
    }
}

/// Returns the output of a future if it is ready before `time`. Also reads the clock, because the
/// timer may be late.
async fn ready_before<F: Future>(time: Instant, future: F) -> Option<F::Output> {
    let (mut future, mut timer) = (pin!(future), pin!(sleep_until(time)));
    poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        let elapsed = timer.as_mut().poll(context).is_ready();
        if elapsed || Instant::now() >= time { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

/// Adds details to an error that has none.
fn add_reason(headers: &mut HeaderMap) {
    let bare = Status::from_header_map(headers)
        .filter(|status| status.code() != tonic::Code::Ok && status.details().is_empty());
    if let Some(bare) = bare {
        write(&status::of_library(&bare), headers);
    }
}

fn write(status: &Status, headers: &mut HeaderMap) {
    status.add_header(headers).expect("our own status fits into headers");
}

/// Returns the trailers that end a response at the deadline of its call.
fn deadline_trailers() -> HeaderMap {
    trailers(&Error::Deadline(Effect::None))
}

/// Returns the trailers that end a response with an error.
pub(crate) fn trailers(error: &Error) -> HeaderMap {
    status::trailers(&status::of(error))
}

/// Returns the trailers of a call that ends because of the age of its connection.
pub(crate) fn aged() -> HeaderMap {
    status::trailers(&status::stream_age(None))
}

/// A response body whose errors have a reason.
pub(crate) struct MiddlewareBody<B> {
    /// `None` once the body has ended.
    inner: Option<B>,
    /// Ready when the body has to end. `None`: it ends by itself.
    end: Option<StreamEnd>,
}

type StreamEnd = Pin<Box<dyn Future<Output = Status> + Send>>;

impl<B: fmt::Debug> fmt::Debug for MiddlewareBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MiddlewareBody").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// An empty body.
impl<B> Default for MiddlewareBody<B> {
    fn default() -> Self {
        Self { inner: None, end: None }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for MiddlewareBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Self { inner, end } = &mut *self;
        let Some(body) = inner else { return Poll::Ready(None) };
        if let Poll::Ready(mut frame) = Pin::new(body).poll_frame(context) {
            if let Some(Ok(frame)) = &mut frame
                && let Some(trailers) = frame.trailers_mut()
            {
                add_reason(trailers);
            }
            return Poll::Ready(frame);
        }
        let Some(end) = end else { return Poll::Pending };
        let status = ready!(end.as_mut().poll(context));
        *inner = None;
        Poll::Ready(Some(Ok(Frame::trailers(status::trailers(&status)))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
