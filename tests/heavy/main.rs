//! What takes long or needs a machine: crashes of the real binary, load, the largest orders, a full
//! disk, a long history.
//!
//! Run last and one at a time: `cargo test --test heavy -- --test-threads=1`.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test that cannot go on has failed; nothing links to a test"
)]

#[allow(dead_code, reason = "shared with the other black-box tests")]
#[path = "../it/harness.rs"]
mod harness;

#[path = "../it/matrix/failure.rs"]
mod failure;
#[allow(dead_code, reason = "shared with the other black-box tests")]
#[path = "../it/fleet.rs"]
mod replicas;

#[allow(dead_code, reason = "shared with tests that do more to their servers")]
#[path = "../it/nats_server.rs"]
mod nats_server;

#[allow(dead_code, reason = "shared with the other black-box tests")]
#[path = "../it/callbacks/sender.rs"]
mod sender;

mod big;
mod callbacks;
mod cluster;
mod crash;
mod disk;
mod flood;
mod forgotten;

mod load;
mod lockout;
mod memory;
mod odd_answers;
mod outage;
mod random_faults;
mod rolling;
mod slow_senders;
mod start;
mod watchers;

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use futures_util::future::join_all;
use thingspace_gateway::{
    config::Config,
    identity::RequestId,
    requests::fold::event::{self, Kind},
    simulator::{Ledger, PlacedOrder},
    store::{LogName, Position, Store, embedded::Embedded},
};
use tokio::task::unconstrained;
use uuid::Uuid;

use harness::{Client, Upstream, ask, device, question};

/// Of a store that is written by a test; longer than any.
const RETENTION: Duration = Duration::from_hours(1_000);

/// A configuration by which nothing is polled, but for the test's own questions.
fn quiet(upstream: &Upstream) -> Config {
    let mut config = upstream.config();
    config.polling.first = Duration::from_mins(50);
    config.polling.max_watched = config.polling.first;
    config.polling.max = config.polling.first;
    config
}

/// Appends events to logs of requests, in this order and quickly: many share a commit.
async fn append_all(
    store: &Embedded,
    events: impl IntoIterator<Item = (String, Kind)>,
) -> Vec<Position> {
    /// Events that the store queues without making anybody wait, which would mix them up.
    const CHUNK: usize = 2_000;
    let mut events = events.into_iter();
    let mut positions = Vec::new();
    loop {
        let appends: Vec<_> = events
            .by_ref()
            .take(CHUNK)
            .map(|(id, kind)| async move {
                store
                    .append(&LogName::request(id), Uuid::now_v7(), event::encode(kind, None))
                    .await
                    .unwrap()
            })
            .collect();
        if appends.is_empty() {
            assert!(positions.is_sorted());
            return positions;
        }
        positions.extend(unconstrained(join_all(appends)).await);
    }
}

/// Random numbers, another sequence in every run. What a failure needs is in its message, not in a
/// seed: the moments of a crash cannot be repeated anyway.
struct Dice(RandomState, u64);

impl Dice {
    fn new() -> Self {
        Self(RandomState::new(), 0)
    }

    /// Less than `bound`.
    fn roll(&mut self, bound: u64) -> u64 {
        self.1 += 1;
        self.0.hash_one(self.1) % bound
    }
}

/// No device is in more than one order.
#[track_caller]
fn assert_nothing_ordered_twice(ledger: &Ledger) {
    let mut seen = HashSet::new();
    for order in &ledger.orders {
        for device in order.devices.iter() {
            assert!(seen.insert(device.eid.clone()), "ordered twice: {order:?}");
        }
    }
}

/// Which request a device was ordered in.
fn placed(ledger: &Ledger) -> HashMap<String, RequestId> {
    let of = |order: &PlacedOrder| {
        let id = order.request_id.clone();
        order
            .devices
            .iter()
            .map(move |device| (device.eid.as_str().to_owned(), id.clone()))
            .collect::<Vec<_>>()
    };
    ledger.orders.iter().flat_map(of).collect()
}

/// The gateway knows a request, with all its devices.
async fn assert_known(
    client: &mut Client,
    id: &RequestId,
    devices: impl IntoIterator<Item = usize>,
) {
    let status = ask(client, question(id)).await.unwrap();
    let shown: Vec<_> =
        status.devices.into_iter().map(|device| device.identifiers.unwrap()).collect();
    assert_eq!(shown, devices.into_iter().map(device).collect::<Vec<_>>(), "request {id}");
}
