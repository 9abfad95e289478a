//! A listener for HTTP/1.1, with or without TLS, whose port may be open to the internet.
//!
//! Connections are bounded, in total and per address. Every wait for a peer has a limit, and a
//! connection on which no request begins is closed. The [`Handler`] limits how long a body may
//! take. HTTP/2 is not offered: neither ThingSpace nor probes need it, and a peer could send
//! control frames without end.

mod connections;

use std::{convert::Infallible, error::Error, pin::pin, time::Duration};

use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::{Resource, getrlimit};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::yield_now,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use connections::ConnectionLimit;
pub(crate) use connections::Peer;

use crate::{config::Network, log_throttle::LogThrottle};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest time for the headers of a request. A connection on which no request begins is closed
/// after at most twice this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The most header fields of a request.
const MAX_HEADERS: usize = 64;

/// The limit for the header of a request, in bytes.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// A divisor: a listener uses at most half of the process's file descriptors. The API, the calls to
/// ThingSpace and the store need the rest.
const DESCRIPTORS_PART: usize = 2;

/// The pause after a connection could not be accepted, for example because no file descriptor was
/// free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests.
pub(crate) trait Handler: Clone + Send + Sync + 'static {
    type Body: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static;

    fn handle(
        self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// The name and the limits of a listener.
#[derive(Debug, Clone)]
pub(crate) struct ListenerOptions {
    /// The listener's name in the log.
    pub(crate) name: &'static str,
    /// The most open connections. A further one evicts one that waits for its peer.
    pub(crate) max_connections: usize,
    /// The most open connections from one address.
    pub(crate) max_connections_of_address: usize,
    /// Networks from which connections may come; empty: from everywhere.
    pub(crate) networks: Vec<Network>,
}

/// Serves until `stop`, then finishes the requests that are open.
pub(crate) async fn serve(
    options: ListenerOptions,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    handler: impl Handler,
    stop: CancellationToken,
) {
    let ListenerOptions { name, max_connections, max_connections_of_address, networks } = options;
    let connections = TaskTracker::new();
    let max_connections = max_open_files()
        .map_or(max_connections, |files| max_connections.min((files / DESCRIPTORS_PART).max(1)));
    let limit = ConnectionLimit::new(max_connections, max_connections_of_address);
    let (failed, refused) = (LogThrottle::default(), LogThrottle::default());
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let (tcp, peer) = match accepted {
            Ok((tcp, peer)) => (tcp, peer.ip()),
            Err(error) => {
                if let Some(times) = failed.count() {
                    warn!(
                        %error,
                        listener = name,
                        times,
                        "cannot accept connections; check the limit of open files"
                    );
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if !networks.is_empty() && !networks.iter().any(|network| network.contains(peer)) {
            if let Some(times) = refused.count() {
                warn!(
                    listener = name,
                    %peer,
                    times,
                    "refused connections from outside the allowed networks; \
                     add the peer's network if it is expected"
                );
            }
            continue;
        }
        let Some(slot) = limit.admit(connections::source(peer)).await else {
            debug!(listener = name, "too many connections");
            continue;
        };
        let (handler, tls, stop) = (handler.clone(), tls.clone(), stop.clone());
        connections.spawn(async move {
            tokio::select! {
                () = serve_connection(handler, tcp, tls, &slot.0, stop) => {}
                () = slot.evicted() => {}
            }
        });
        // Even under load, an accepted connection is read before the next one is accepted.
        yield_now().await;
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn serve_connection(
    handler: impl Handler,
    tcp: TcpStream,
    tls: Option<TlsAcceptor>,
    peer: &Peer,
    stop: CancellationToken,
) {
    // Without this option answers are only slower.
    let _ = tcp.set_nodelay(true);
    let Some(tls) = tls else { return serve_stream(handler, tcp, peer, stop).await };
    match timeout(HANDSHAKE_TIMEOUT, tls.accept(tcp)).await {
        Ok(Ok(stream)) => serve_stream(handler, stream, peer, stop).await,
        Ok(Err(error)) => debug!(%error, "the TLS handshake failed"),
        Err(_) => debug!("the TLS handshake took too long"),
    }
}

async fn serve_stream(
    handler: impl Handler,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: &Peer,
    stop: CancellationToken,
) {
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEADER_BYTES);
    let connection = &peer.connection;
    let service = service_fn(|mut request: Request<Incoming>| {
        let (open, handler) = (peer.open_request(), handler.clone());
        request.extensions_mut().insert(peer.clone());
        async move {
            let answer = handler.handle(request).await;
            drop(open);
            Ok::<_, Infallible>(answer)
        }
    });
    let mut serving = pin!(server.serve_connection(TokioIo::new(stream), service));
    let mut check = interval(HEADER_TIMEOUT);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    check.tick().await;
    let (mut last, mut stopping) = (connection.last(), false);
    loop {
        tokio::select! {
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    debug!(%error, "a connection broke");
                }
                return;
            }
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                serving.as_mut().graceful_shutdown();
            }
            // hyper's timeout does not cover a peer that does not read its answers.
            _ = check.tick() => {
                if connection.is_idle_since(&mut last) {
                    return;
                }
            }
        }
    }
}

/// Returns the process's limit of open files and connections. `None`: no limit.
fn max_open_files() -> Option<usize> {
    getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files).ok())
}
