//! Around every RPC of every service: its deadline, and a reason in every error.
//!
//! A call that is not answered by its deadline is answered for it, and a stream that goes on beyond
//! it is ended, both DEADLINE_EXCEEDED, never CANCELLED. An error that the gRPC library or its
//! health and reflection services made, because a call never got as far as ours, gets the
//! `ErrorInfo` that the contract promises. What our own service says is left as it is.

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
use tower::{Layer, Service};

use super::{deadline::Deadline, status};
use crate::requests::{Effect, Error};

/// The method that has an effect.
const DOWNLOAD_PROFILE: &str = "/thingspace.esim.v1.EsimService/DownloadProfile";

/// Put around a gRPC server's services.
#[derive(Debug, Clone, Copy, Default)]
pub struct EdgeLayer;

impl<S> Layer<S> for EdgeLayer {
    type Service = Edge<S>;

    fn layer(&self, inner: S) -> Edge<S> {
        Edge { inner }
    }
}

/// See [`EdgeLayer`].
#[derive(Debug, Clone)]
pub struct Edge<S> {
    inner: S,
}

impl<S, In, Out> Service<Request<In>> for Edge<S>
where
    S: Service<Request<In>, Response = Response<Out>>,
    S::Future: Send + 'static,
    S::Error: Send,
    Out: Send + 'static,
{
    type Response = Response<EdgeBody<Out>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<In>) -> Self::Future {
        let deadline = Deadline::of(request.headers());
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(deadline);
        }
        let effect =
            if request.uri().path() == DOWNLOAD_PROFILE { Effect::Unknown } else { Effect::None };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let Some(Deadline { cut, .. }) = deadline else {
                return Ok(complete(answer.await?, None));
            };
            match by(cut, answer).await {
                Some(answer) => Ok(complete(answer?, Some(cut))),
                None => Ok(late(effect).into_http().map(|()| EdgeBody { inner: None, end: None })),
            }
        })
    }
}

/// What comes of a future that is ready by some time. The clock decides, after the future was
/// asked: the timer, which is there to ask again, may be late.
async fn by<F: Future>(time: Instant, future: F) -> Option<F::Output> {
    let (mut future, mut timer) = (pin!(future), pin!(sleep_until(time)));
    poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        let rung = timer.as_mut().poll(context).is_ready();
        if rung || Instant::now() >= time { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

fn complete<B>(mut response: Response<B>, end: Option<Instant>) -> Response<EdgeBody<B>> {
    // An error without messages has its status here already.
    explain(response.headers_mut());
    response.map(|inner| EdgeBody {
        inner: Some(inner),
        end: end.map(|end| Box::pin(sleep_until(end))),
    })
}

fn late(effect: Effect) -> Status {
    status::of(&Error::Deadline(effect))
}

/// Gives an error the details it lacks.
fn explain(headers: &mut HeaderMap) {
    let bare = Status::from_header_map(headers)
        .filter(|status| status.code() != tonic::Code::Ok && status.details().is_empty());
    if let Some(bare) = bare {
        write(&status::of_library(&bare), headers);
    }
}

fn write(status: &Status, headers: &mut HeaderMap) {
    status.add_header(headers).expect("a status of our own fits into headers");
}

/// A response body whose call ends at its deadline, with a reason.
#[derive(Debug)]
pub struct EdgeBody<B> {
    /// `None`: ended.
    inner: Option<B>,
    end: Option<Pin<Box<Sleep>>>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for EdgeBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Self { inner, end } = &mut *self;
        let Some(body) = inner else { return Poll::Ready(None) };
        if let Poll::Ready(mut frame) = Pin::new(body).poll_frame(context) {
            if let Some(trailers) =
                frame.as_mut().and_then(|frame| frame.as_mut().ok()?.trailers_mut())
            {
                explain(trailers);
            }
            return Poll::Ready(frame);
        }
        let Some(end) = end else { return Poll::Pending };
        ready!(end.as_mut().poll(context));
        *inner = None;
        let mut trailers = HeaderMap::new();
        write(&late(Effect::None), &mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
