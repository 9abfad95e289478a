//! Accepts connections and serves callbacks on them, in HTTP/1.1 or HTTP/2, with or without TLS.
//!
//! The port may be open to the world, so nothing here waits for a peer without bound, and a connection on which nothing begins
//! is ended. What a callback is, is the business of [`Callbacks`].

mod crowd;

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use http_body::Body;
use http_body_util::Empty;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{Bytes, Callbacks};
use crowd::{Activity, Crowd, Open, Place};

/// Connections open at once; one more takes the place of the oldest that rests. Half the file descriptors that a process often
/// has: the API and the calls to ThingSpace need some, too.
const MAX_CONNECTIONS: usize = 512;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// For a request's headers, and the longest a connection is kept on which nothing begins.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Fields of a request's header.
const MAX_HEADERS: usize = 64;

/// Of a request's header.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// Callbacks at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 64;

/// Before the next try when a connection cannot be accepted, for want of file descriptors for instance.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`, then finishes what is open.
pub(super) async fn serve(
    callbacks: Callbacks,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    let crowd = Crowd::new(MAX_CONNECTIONS);
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let tcp = match accepted {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                warn!(%error, "cannot accept a callback's connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = crowd.admit() else {
            debug!("too many connections to the callbacks' listener");
            continue;
        };
        let (callbacks, tls, stop) = (callbacks.clone(), tls.clone(), stop.clone());
        connections.spawn(async move {
            let connection = connection(callbacks, tcp, tls, &place, stop);
            place.taken.run_until_cancelled(connection).await;
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn connection(
    callbacks: Callbacks,
    tcp: TcpStream,
    tls: Option<TlsAcceptor>,
    place: &Place,
    stop: CancellationToken,
) {
    // Without the option answers are only slower.
    let _ = tcp.set_nodelay(true);
    let Some(tls) = tls else { return drive(callbacks, tcp, &place.activity, stop).await };
    match timeout(HANDSHAKE_TIMEOUT, tls.accept(tcp)).await {
        Ok(Ok(stream)) => drive(callbacks, stream, &place.activity, stop).await,
        Ok(Err(error)) => debug!(%error, "no TLS handshake"),
        Err(_) => debug!("no TLS handshake in time"),
    }
}

async fn drive(
    callbacks: Callbacks,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    activity: &Arc<Activity>,
    stop: CancellationToken,
) {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEADER_BYTES);
    server
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(MAX_HEADER_BYTES).expect("16 KiB"))
        .max_concurrent_streams(MAX_STREAMS);
    let service = TowerToHyperService::new(Service { callbacks, activity: Arc::clone(activity) });
    let mut serving = pin!(server.serve_connection(TokioIo::new(stream), service));
    let mut look = interval(HEADER_TIMEOUT);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    look.tick().await;
    let (mut begun, mut stopping) = (0, false);
    loop {
        tokio::select! {
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    debug!(%error, "a callback's connection broke");
                }
                return;
            }
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                serving.as_mut().graceful_shutdown();
            }
            // hyper's own time-out begins with the first byte.
            _ = look.tick() => {
                if activity.rested_since(&mut begun) {
                    return;
                }
            }
        }
    }
}

#[derive(Clone)]
struct Service {
    callbacks: Callbacks,
    activity: Arc<Activity>,
}

impl<B> tower::Service<Request<B>> for Service
where
    B: Body<Data = Bytes, Error: std::error::Error + Send + Sync + 'static> + Send + 'static,
{
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (open, callbacks) = (Open::new(&self.activity), self.callbacks.clone());
        Box::pin(async move {
            let answer = callbacks.answer(request).await;
            drop(open);
            Ok(answer)
        })
    }
}
