//! The memory of watches in which nothing happens.

use std::{collections::HashSet, net::SocketAddr};

use futures_util::future::join_all;
use prost::Message as _;
use thingspace_gateway::{proto::esim::WatchRequestRequest, simulator::DeviceResult};

use super::{memory, report};
use crate::{harness::*, http2::*};

const CONNECTIONS: usize = 20;

/// On each connection. The default limit.
const WATCHES: usize = 1_000;

/// The most memory of an idle watch, in bytes: twice the 4.3 kB of a build without optimisation, so
/// that a regression is seen. `benches/suite` measures the optimised one.
const MAX_BYTES: u64 = 8_600;

/// The window of a connection, in bytes. All snapshots fit into it.
const WINDOW: u32 = 16 << 20;

/// Begins the watches of a connection, and waits for their snapshots.
async fn watch_all(address: SocketAddr, request: &WatchRequestRequest) -> Peer {
    let message = request.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let message = [&[0][..], &length, &message].concat();
    let block = call("/thingspace.esim.v1.EsimService/WatchRequest", "");
    let calls: Vec<_> =
        (1..).step_by(2).take(WATCHES).flat_map(|stream| unary(stream, &block, &message)).collect();
    let mut peer = Peer::connect(address).await;
    peer.send(&[window_update(0, WINDOW), calls].concat()).await.unwrap();
    let mut begun = HashSet::new();
    while begun.len() < WATCHES {
        begun.insert(peer.next_of(DATA).await.stream);
    }
    peer
}

/// Waits until all watches of a connection have ended, each for the first time.
async fn all_end(mut peer: Peer) {
    let mut ended = HashSet::new();
    while ended.len() < WATCHES {
        let trailers = peer.next_of(HEADERS).await;
        assert!(trailers.flags & END_STREAM != 0);
        assert!(ended.insert(trailers.stream));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_watches_take_little_memory() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    config.limits.caller_watches = CONNECTIONS * WATCHES;
    let process = Process::serve(&config, upstream.dir.path());
    let mut client = process.client().await;
    let id = place(&mut client, "k", [0]).await.unwrap();
    let request = WatchRequestRequest {
        account_name: ACCOUNT.to_owned(),
        request_id: id.to_string(),
        resume_token: String::new(),
    };
    let before = memory(&process, "RssAnon");
    let watching = join_all((0..CONNECTIONS).map(|_| watch_all(process.address, &request))).await;
    let bytes =
        || memory(&process, "RssAnon").saturating_sub(before) / (CONNECTIONS * WATCHES) as u64;
    report(&process, "20,000 watches");
    eprintln!("{} bytes each", bytes());
    eventually("memory that is not needed is returned", async || bytes() <= MAX_BYTES).await;

    // They were open all the time.
    upstream.sim.finish(&id, &device(0).eid, DeviceResult::Success);
    get_status(&mut client, status_call(&id)).await.unwrap();
    join_all(watching.into_iter().map(all_end)).await;
}
