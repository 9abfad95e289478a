//! Accepts connections and serves the API on them: tonic's server, with bounds where tonic has
//! none.
//!
//! It knows nothing of what is served. Ending the streams of a drain is the business of whoever
//! opened them; this only stops accepting, and is dropped when time is up. What is plain HTTP is
//! served by [`http`].

pub mod http;

use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};

use crate::{grpc::EdgeLayer, telemetry::rpc::RpcLayer};

/// HTTP/2 pings find dead peers.
const PING_EVERY: Duration = Duration::from_secs(45);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Of a request, in bytes; gRPC callers commonly send well below 8 KiB.
const MAX_HEADER_LIST: u32 = 16 << 10;

/// Streams that a peer may have reset before they were accepted. Callers that cancel a lot reach
/// the default of 20.
const MAX_PENDING_RESETS: usize = 200;

/// Flow control windows, in bytes: of a stream and of a connection. Requests are small, but for
/// orders of thousands of devices.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Serves until `stop`, then finishes what is open: for ever, if its peers keep it open.
pub async fn serve(
    listener: TcpListener,
    routes: Routes,
    max_concurrent_streams: u32,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Server::builder()
        .layer(RpcLayer)
        .layer(EdgeLayer)
        .max_concurrent_streams(max_concurrent_streams)
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .http2_max_header_list_size(MAX_HEADER_LIST)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
}
