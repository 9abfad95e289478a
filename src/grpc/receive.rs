//! The layer that receives the one message of a call before the service sees it.
//!
//! - A message must arrive within `grpc.receive_timeout`, or before the caller's deadline.
//! - Its bytes come from `grpc.max_request_bytes`, as they arrive, until they are decoded. A length
//!   prefix alone takes nothing.
//! - A request without a message, with two, or with an incomplete one is refused, and one that is
//!   too large before it is read.
//! - An order with too many devices is refused before it is decoded, because 2 bytes of an empty
//!   device become 100 in memory. The decoded devices of orders under way are limited, too.
//!
//! Calls of the reflection service stream in both directions and pass, with a limit for the bytes.
//! Calls of unknown methods pass unread. Messages are not decoded here.

mod devices;
mod message;

use std::{
    error::Error as StdError,
    future::poll_fn,
    mem,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Limited;
use tokio::time::{Instant, timeout_at};
use tonic::Status;
use tower::Service;

use super::{
    MAX_MESSAGE,
    class::CallClass,
    deadline::Deadline,
    limits::{Allowance, Permit, Pool},
    status,
};
use crate::requests::{Effect, Error};
use message::Message;

/// The largest message of a call that is no order, in bytes. Names and tokens take less than 2 KiB.
const MAX_SMALL_MESSAGE: usize = 64 << 10;

/// The most bytes of the requests in one call of the reflection service.
const MAX_REFLECTION: usize = 64 << 10;

/// What a decoded device takes besides the bytes of the message: four strings here, and again in
/// the order.
const DEVICE_BYTES: usize = 256;

/// The layer around the services.
#[derive(Debug, Clone)]
pub(crate) struct Receive<S> {
    inner: S,
    timeout: Duration,
}

impl<S> Receive<S> {
    pub(crate) fn new(inner: S, timeout: Duration) -> Self {
        Self { inner, timeout }
    }
}

impl<S, In, Out> Service<Request<In>> for Receive<S>
where
    S: Service<Request<MessageBody<In>>, Response = Response<Out>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send,
    In: Body<Data = Bytes> + Send + 'static,
    Out: Default,
{
    type Response = Response<Out>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Out>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        let class = CallClass::of(request.uri().path());
        let largest = match class {
            CallClass::Order => MAX_MESSAGE,
            CallClass::Status | CallClass::Watch | CallClass::Health => MAX_SMALL_MESSAGE,
            CallClass::Reflection => {
                let limited =
                    |body| MessageBody::Stream(Box::pin(Limited::new(body, MAX_REFLECTION)));
                return Box::pin(self.inner.call(request.map(limited)));
            }
            CallClass::Unknown => {
                let unread = |body| MessageBody::Unread(Box::pin(body));
                return Box::pin(self.inner.call(request.map(unread)));
            }
        };
        // The service that is ready makes the call.
        let next = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, next);
        let timeout = self.timeout;
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            let deadline = Deadline::from_headers(&head.headers);
            if let Some(deadline) = deadline {
                // Counted from the arrival of the headers.
                head.extensions.insert(deadline);
            }
            let received = async {
                let Some(allowance) = head.extensions.get().cloned() else {
                    let defect = "a call passed without the layer of limits".to_owned();
                    return Err(status::of(&Error::Internal(defect)));
                };
                let (bytes, permit) = collect(body, largest, &allowance, timeout, deadline).await?;
                // Held until the answer exists.
                let order = match class {
                    CallClass::Order => Some(order_permit(&bytes, &allowance)?),
                    _ => None,
                };
                Ok((MessageBody::Message { message: Some(bytes), _permit: permit }, order))
            };
            let (message, order) = match received.await {
                Ok(received) => received,
                Err(status) => return Ok(status.into_http()),
            };
            let response = inner.call(Request::from_parts(head, message)).await;
            drop(order);
            response
        })
    }
}

/// Receives a body with exactly one message, with its prefix.
async fn collect<B: Body<Data = Bytes>>(
    body: B,
    largest: usize,
    allowance: &Allowance,
    timeout: Duration,
    deadline: Option<Deadline>,
) -> Result<(Bytes, Permit), Status> {
    let mut message = Message::new(allowance.take(Pool::RequestBytes, 0)?, largest);
    let mut body = pin!(body);
    let read = async {
        while let Some(frame) = poll_fn(|context| body.as_mut().poll_frame(context)).await {
            // The caller has reset the call, so the message stays incomplete.
            let Ok(frame) = frame else { break };
            if let Ok(data) = frame.into_data() {
                message.push(&data)?;
            }
        }
        Ok::<_, Status>(())
    };
    let (end, expired) = (Instant::now() + timeout, Error::Deadline(Effect::NothingSent));
    match deadline {
        Some(Deadline { cut, .. }) if cut < end => {
            timeout_at(cut, read).await.map_err(|_| status::of(&expired))??;
        }
        _ => timeout_at(end, read).await.map_err(|_| status::not_received())??,
    }
    message.finish()
}

/// Takes the memory of an order that is under way.
fn order_permit(message: &[u8], allowance: &Allowance) -> Result<Permit, Status> {
    let (prefix, order) = message.split_at(message::PREFIX);
    // A compressed message is refused by the library.
    let devices = if prefix[0] == 0 { devices::count(order) } else { 0 };
    if devices > devices::MAX_DEVICES {
        return Err(status::too_many_devices(devices::MAX_DEVICES));
    }
    allowance.take(Pool::OrderBytes, message.len() + devices * DEVICE_BYTES)
}

/// The body of a request that was received.
#[derive(Debug)]
pub(crate) enum MessageBody<B> {
    /// The message with its prefix, until it is decoded.
    Message {
        message: Option<Bytes>,
        _permit: Permit,
    },
    Stream(Pin<Box<Limited<B>>>),
    Unread(Pin<Box<B>>),
}

impl<B> Body for MessageBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(match &mut *self {
            Self::Message { message, .. } => message.take().map(|bytes| Ok(Frame::data(bytes))),
            Self::Stream(body) => ready!(body.as_mut().poll_frame(context)),
            Self::Unread(body) => {
                ready!(body.as_mut().poll_frame(context)).map(|frame| frame.map_err(Into::into))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Message { message, .. } => message.is_none(),
            Self::Stream(body) => body.is_end_stream(),
            Self::Unread(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Message { message, .. } => {
                SizeHint::with_exact(message.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(body) => body.size_hint(),
            Self::Unread(body) => body.size_hint(),
        }
    }
}
