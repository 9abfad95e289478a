//! Accepts connections and answers requests on them, in HTTP/1.1, with or without TLS.
//!
//! HTTP/2 is not spoken: ThingSpace and probes do not need it, and a peer could send its control
//! frames without end.
//!
//! The port may be open to the world, so nothing here waits for a peer without bound, and a
//! connection on which nothing begins is ended. What a request is, and how long its body may take,
//! is the business of whoever answers it.

mod connections;

use std::{convert::Infallible, error::Error, net::IpAddr, pin::pin, time::Duration};

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

use connections::{ConnectionLimit, NoPlace, Open, Place};
pub use connections::{Origin, Received};

use crate::{config::Network, repeated::Repeated};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// For a request's headers, and the longest a connection is kept on which nothing begins.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Fields of a request's header.
const MAX_HEADERS: usize = 64;

/// Of a request's header.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// The part of the files that the process may open that a listener leaves to others: the API, the
/// calls to ThingSpace, the store.
const DESCRIPTORS_PART: usize = 2;

/// Before the next try when a connection cannot be accepted, for want of file descriptors for
/// instance.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers a request, whatever it is.
pub trait Answer: Clone + Send + Sync + 'static {
    type Body: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static;

    fn answer(
        self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// What is served, to how many and to whom.
#[derive(Debug, Clone)]
pub struct Listening {
    /// Names the listener in logs.
    pub name: &'static str,
    /// Connections open at once; one more takes the place of one that waits for its peer.
    pub max_connections: usize,
    /// The same, from one address.
    pub max_connections_of_address: usize,
    /// Where connections may come from; empty: from everywhere.
    pub networks: Vec<Network>,
}

/// Serves until `stop`, then finishes what is open.
pub async fn serve(
    listening: Listening,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    answers: impl Answer,
    stop: CancellationToken,
) {
    let Listening { name, max_connections, max_connections_of_address, networks } = listening;
    let connections = TaskTracker::new();
    let max_connections = open_files()
        .map_or(max_connections, |files| max_connections.min((files / DESCRIPTORS_PART).max(1)));
    let limit = ConnectionLimit::new(max_connections, max_connections_of_address);
    let (failed, refused) = (Repeated::default(), Repeated::default());
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let (tcp, peer) = match accepted {
            Ok((tcp, peer)) => (tcp, peer.ip()),
            Err(error) => {
                if let Some(times) = failed.count() {
                    warn!(%error, listener = name, times, "cannot accept connections");
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if !networks.is_empty() && !networks.iter().any(|network| network.contains(peer)) {
            if let Some(times) = refused.count() {
                warn!(listener = name, %peer, times, "refused connections from outside the allowed networks");
            }
            continue;
        }
        let Some(place) = place(&limit, connections::source(peer)).await else {
            debug!(listener = name, "too many connections");
            continue;
        };
        let (answers, tls, stop) = (answers.clone(), tls.clone(), stop.clone());
        connections.spawn(async move {
            let connection = connection(answers, tcp, tls, &place, stop);
            place.taken.run_until_cancelled(connection).await;
        });
        // However busy the process is: what was accepted is read before more is accepted.
        yield_now().await;
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// A place for a new connection; `None`: there is none.
async fn place(limit: &ConnectionLimit, source: IpAddr) -> Option<Place> {
    loop {
        match limit.admit(source) {
            Ok(place) => return Some(place),
            Err(NoPlace::Wait(wait)) => sleep(wait).await,
            Err(NoPlace::Full) => return None,
        }
    }
}

async fn connection(
    answers: impl Answer,
    tcp: TcpStream,
    tls: Option<TlsAcceptor>,
    place: &Place,
    stop: CancellationToken,
) {
    // Without the option answers are only slower.
    let _ = tcp.set_nodelay(true);
    let Some(tls) = tls else { return drive(answers, tcp, &place.origin, stop).await };
    match timeout(HANDSHAKE_TIMEOUT, tls.accept(tcp)).await {
        Ok(Ok(stream)) => drive(answers, stream, &place.origin, stop).await,
        Ok(Err(error)) => debug!(%error, "no TLS handshake"),
        Err(_) => debug!("no TLS handshake in time"),
    }
}

async fn drive(
    answers: impl Answer,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    origin: &Origin,
    stop: CancellationToken,
) {
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEADER_BYTES);
    let activity = &origin.activity;
    let service = service_fn(|mut request: Request<Incoming>| {
        let (open, answers) = (Open::new(activity), answers.clone());
        request.extensions_mut().insert(origin.clone());
        async move {
            let answer = answers.answer(request).await;
            drop(open);
            Ok::<_, Infallible>(answer)
        }
    });
    let mut serving = pin!(server.serve_connection(TokioIo::new(stream), service));
    let mut look = interval(HEADER_TIMEOUT);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    look.tick().await;
    let (mut last, mut stopping) = (activity.last(), false);
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
            // hyper's own time-out is not for a peer that does not read its answers.
            _ = look.tick() => {
                if activity.rested_since(&mut last) {
                    return;
                }
            }
        }
    }
}

/// How many files the process may have open, connections included; `None`: any number.
fn open_files() -> Option<usize> {
    getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files).ok())
}
