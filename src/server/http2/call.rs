//! One call: gives its request to the service, and sends the response.
//!
//! The response is sent as the peer's window allows. It also ends, with trailers, if the peer does
//! not read for [`SLOW_READER_TIMEOUT`], or at the time that the service set ([`ResponseEnd`]). A
//! call that its peer resets is dropped at once.

use std::{
    future::{pending, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::{Body, Frame};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::warn;

use super::{CallService, Connection};
use crate::{log_throttle::LogThrottle, telemetry::metrics};

/// How long a peer may take to read a piece of a response before the response ends.
const SLOW_READER_TIMEOUT: Duration = Duration::from_secs(30);

/// The same, if its connection closes.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(2);

static SLOW_READERS: LogThrottle = LogThrottle::new();

/// The size of such a piece, in bytes. A message of a watch is not larger.
const PIECE: usize = 64 << 10;

/// When a response ends, even if its body has not ended or its peer does not read. An extension of
/// the response.
#[derive(Debug, Clone)]
pub(crate) struct ResponseEnd {
    pub(crate) at: Instant,
    /// Returns the trailers that end the response.
    pub(crate) trailers: fn() -> HeaderMap,
}

/// The body of a request, as it arrives.
#[derive(Debug)]
pub(crate) struct ReceivedBody(RecvStream);

impl Body for ReceivedBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let stream = &mut self.0;
        if let Some(data) = ready!(stream.poll_data(context)) {
            let data = data?;
            // An error says that the stream has ended, which the next poll returns.
            let _ = stream.flow_control().release_capacity(data.len());
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers = ready!(stream.poll_trailers(context))?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

/// Serves a call until its response is sent or its peer resets it.
pub(super) fn serve(
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    service: impl CallService,
    connection: Connection,
) -> Call {
    Call(Box::pin(begin(request, respond, service, connection)))
}

/// A call: first [`begin`], then the rest of its response.
///
/// Each has a box, which replaces the one before. So a response that stays open for long does not
/// keep the space that its request needed, and the task of a call is as small as it can be.
pub(super) struct Call(Pin<Box<dyn Future<Output = Option<Self>> + Send>>);

impl Future for Call {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        while let Some(rest) = ready!(self.0.as_mut().poll(context)) {
            *self = rest;
        }
        Poll::Ready(())
    }
}

/// Gives the request to the service and begins the response. Returns what sends the rest of it.
async fn begin(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    service: impl CallService,
    connection: Connection,
) -> Option<Call> {
    let mut request = request.map(ReceivedBody);
    request.extensions_mut().insert(connection.clone());
    let response = tokio::select! {
        // The service sees also a call that is reset at once, and counts it.
        biased;
        response = service.oneshot(request) => response,
        _ = poll_fn(|context| respond.poll_reset(context)) => return None,
        () = connection.0.closed.cancelled() => {
            // An error says that the connection has ended.
            let trailers = closed(&connection);
            let _ = respond.send_response(trailers_only(trailers), true);
            return None;
        }
    };
    let Ok(response) = response;
    let (mut head, body) = response.into_parts();
    let end = head.extensions.remove();
    let head = Response::from_parts(head, ());
    let is_complete = body.is_end_stream();
    // An error says that the stream or the connection has ended.
    let stream = respond.send_response(head, is_complete).ok()?;
    if is_complete {
        return None;
    }
    let mut response = ResponseStream { stream, body, end, connection };
    // The block borrows the response. A method that takes it would keep its space twice.
    Some(Call(Box::pin(async move {
        response.send().await;
        None
    })))
}

/// A response on its way.
struct ResponseStream<B> {
    stream: SendStream<Bytes>,
    body: B,
    end: Option<ResponseEnd>,
    connection: Connection,
}

/// Why no more of a body is sent.
enum Stopped {
    /// The stream or its connection has ended.
    Gone,
    /// The response ends with these trailers.
    Trailers(HeaderMap),
}

impl<B: Body<Data = Bytes> + Unpin> ResponseStream<B> {
    async fn send(&mut self) {
        let mut closed = pin!(self.connection.0.closed.clone().cancelled_owned());
        // Boxed, because few calls have an end.
        let mut end = self.end.as_ref().map(|end| Box::pin(sleep_until(end.at)));
        let stopped = loop {
            let (body, stream) = (&mut self.body, &mut self.stream);
            let frame = tokio::select! {
                biased;
                frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)) => frame,
                _ = poll_fn(|context| stream.poll_reset(context)) => return,
                () = reached(end.as_mut()) => break self.ended(),
                () = closed.as_mut() => break self.closed(),
            };
            let frame = match frame {
                Some(Ok(frame)) => frame,
                Some(Err(_)) => return self.stream.send_reset(Reason::INTERNAL_ERROR),
                None => {
                    // An error says that the stream has ended.
                    let _ = self.stream.send_data(Bytes::new(), true);
                    return;
                }
            };
            match frame.into_data() {
                Ok(mut data) => {
                    self.send_now(&mut data);
                    // Boxed, because an idle call has no use for its space.
                    if !data.is_empty()
                        && let Err(stopped) = Box::pin(self.send_later(data)).await
                    {
                        break stopped;
                    }
                }
                Err(frame) => {
                    break frame.into_trailers().map_or(Stopped::Gone, Stopped::Trailers);
                }
            }
        };
        if let Stopped::Trailers(trailers) = stopped {
            let _ = self.stream.send_trailers(trailers);
        }
    }

    /// Sends the part of the data that the peer's window allows.
    fn send_now(&mut self, data: &mut Bytes) {
        self.stream.reserve_capacity(data.len());
        let capacity = self.stream.capacity().min(data.len());
        if capacity > 0 {
            // An error says that the stream has ended. The next poll of the stream returns it.
            let _ = self.stream.send_data(data.split_to(capacity), false);
        }
    }

    /// Sends data as the peer's window grows.
    async fn send_later(&mut self, mut data: Bytes) -> Result<(), Stopped> {
        let connection = self.connection.clone();
        let mut end = self.end.as_ref().map(|end| Box::pin(sleep_until(end.at)));
        while !data.is_empty() {
            let mut piece = data.split_to(data.len().min(PIECE));
            let mut slow = pin!(slow_reader(connection.closing()));
            while !piece.is_empty() {
                self.stream.reserve_capacity(piece.len());
                let stream = &mut self.stream;
                tokio::select! {
                    biased;
                    grown = poll_fn(|context| poll_capacity(stream, context)) => {
                        if !grown {
                            return Err(Stopped::Gone);
                        }
                    }
                    () = reached(end.as_mut()) => return Err(self.ended()),
                    () = slow.as_mut() => {
                        metrics().slow_readers.add(&[]);
                        if let Some(times) = SLOW_READERS.count() {
                            warn!(
                                peer = %connection.address(),
                                times,
                                "ended responses that their callers did not read"
                            );
                        }
                        let trailers = self.connection.0.options.slow_reader.clone();
                        return Err(Stopped::Trailers(trailers));
                    }
                    () = connection.0.closed.cancelled() => return Err(self.closed()),
                }
                self.send_now(&mut piece);
            }
        }
        Ok(())
    }

    fn closed(&self) -> Stopped {
        Stopped::Trailers(closed(&self.connection))
    }

    fn ended(&self) -> Stopped {
        self.end.as_ref().map_or(Stopped::Gone, |end| Stopped::Trailers((end.trailers)()))
    }
}

/// Returns the trailers of a call that has not ended when its connection is closed.
fn closed(connection: &Connection) -> HeaderMap {
    let options = &connection.0.options;
    if connection.is_server_stopping() { options.stopped.clone() } else { options.aged.clone() }
}

/// Waits until a peer that reads nothing counts as a slow reader. When its connection closes, it
/// has only [`CLOSING_TIMEOUT`] left, so that it does not hold up a drain.
async fn slow_reader(closing: &CancellationToken) {
    let closed = async {
        closing.cancelled().await;
        sleep(CLOSING_TIMEOUT).await;
    };
    tokio::select! {
        () = sleep(SLOW_READER_TIMEOUT) => {}
        () = closed => {}
    }
}

/// Returns a response that is only trailers (gRPC over HTTP/2).
fn trailers_only(trailers: HeaderMap) -> Response<()> {
    let mut response = Response::new(());
    *response.headers_mut() = trailers;
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, grpc);
    response
}

/// Waits until some data can be sent. Returns false if the stream has ended.
fn poll_capacity(stream: &mut SendStream<Bytes>, context: &mut Context<'_>) -> Poll<bool> {
    loop {
        match ready!(stream.poll_capacity(context)) {
            // The window grew, but other streams of the connection have used it.
            Some(Ok(0)) => {}
            Some(Ok(_)) => return Poll::Ready(true),
            Some(Err(_)) | None => return Poll::Ready(false),
        }
    }
}

/// Waits until the response has to end, or forever.
async fn reached(end: Option<&mut Pin<Box<Sleep>>>) {
    match end {
        Some(end) => end.as_mut().await,
        None => pending().await,
    }
}
