//! The middleware around all gRPC services: enforces deadlines and adds a reason to every error.
//!
//! A call without an answer, or a stream that is still open, ends at the deadline with
//! DEADLINE_EXCEEDED, never CANCELLED. Errors of the gRPC library and of the health and reflection
//! services get the `ErrorInfo` that the API promises. Errors of our own service stay unchanged.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;
use tower::Service;

use super::{deadline::Deadline, status};
use crate::requests::{Effect, Error};

/// The only method that changes something at ThingSpace.
const DOWNLOAD_PROFILE: &str = "/thingspace.esim.v1.EsimService/DownloadProfile";

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
        let deadline = Deadline::from_headers(request.headers());
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(deadline);
        }
        let effect =
            if request.uri().path() == DOWNLOAD_PROFILE { Effect::Unknown } else { Effect::None };
        let response = self.inner.call(request);
        Box::pin(async move {
            let Some(Deadline { cut, .. }) = deadline else {
                return Ok(with_deadline(response.await?, None));
            };
            match ready_before(cut, response).await {
                Some(response) => Ok(with_deadline(response?, Some(cut))),
                None => Ok(status::of(&Error::Deadline(effect))
                    .into_http()
                    .map(|()| MiddlewareBody { inner: None, end: None })),
            }
        })
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

fn with_deadline<B>(
    mut response: Response<B>,
    end: Option<Instant>,
) -> Response<MiddlewareBody<B>> {
    // An error before the first message has its status in the headers.
    add_reason(response.headers_mut());
    response.map(|inner| MiddlewareBody {
        inner: Some(inner),
        end: end.map(|end| Box::pin(sleep_until(end))),
    })
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

/// A response body that ends with an error at the deadline of its call.
#[derive(Debug)]
pub(crate) struct MiddlewareBody<B> {
    /// `None` once the body has ended.
    inner: Option<B>,
    end: Option<Pin<Box<Sleep>>>,
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
        ready!(end.as_mut().poll(context));
        *inner = None;
        let mut trailers = HeaderMap::new();
        write(&status::of(&Error::Deadline(Effect::None)), &mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
