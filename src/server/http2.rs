//! Serves gRPC calls over HTTP/2, directly on the crate `h2`.
//!
//! hyper's server gives the sender of a response away. So it can neither end a response whose peer
//! does not read it, nor give a late status to a call whose deadline has passed.
//!
//! - The peer has [`PREFACE_TIMEOUT`] to begin HTTP/2, and must answer pings.
//! - A connection that reaches its age, and every connection after `stop`, sends GOAWAY, accepts no
//!   new streams, and is closed when its calls have ended, at the latest after the grace.
//! - Control frames are limited by rate, never by count ([`meter`]). So a client is not punished
//!   for what it sent while the gateway was slow.
//! - A response is given to h2 only as far as the peer's window reaches ([`call`]).

mod call;
mod meter;

use std::{convert::Infallible, fmt, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use h2::{Ping, PingPong, server::Builder};
use http::{HeaderMap, Request, Response};
use http_body::Body;
use tokio::{
    net::TcpListener,
    time::{Instant, sleep, timeout},
};
use tokio_util::{either::Either, sync::CancellationToken};
use tower::Service;
use tracing::debug;

pub(crate) use call::{ReceivedBody, ResponseEnd};
use meter::Meter;

use super::{
    CountedRequest, Peer,
    listener::{self, ListenerOptions, Protocol, Stream},
    tls::Tls,
};
use crate::certificate;

/// How long the peer has for the connection preface (RFC 9113 §3.4).
const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);

/// HTTP/2 pings detect dead peers.
const PING_INTERVAL: Duration = Duration::from_secs(45);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The size of a request's headers above which HTTP/2 itself refuses them, in bytes. `grpc::gate`
/// has a lower limit, and gives a status that gRPC clients understand.
const MAX_HEADER_LIST: u32 = 64 << 10;

/// Flow control windows for requests, of a stream and of a connection, in bytes.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// The most bytes of a response that h2 keeps for a peer.
const SEND_BUFFER: usize = 16 << 10;

/// A multiple of the concurrent streams: the most streams that a peer opened and reset before they
/// were accepted. h2 closes the connection above it. The rate of resets is limited by [`meter`].
const PENDING_RESETS: usize = 16;

/// The most streams of a connection that h2 resets because of a stream error of the peer. h2 never
/// lowers the count, and closes the connection above it.
const MAX_STREAM_ERRORS: usize = 100_000;

/// How long streams that the gateway has reset are remembered, and how many. Frames for them are
/// ignored.
const RESET_MEMORY: Duration = Duration::from_secs(5);
const MAX_REMEMBERED_RESETS: usize = 1024;

/// The part by which ages of connections and watches differ, so that not all end at once (gRFC A9).
const AGE_SPREAD: f64 = 0.1;

/// How long a closed connection may take to send its last frames.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The limits of connections that carry gRPC calls.
#[derive(Debug, Clone)]
pub(crate) struct Http2Options {
    /// The most calls that are open at the same time on one connection.
    pub(crate) max_concurrent_streams: u32,
    /// A connection takes no new calls after this time, give or take a tenth.
    pub(crate) age: Duration,
    /// How long the calls of such a connection may take to end.
    pub(crate) grace: Duration,
    /// The trailers of a response whose peer does not read it.
    pub(crate) slow_reader: HeaderMap,
    /// The trailers of a call that has not ended when its connection is closed: because of the age
    /// of the connection, and because the server stops.
    pub(crate) aged: HeaderMap,
    pub(crate) stopped: HeaderMap,
}

/// The connection of a call. Every request has it as an extension.
#[derive(Clone)]
pub(crate) struct Connection(Arc<ConnectionInner>);

struct ConnectionInner {
    options: Arc<Http2Options>,
    peer: Peer,
    certificate: Option<PeerCertificate>,
    /// Cancelled when the server stops.
    stop: CancellationToken,
    closing: CancellationToken,
    /// Cancelled when the calls that are left have to end at once.
    closed: CancellationToken,
}

/// A client certificate that TLS has verified.
#[derive(Debug)]
pub(crate) struct PeerCertificate {
    /// Such as `spiffe://example.org/orders` or `dns:orders.example.com`. `None`: it has no name
    /// that identifies a caller.
    pub(crate) name: Option<String>,
}

impl Connection {
    pub(crate) fn address(&self) -> SocketAddr {
        self.0.peer.address
    }

    /// The client certificate. `None`: the client has sent none.
    pub(crate) fn certificate(&self) -> Option<&PeerCertificate> {
        self.0.certificate.as_ref()
    }

    /// Cancelled when the connection has reached its age or the server stops. Its calls should end
    /// soon.
    pub(crate) fn closing(&self) -> &CancellationToken {
        &self.0.closing
    }

    /// Whether the server stops, and not only this connection.
    pub(crate) fn is_server_stopping(&self) -> bool {
        self.0.stop.is_cancelled()
    }

    /// Protects the connection from eviction while the guard is held. From now on, connections of
    /// its address are evicted last. To be called for callers that are authenticated.
    pub(crate) fn protect(&self) -> CountedRequest {
        self.0.peer.trust();
        self.0.peer.protect()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("address", &self.address()).finish_non_exhaustive()
    }
}

/// A service that answers calls.
pub(crate) trait CallService:
    Service<
        Request<ReceivedBody>,
        Response = Response<Self::Body>,
        Error = Infallible,
        Future: Send,
    > + Clone
    + Send
    + Sync
    + 'static
{
    /// The body of a response.
    type Body: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static;
}

impl<S, B> CallService for S
where
    S: Service<Request<ReceivedBody>, Response = Response<B>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    B: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static,
{
    type Body = B;
}

/// Serves calls until `stop`, and then until all connections have ended.
pub(crate) async fn serve(
    listener_options: ListenerOptions,
    options: Http2Options,
    listener: TcpListener,
    tls: Option<Tls>,
    service: impl CallService,
    stop: CancellationToken,
) {
    let protocol = Http2 { options: Arc::new(options), service };
    listener::serve(listener_options, listener, tls, protocol, stop).await;
}

#[derive(Clone)]
struct Http2<S> {
    options: Arc<Http2Options>,
    service: S,
}

impl<S: CallService> Protocol for Http2<S> {
    async fn serve(self, stream: Stream, peer: Peer, stop: CancellationToken) {
        let (closing, closed) = (stop.child_token(), CancellationToken::new());
        let certificate = certificate(&stream);
        let options = Arc::clone(&self.options);
        let inner = ConnectionInner { options, peer, certificate, stop, closing, closed };
        let connection = Connection(Arc::new(inner));
        let handshake = self.builder().handshake::<_, Bytes>(Meter::new(stream));
        match timeout(PREFACE_TIMEOUT, handshake).await {
            Ok(Ok(http2)) => self.serve_calls(http2, connection).await,
            Ok(Err(error)) => debug!(%error, "a connection did not begin HTTP/2"),
            Err(_) => debug!("a connection took too long to begin HTTP/2"),
        }
    }
}

type Http2Connection = h2::server::Connection<Meter<Stream>, Bytes>;

impl<S: CallService> Http2<S> {
    fn builder(&self) -> Builder {
        let max_streams = self.options.max_concurrent_streams;
        let pending_resets =
            usize::try_from(max_streams).unwrap_or(usize::MAX).saturating_mul(PENDING_RESETS);
        let mut builder = Builder::new();
        builder
            .max_concurrent_streams(max_streams)
            .max_header_list_size(MAX_HEADER_LIST)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .max_pending_accept_reset_streams(pending_resets)
            .max_local_error_reset_streams(Some(MAX_STREAM_ERRORS))
            .max_concurrent_reset_streams(MAX_REMEMBERED_RESETS)
            .reset_stream_duration(RESET_MEMORY);
        builder
    }

    /// Accepts and answers calls until the connection ends.
    async fn serve_calls(&self, mut http2: Http2Connection, connection: Connection) {
        let closing = connection.closing().clone();
        let mut dead = pin!(until_dead(http2.ping_pong()));
        let mut timer = pin!(sleep(spread_age(self.options.age)));
        let mut is_closing = false;
        loop {
            tokio::select! {
                accepted = http2.accept() => match accepted {
                    Some(Ok((request, respond))) => {
                        let service = self.service.clone();
                        tokio::spawn(call::serve(request, respond, service, connection.clone()));
                    }
                    Some(Err(error)) => {
                        debug!(%error, "a connection broke");
                        return;
                    }
                    None => return,
                },
                () = closing.cancelled(), if !is_closing => {
                    is_closing = true;
                    timer.as_mut().reset(Instant::now() + self.options.grace);
                    http2.graceful_shutdown();
                }
                () = timer.as_mut() => {
                    if is_closing {
                        debug!("a connection is closed before its calls have ended");
                        break;
                    }
                    closing.cancel();
                }
                () = dead.as_mut() => {
                    debug!("a peer does not answer pings");
                    return;
                }
            }
        }
        connection.0.closed.cancel();
        // The peer may not read any more.
        let _ = timeout(CLOSE_TIMEOUT, async { while http2.accept().await.is_some() {} }).await;
    }
}

/// Returns the peer's verified certificate.
fn certificate(stream: &Stream) -> Option<PeerCertificate> {
    let Either::Right(tls) = stream else { return None };
    let chain = tls.get_ref().1.peer_certificates()?;
    Some(PeerCertificate { name: certificate::caller_name(chain.first()?) })
}

/// Returns a random duration that differs from `age` by at most [`AGE_SPREAD`].
pub(crate) fn spread_age(age: Duration) -> Duration {
    age.mul_f64(1.0 - AGE_SPREAD + 2.0 * AGE_SPREAD * fastrand::f64())
}

/// Waits until the peer does not answer a ping in time.
async fn until_dead(ping_pong: Option<PingPong>) {
    let mut ping_pong = ping_pong.expect("nobody has taken it before");
    loop {
        sleep(PING_INTERVAL).await;
        match timeout(PING_TIMEOUT, ping_pong.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests;
