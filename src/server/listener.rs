//! Accepts connections, and finishes their TLS handshakes.
//!
//! Connections are bounded, in total and per address. A failure to accept pauses the listener, but
//! never ends it.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use rustix::process::{Resource, getrlimit};
use tokio::{
    net::{TcpListener, TcpStream},
    task::yield_now,
    time::{sleep, timeout},
};
use tokio_rustls::server::TlsStream;
use tokio_util::{either::Either, sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use super::{
    connections::{ConnectionLimit, Peer},
    tls::Tls,
};
use crate::{
    config::Network,
    log_throttle::LogThrottle,
    telemetry::{attribute, metrics, names},
};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The most lines about failed handshakes in a minute. Everybody who reaches the port can cause
/// them.
const HANDSHAKE_LINES: u32 = 10;

/// The pause after a connection could not be accepted, for example because no file descriptor was
/// free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The name and the limits of a listener.
#[derive(Debug, Clone)]
pub(crate) struct ListenerOptions {
    /// The listener's name in the log.
    pub(crate) name: &'static str,
    /// The most open connections. A further one evicts one that waits for its peer.
    pub(crate) max_connections: usize,
    /// The most open connections from one address.
    pub(crate) max_connections_of_address: usize,
    /// The listener uses at most one part in this many of the process's file descriptors. The calls
    /// to ThingSpace and the store need the rest.
    pub(crate) descriptors_part: usize,
    /// Networks from which connections may come; empty: from everywhere.
    pub(crate) networks: Vec<Network>,
    /// Tracks the open connections.
    pub(crate) connections: TaskTracker,
}

/// A connection, with or without TLS.
pub(super) type Stream = Either<TcpStream, TlsStream<TcpStream>>;

/// Serves connections.
pub(super) trait Protocol: Clone + Send + Sync + 'static {
    /// Serves a connection until it ends. After `stop` it should end soon.
    fn serve(
        self,
        stream: Stream,
        peer: Peer,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send;
}

/// Serves until `stop`, and then until all connections have ended.
pub(super) async fn serve(
    options: ListenerOptions,
    listener: TcpListener,
    tls: Option<Tls>,
    protocol: impl Protocol,
    stop: CancellationToken,
) {
    let limit = limit(&options);
    let ListenerOptions { name, networks, connections, .. } = options;
    let (failed, refused, full): (LogThrottle, LogThrottle, LogThrottle) = Default::default();
    let failed_handshakes = Arc::new(LogThrottle::with_lines(HANDSHAKE_LINES));
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let (tcp, address) = match accepted {
            Ok(accepted) => accepted,
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
        if !is_allowed(&networks, address) {
            count_refused(name, "network");
            if let Some(times) = refused.count() {
                warn!(
                    listener = name,
                    peer = %address.ip(),
                    times,
                    "refused connections from outside the allowed networks; \
                     add the peer's network if it is expected"
                );
            }
            continue;
        }
        let Some(slot) = limit.admit(address).await else {
            count_refused(name, "limit");
            if let Some(times) = full.count() {
                warn!(
                    listener = name,
                    peer = %address.ip(),
                    times,
                    "refused connections because a limit of connections is reached, in total or \
                     for the address; raise the limits, or let clients share connections"
                );
            }
            continue;
        };
        let (protocol, tls, stop) = (protocol.clone(), tls.clone(), stop.clone());
        let failed_handshakes = Arc::clone(&failed_handshakes);
        connections.spawn(async move {
            let peer = slot.0.clone();
            let _open = metrics().connections_open.hold([attribute(names::LISTENER, name)]);
            let serving = async {
                let stream = handshake(tcp, tls, (name, address), &failed_handshakes).await;
                if let Some(stream) = stream {
                    protocol.serve(stream, peer, stop).await;
                }
            };
            tokio::select! {
                () = serving => {}
                () = slot.evicted() => count_refused(name, "evicted"),
            }
        });
        // Even under load, an accepted connection is read before the next one is accepted.
        yield_now().await;
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

fn limit(options: &ListenerOptions) -> ConnectionLimit {
    let most = options.max_connections;
    let most =
        max_open_files().map_or(most, |files| most.min((files / options.descriptors_part).max(1)));
    ConnectionLimit::new(most, options.max_connections_of_address)
}

/// Returns the process's limit of open files and connections. `None`: no limit.
fn max_open_files() -> Option<usize> {
    getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files).ok())
}

fn is_allowed(networks: &[Network], address: SocketAddr) -> bool {
    networks.is_empty() || networks.iter().any(|network| network.contains(address.ip()))
}

fn count_refused(listener: &'static str, reason: &'static str) {
    let attributes = [attribute(names::LISTENER, listener), attribute(names::REASON, reason)];
    metrics().connections_refused.add(&attributes);
}

/// Returns the connection after its TLS handshake; `None` if the handshake failed.
async fn handshake(
    tcp: TcpStream,
    tls: Option<Tls>,
    (name, peer): (&'static str, SocketAddr),
    failed: &LogThrottle,
) -> Option<Stream> {
    // Without this option answers are only slower.
    let _ = tcp.set_nodelay(true);
    let Some(tls) = tls else { return Some(Either::Left(tcp)) };
    match timeout(HANDSHAKE_TIMEOUT, tls.acceptor().accept(tcp)).await {
        Ok(Ok(stream)) => return Some(Either::Right(stream)),
        Ok(Err(error)) => {
            count_refused(name, "handshake");
            if let Some(times) = failed.count() {
                info!(
                    %error,
                    listener = name,
                    %peer,
                    times,
                    "TLS handshakes failed; the error is about the last one"
                );
            }
        }
        Err(_) => {
            count_refused(name, "handshake");
            debug!(listener = name, %peer, "a TLS handshake took too long");
        }
    }
    None
}
