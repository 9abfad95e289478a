//! Accepts connections: the gRPC server here, the listeners for plain HTTP in [`http`].
//!
//! The gRPC server is tonic's, with the limits that tonic does not set by default. When it stops,
//! it accepts no connections and asks peers to begin no calls. The drain ends streams and waits for
//! calls.

pub(crate) mod http;

use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};
use tower::layer::layer_fn;

use crate::{
    auth::Authenticator,
    grpc::{Authenticate, Middleware},
    telemetry::rpc::Rpc,
};

/// HTTP/2 pings detect dead peers.
const PING_INTERVAL: Duration = Duration::from_secs(45);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The limit for the headers of a request, in bytes. gRPC callers usually send less than 8 KiB.
const MAX_HEADER_LIST: u32 = 16 << 10;

/// The most streams of a connection that were reset before they were accepted. The default of 20 is
/// too low for callers that cancel often.
const MAX_PENDING_RESETS: usize = 200;

/// Flow control windows of a stream and of a connection, in bytes.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Serves until `stop`, and returns when all connections have ended. A peer can delay that forever.
pub(crate) async fn serve(
    listener: TcpListener,
    routes: Routes,
    callers: Authenticator,
    max_concurrent_streams: u32,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Server::builder()
        .layer(layer_fn(Rpc::new))
        .layer(layer_fn(Middleware::new))
        .layer(layer_fn(move |inner| Authenticate::new(inner, callers.clone())))
        .max_concurrent_streams(max_concurrent_streams)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .http2_max_header_list_size(MAX_HEADER_LIST)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
}
