//! Tests that take long or need a machine for themselves: crashes of the real binary, load, the
//! largest orders, a full disk, a long history.
//!
//! They run last and one at a time: `cargo test --test heavy -- --test-threads=1`.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test that cannot continue has failed; nothing links to a test"
)]

mod abuse;
mod big;
mod callbacks;
mod cluster;
mod crash;
mod disk;
mod drain;
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
use test_support::{failure, harness, http2, issuer, nats_server, pki, sender};
use thingspace_gateway::{
    identity::RequestId,
    requests::fold::event::{self, Kind},
    simulator::{Ledger, PlacedOrder},
    store::{LogName, Position, Store, embedded::Embedded},
};
use tokio::task::unconstrained;
use uuid::Uuid;

use harness::{Client, device, get_status, status_call};

/// The retention of a store that a test writes; longer than any test.
const RETENTION: Duration = Duration::from_hours(1_000);

/// Appends events to the logs of requests, in this order. Many share a commit.
async fn append_all(
    store: &Embedded,
    events: impl IntoIterator<Item = (String, Kind)>,
) -> Vec<Position> {
    /// The store queues so many events without waiting, which would change their order.
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

/// Random numbers, different in every run. A seed would be useless, because the moment of a crash
/// cannot be repeated.
struct Dice(RandomState, u64);

impl Dice {
    fn new() -> Self {
        Self(RandomState::new(), 0)
    }

    /// A number below `bound`.
    fn roll(&mut self, bound: u64) -> u64 {
        self.1 += 1;
        self.0.hash_one(self.1) % bound
    }
}

/// Checks that no device is in more than one order.
#[track_caller]
fn assert_nothing_ordered_twice(ledger: &Ledger) {
    let mut seen = HashSet::new();
    for order in &ledger.orders {
        for device in order.devices.iter() {
            assert!(seen.insert(device.eid.clone()), "ordered twice: {order:?}");
        }
    }
}

/// The request of each device, by EID.
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

/// Checks that the gateway knows a request with exactly these devices.
async fn assert_known(
    client: &mut Client,
    id: &RequestId,
    devices: impl IntoIterator<Item = usize>,
) {
    let status = get_status(client, status_call(id)).await.unwrap();
    let shown: Vec<_> =
        status.devices.into_iter().map(|device| device.identifiers.unwrap()).collect();
    assert_eq!(shown, devices.into_iter().map(device).collect::<Vec<_>>(), "request {id}");
}
