//! A start reads the events since the oldest open request, and not the whole history.

mod far;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use thingspace_gateway::{
    app,
    config::Config,
    identity::RequestId,
    proto::storage,
    requests::fold::event::{self, Kind},
    store::{LogName, Store, embedded::Embedded, nats::Nats},
};
use uuid::Uuid;

use crate::{
    RETENTION, append_all, assert_known, callbacks::resident_bytes, harness::*,
    nats_server::NatsServer,
};
use far::Far;

/// Requests still open at the end of the history.
const OPEN: usize = 3;

fn name(n: usize) -> String {
    format!("request-{n}")
}

fn id(n: usize) -> RequestId {
    RequestId::parse(&name(n)).unwrap()
}

fn stored(n: usize) -> storage::Device {
    let ids = device(n);
    storage::Device { eid: ids.eid, iccid: ids.iccid, imei: ids.imei, mdn: ids.mdn }
}

fn accepted(n: usize) -> Kind {
    Kind::Accepted(storage::Accepted {
        order_id: Uuid::from_u128(n as u128).to_string(),
        account: ACCOUNT.to_owned(),
        service_plan: "plan 1".to_owned(),
        devices: vec![stored(n)],
        caller: String::new(),
    })
}

fn succeeded(n: usize) -> Kind {
    Kind::Observed(storage::Observed {
        account: ACCOUNT.to_owned(),
        overall: storage::StatusClass::Succeeded.into(),
        devices: vec![storage::ObservedDevice {
            device: Some(stored(n)),
            status: storage::StatusClass::Succeeded.into(),
        }],
        overall_only: false,
        complete: true,
    })
}

/// Returns a store with this number of finished requests and some open ones after them.
async fn write_history(path: &Path, finished: usize) {
    let store = Embedded::open(path, RETENTION).unwrap();
    // Most are external requests that were final at the first status query: one event each.
    let ordered = |n: usize| n.is_multiple_of(10).then(|| accepted(n));
    let finished_ones = (0..finished)
        .flat_map(|n| ordered(n).into_iter().chain([succeeded(n)]).map(move |e| (name(n), e)));
    let open = (finished..finished + OPEN).map(|n| (name(n), accepted(n)));
    append_all(&store, finished_ones.chain(open)).await;
    store.close().await;
}

/// Starts a gateway, checks the open requests, and returns how many events the start has read.
async fn start(config: &Config, open: std::ops::Range<usize>) -> u64 {
    let gateway = Gateway::start(config.clone()).await;
    let read = gateway.requests.events_read();
    let mut client = gateway.client().await;
    for n in open {
        assert_known(&mut client, &id(n), [n]).await;
    }
    gateway.stop().await;
    read
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_does_not_read_what_was_finished_before_the_oldest_open_request() {
    let mut reads = Vec::new();
    for finished in [100, 100_000] {
        let upstream = Upstream::manual().await;
        let (config, open) = (upstream.quiet(), finished..finished + OPEN);
        write_history(&config.store.path, finished).await;
        // The first gateway finds no low-water mark, and stores one.
        assert!(start(&config, open.clone()).await > finished as u64);
        reads.push(start(&config, open).await);
    }
    // Each open request has one event, which is followed, and its log is read.
    assert_eq!(reads, [2 * OPEN as u64; 2]);
}

/// The logs of requests that finished since the oldest open request began are read once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_reads_a_finished_request_of_many_events_once() {
    const EVENTS: usize = 2_000;
    let upstream = Upstream::manual().await;
    let config = upstream.quiet();
    let store = Embedded::open(&config.store.path, RETENTION).unwrap();
    let many = (1..EVENTS).map(|_| (name(1), succeeded(1)));
    append_all(&store, [(name(0), accepted(0)), (name(1), accepted(1))].into_iter().chain(many))
        .await;
    store.close().await;
    // The open request's event and those of the finished one, each followed and read.
    assert_eq!(start(&config, 0..1).await, 2 * (1 + EVENTS as u64));
}

/// Open requests are in memory on every replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_requests_cost_little_memory() {
    const OPEN: usize = 20_000;
    /// The memory for one request with one device, in bytes, with the store's cache.
    const MEMORY_EACH: usize = 4_096;
    let upstream = Upstream::manual().await;
    let config = upstream.quiet();
    let store = Embedded::open(&config.store.path, RETENTION).unwrap();
    append_all(&store, (0..OPEN).map(|n| (name(n), accepted(n)))).await;
    store.close().await;
    drop(store);
    let before = resident_bytes();
    let gateway = Gateway::start(config).await;
    let grown = resident_bytes().saturating_sub(before);
    assert_eq!(gateway.requests.overview().open_requests, OPEN);
    eprintln!("{} bytes of memory for each open request", grown / OPEN);
    assert!(grown < OPEN * MEMORY_EACH, "grew by {grown} bytes");
    gateway.stop().await;
}

/// Logs are read concurrently: one after the other, the round trips would take a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_far_from_nats_starts_soon() {
    const FINISHED: usize = 600;
    const DELAY: Duration = Duration::from_millis(12);
    const SOON: Duration = Duration::from_secs(15);
    let (upstream, nats) = (Upstream::manual().await, NatsServer::start().await);
    let config = upstream.replica(&upstream.quiet(), &nats.url(), 1, 0);
    let store = Nats::open(&config.store.nats, app::retention(&config)).await.unwrap();
    usable(&store).await;
    let append = async |n: usize, kind| {
        store
            .append(&LogName::request(name(n)), Uuid::now_v7(), event::encode(kind, None))
            .await
            .unwrap();
    };
    // The first one stays open.
    append(0, accepted(0)).await;
    for kind in [accepted, succeeded] {
        stream::iter(1..=FINISHED).for_each_concurrent(64, |n| append(n, kind(n))).await;
    }
    store.close().await;

    let server = nats.url().trim_start_matches("nats://").parse().unwrap();
    let far = Far::from(server, DELAY).await;
    let mut config = config;
    config.store.nats.url = format!("nats://{}", far.address);
    let began = Instant::now();
    let gateway = Gateway::start(config).await;
    let took = began.elapsed();
    eprintln!("ready after {took:?}");
    assert!(took < SOON, "{took:?}");
    assert_eq!(gateway.requests.overview().open_requests, 1);
    gateway.stop().await;
}
