//! Measures the stores: an append, the wait until a follower has delivered it, a swap, a load, a
//! read, and the time from a callback to a watcher through a gateway. Stores are the embedded one,
//! one NATS server, and three. Everything runs on this machine, without a network.
//!
//! `cargo bench --profile quick --bench store`

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench panics if it fails, and prints its results"
)]

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, future::join_all};
use test_support::{
    harness::{Gateway, Upstream, device, place, usable, watch as watch_request},
    nats_server::{NatsCluster, NatsServer},
    sender::{Sender, about},
};
use thingspace_gateway::{
    config::{Config, NatsConfig},
    store::{
        CellName, Followed, LogName, MAX_READ, Position, Store, Swap, embedded::Embedded,
        nats::Nats,
    },
};
use tokio::sync::watch;
use uuid::Uuid;

const RETENTION: Duration = Duration::from_hours(1_000);

/// The size of most events.
const EVENT: Bytes = Bytes::from_static(&[b'x'; 200]);

/// Operations of each kind, one after the other.
const ONE_BY_ONE: usize = 2_000;

/// Concurrent writers.
const WRITERS: usize = 64;

/// Appends of each writer.
const EACH: usize = 100;

/// The number of events in the log that is read.
const READ: usize = 10;

/// Callbacks, one after the other.
const CALLBACKS: usize = 500;

#[tokio::main(worker_threads = 2)]
async fn main() {
    println!("{}\n", machine());
    println!(
        "| store | append p50, p99 | {WRITERS} writers | own-write wait p50, p99 | swap p50, p99 | \
         load p50, p99 | read of {READ} p50, p99 | callback to watcher p50, p99 |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let folder = tempfile::tempdir().unwrap();
    let embedded = Embedded::open(&folder.path().join("store.redb"), RETENTION).unwrap();
    let callback = callback_to_watcher(None).await;
    let first = measure("embedded", Arc::new(embedded), callback, None).await;
    {
        let server = NatsServer::start().await;
        let callback = callback_to_watcher(Some((&server.url(), 1))).await;
        measure("NATS, 1 server", nats(&server.url(), 1).await, callback, Some(&first)).await;
    }
    let cluster = NatsCluster::start().await;
    let callback = callback_to_watcher(Some((&cluster.url(), 3))).await;
    measure("NATS, 3 servers", nats(&cluster.url(), 3).await, callback, Some(&first)).await;
}

async fn nats(url: &str, replicas: usize) -> Arc<dyn Store> {
    let settings = NatsConfig { url: url.to_owned(), replicas, ..Config::defaults().store.nats };
    let store = Nats::open(&settings, RETENTION).await.unwrap();
    usable(&store).await;
    Arc::new(store)
}

fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("processor", |(_, model)| model);
    let count = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let bytes = EVENT.len();
    format!(
        "{count} × {model}, shared by the client and all servers; events of {bytes} B; in \
         brackets, how many times the embedded store's. `cargo bench --profile quick --bench store`"
    )
}

/// The results of one store; the rate is in appends per second.
struct Measured {
    append: Times,
    rate: f64,
    wait: Times,
    swap: Times,
    load: Times,
    read: Times,
    callback: Times,
}

async fn measure(
    name: &str,
    store: Arc<dyn Store>,
    callback: Times,
    first: Option<&Measured>,
) -> Measured {
    let (append, wait) = append_and_wait(&store).await;
    let (swap, load) = swap_and_load(&*store).await;
    let (rate, read) = (many(&store).await, read(&*store).await);
    let measured = Measured { append, rate, wait, swap, load, read, callback };
    let rate = match first {
        Some(first) => format!("{:.0}/s ({:.2})", measured.rate, measured.rate / first.rate),
        None => format!("{:.0}/s", measured.rate),
    };
    let show = |times: fn(&Measured) -> &Times| times(&measured).show(first.map(times));
    println!(
        "| {name} | {} | {rate} | {} | {} | {} | {} | {} |",
        show(|of| &of.append),
        show(|of| &of.wait),
        show(|of| &of.swap),
        show(|of| &of.load),
        show(|of| &of.read),
        show(|of| &of.callback),
    );
    store.close().await;
    measured
}

/// Measures appends, one after the other, and the time from each acknowledgement until a follower
/// of the same store has delivered the event.
async fn append_and_wait(store: &Arc<dyn Store>) -> (Times, Times) {
    let (folded, mut position) = watch::channel(0);
    let mut followed = store.follow(None);
    let following = tokio::spawn(async move {
        while let Some(item) = followed.next().await {
            if let Followed::Event(_, entry) = item {
                folded.send_replace(entry.position.sequence);
            }
        }
    });
    let log = LogName::request("appended");
    let (mut appends, mut waits) = (Times::default(), Times::default());
    for _ in 0..ONE_BY_ONE {
        let began = Instant::now();
        let Position { sequence, .. } = store.append(&log, Uuid::new_v4(), EVENT).await.unwrap();
        appends.push(began);
        let began = Instant::now();
        position.wait_for(|position| *position >= sequence).await.unwrap();
        waits.push(began);
    }
    following.abort();
    (appends, waits)
}

/// Returns the appends per second of many concurrent writers.
async fn many(store: &Arc<dyn Store>) -> f64 {
    let began = Instant::now();
    let writers = (0..WRITERS).map(|writer| {
        let store = Arc::clone(store);
        tokio::spawn(async move {
            let log = LogName::request(format!("many-{writer}"));
            for _ in 0..EACH {
                store.append(&log, Uuid::new_v4(), EVENT).await.unwrap();
            }
        })
    });
    join_all(writers).await.into_iter().for_each(Result::unwrap);
    let appends = u32::try_from(WRITERS * EACH).expect("it is small");
    f64::from(appends) / began.elapsed().as_secs_f64()
}

async fn swap_and_load(store: &dyn Store) -> (Times, Times) {
    let cell = CellName::permanent("cell");
    let (mut swaps, mut loads) = (Times::default(), Times::default());
    let mut version = None;
    for _ in 0..ONE_BY_ONE {
        let began = Instant::now();
        let Swap::Swapped(now) = store.swap(&cell, version, EVENT).await.unwrap() else {
            panic!("nobody else swaps")
        };
        swaps.push(began);
        version = Some(now);
        let began = Instant::now();
        store.load(&cell).await.unwrap();
        loads.push(began);
    }
    (swaps, loads)
}

async fn read(store: &dyn Store) -> Times {
    let log = LogName::request("read");
    for _ in 0..READ {
        store.append(&log, Uuid::new_v4(), EVENT).await.unwrap();
    }
    let mut reads = Times::default();
    for _ in 0..ONE_BY_ONE {
        let began = Instant::now();
        assert_eq!(store.read(&log, 0, MAX_READ).await.unwrap().len(), READ);
        reads.push(began);
    }
    reads
}

/// Measures the time from before a callback is sent until a watcher has the change, through a
/// gateway with this NATS, or with the embedded store.
async fn callback_to_watcher(nats: Option<(&str, usize)>) -> Times {
    let upstream = Upstream::manual().await;
    let mut config = upstream.with_callbacks();
    if let Some((url, replicas)) = nats {
        config = upstream.replica(&config, url, replicas, 0);
        // Other streams than those of the other measurements.
        "watched".clone_into(&mut config.store.nats.prefix);
    }
    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "key", 0..CALLBACKS).await.unwrap();
    let mut watching = watch_request(&mut client, &id, "").await.unwrap();
    watching.event().await;
    let (sender, mut callback) = (Sender::new(&gateway), Times::default());
    for n in 0..CALLBACKS {
        let body = about(&id, &device(n), "Success");
        let began = Instant::now();
        let heard = async {
            watching.event().await;
            callback.push(began);
        };
        let (status, ()) = tokio::join!(sender.post(&body), heard);
        assert_eq!(status, 200);
    }
    gateway.stop().await;
    callback
}

/// The durations of many operations of one kind.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn push(&mut self, began: Instant) {
        self.0.push(began.elapsed());
    }

    fn show(&self, first: Option<&Self>) -> String {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let of =
            |hundredth: usize| sorted[(sorted.len() - 1) * hundredth / 100].as_secs_f64() * 1e3;
        let times = format!("{:.3}, {:.3} ms", of(50), of(99));
        match first {
            Some(first) => {
                let mut sorted = first.0.clone();
                sorted.sort_unstable();
                let first = sorted[(sorted.len() - 1) / 2].as_secs_f64() * 1e3;
                format!("{times} ({:.1})", of(50) / first)
            }
            None => times,
        }
    }
}
