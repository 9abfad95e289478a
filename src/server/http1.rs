//! Serves HTTP/1.1 on listeners whose ports may be open to the internet.
//!
//! Every wait for a peer has a limit, and a connection on which no request begins is closed. The
//! [`Handler`] limits how long a body may take. HTTP/2 is not offered: neither ThingSpace nor
//! probes need it, and a peer could send control frames without end.

use std::{convert::Infallible, error::Error, pin::pin, time::Duration};

use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpListener,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    Peer,
    listener::{self, ListenerOptions, Protocol, Stream},
    tls::Tls,
};

/// The longest time for the headers of a request. A connection on which no request begins is closed
/// after at most twice this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The most header fields of a request.
const MAX_HEADERS: usize = 64;

/// The limit for the header of a request, in bytes.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// Answers requests.
pub(crate) trait Handler: Clone + Send + Sync + 'static {
    type Body: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static;

    fn handle(
        self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// Serves until `stop`, then finishes the requests that are open.
pub(crate) async fn serve(
    options: ListenerOptions,
    listener: TcpListener,
    tls: Option<Tls>,
    handler: impl Handler,
    stop: CancellationToken,
) {
    listener::serve(options, listener, tls, Http1(handler), stop).await;
}

#[derive(Clone)]
struct Http1<H>(H);

impl<H: Handler> Protocol for Http1<H> {
    async fn serve(self, stream: Stream, peer: Peer, stop: CancellationToken) {
        let mut server = http1::Builder::new();
        server
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEADER_BYTES);
        let connection = &peer.connection;
        let service = service_fn(|mut request: Request<Incoming>| {
            let (open, handler) = (peer.open_request(), self.0.clone());
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
}
