//! Promises 5 and 6 of the README: a slow watcher misses nothing, and a thousand watchers cost one
//! poll.

use futures_util::future::join_all;
use thingspace_gateway::{
    identity::RequestId,
    proto::{
        esim::{DeviceState, DeviceStatus, StatusView, watch_request_response::Event},
        storage,
    },
    requests::{KEPT_TRANSITIONS, fold::event::Kind},
    simulator::{DeviceResult, Endpoint, Fault, Gate, What, When},
    store::{Store, embedded::Embedded},
};

use tonic::transport::Endpoint as Peer;

use crate::{Dice, RETENTION, append_all, big::resume_token, harness::*};

/// Polls that the test lets through one by one, and the ledger's count of them when the request is
/// finished.
async fn polls_with(watchers: usize) -> u64 {
    /// On one connection.
    const STREAMS: usize = 250;
    const DEVICES: usize = 8;

    let upstream = Upstream::manual().await;
    let gates: Vec<_> = (0..DEVICES).map(|_| Gate::default()).collect();
    for gate in &gates {
        upstream.sim.inject(Fault::once(
            Endpoint::Status,
            When::BeforeEffect,
            What::Hold(gate.clone()),
        ));
    }
    let gateway = upstream.gateway().await;
    let id = place(&mut gateway.client().await, "k", 0..DEVICES).await.unwrap();
    let mut clients = Vec::new();
    for _ in 0..watchers.div_ceil(STREAMS) {
        clients.push(gateway.client().await);
    }
    let mut watching = Vec::new();
    for n in 0..watchers {
        let mut watching_now = watch(&mut clients[n / STREAMS], &id, "").await.unwrap();
        assert!(matches!(watching_now.event().await.0, Event::Snapshot(_)));
        watching.push(watching_now);
    }
    for (n, gate) in gates.iter().enumerate() {
        let expected = n as u64 + 1;
        upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls() >= expected).await;
        upstream.sim.finish(&id, &device(n).eid, DeviceResult::Success);
        gate.open();
        join_all(watching.iter_mut().map(async |watching| {
            let Event::Change(change) = watching.event().await.0 else { panic!("not a change") };
            let changed: Vec<_> =
                change.devices.into_iter().map(|d| d.identifiers.unwrap().eid).collect();
            assert_eq!(changed, [device(n).eid]);
        }))
        .await;
    }
    for watching in watching {
        assert_eq!(watching.rest().await, []);
    }
    gateway.stop().await;
    let ledger = upstream.sim.ledger();
    assert_eq!(ledger.peak(Endpoint::Status), 1);
    ledger.polls_of(&id)
}

/// Every poll is held until the test has changed something and opens its gate, so the counts are
/// exact.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_watchers_cost_as_many_polls_as_one() {
    let one = polls_with(1).await;
    assert_eq!(polls_with(1_000).await, one);
}

/// Each moves twice, most in a transition of its own: 10,000 transitions.
const DEVICES: usize = 5_000;
/// The devices that end while the watcher reads.
const LIVE: usize = 1_000;
/// The most devices that end between two polls.
const CHUNK: u64 = 200;

fn called_back(n: usize, status: storage::StatusClass) -> Kind {
    Kind::CalledBack(storage::CalledBack {
        account: ACCOUNT.to_owned(),
        device: Some(stored(n)),
        status: status.into(),
        fault: None,
        profile: None,
    })
}

fn stored(n: usize) -> storage::Device {
    let ids = device(n);
    storage::Device { eid: ids.eid, iccid: ids.iccid, imei: ids.imei, mdn: ids.mdn }
}

fn told(device: &DeviceStatus) -> (String, DeviceState) {
    (device.identifiers.clone().unwrap().eid, device.state())
}

/// Watchers resume with old tokens and read slowly while the last devices end: one from the first
/// revision and one from the middle, both before the transitions that are kept in memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_watcher_gets_every_transition_once_and_in_order() {
    let upstream = Upstream::manual().await;
    let config = upstream.quiet();
    let id = upstream.sim.add_request(
        thingspace_gateway::identity::AccountName::parse(ACCOUNT).unwrap(),
        (0..DEVICES).map(|n| thingspace_gateway::requests::fold::event::from_stored(&stored(n))),
    );
    for n in 0..DEVICES - LIVE {
        upstream.sim.finish(&id, &device(n).eid, DeviceResult::Failed);
    }

    // What happened before: every device waited, in an order that is not the order's, and most have
    // failed.
    let scattered = |n: usize| n * 1_987 % DEVICES;
    let mut expected: Vec<_> = (0..DEVICES)
        .map(|n| (scattered(n), DeviceState::Waiting, storage::StatusClass::Waiting))
        .collect();
    expected.extend(
        (0..DEVICES)
            .map(scattered)
            .filter(|n| *n < DEVICES - LIVE)
            .map(|n| (n, DeviceState::Failed, storage::StatusClass::Failed)),
    );
    let accepted = Kind::Accepted(storage::Accepted {
        order_id: "order".to_owned(),
        account: ACCOUNT.to_owned(),
        service_plan: String::new(),
        devices: (0..DEVICES).map(stored).collect(),
        caller: String::new(),
    });
    let events = std::iter::once(accepted)
        .chain(expected.iter().map(|(n, _, class)| called_back(*n, *class)));
    let store = Embedded::open(&config.store.path, RETENTION).unwrap();
    let positions = append_all(&store, events.map(|kind| (id.to_string(), kind))).await;
    let middle = positions.len() / 2;
    let tokens = [
        resume_token(&store, id.as_str(), positions[0], 1).await,
        resume_token(&store, id.as_str(), positions[middle], middle as u64 + 1).await,
    ];
    store.close().await;

    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    let mut dice = Dice::new();
    let mut watchers = Vec::new();
    let mut slow = narrow_client(&gateway).await;
    for token in &tokens {
        watchers.push((watch(&mut slow, &id, token).await.unwrap(), Vec::new()));
    }
    let mut expected: Vec<_> =
        expected.into_iter().map(|(n, state, _)| (device(n).eid, state)).collect();
    let mut ending: Vec<_> = (DEVICES - LIVE..DEVICES).collect();
    while !ending.is_empty() {
        let chunk = ending.len().min(1 + usize::try_from(dice.roll(CHUNK)).unwrap());
        // One poll reports them in the sequence of the order.
        for n in ending.drain(..chunk) {
            upstream.sim.finish(&id, &device(n).eid, DeviceResult::Success);
            expected.push((device(n).eid, DeviceState::Succeeded));
        }
        poll(&mut client, &id, DEVICES - ending.len()).await;
        for (watching, seen) in &mut watchers {
            // One message for each poll, so they always lag.
            let Event::Change(change) = watching.event().await.0 else { panic!("not a change") };
            seen.extend(change.devices.iter().map(told));
        }
    }
    for (from, (watching, mut seen)) in [0, middle].into_iter().zip(watchers) {
        seen.extend(changes(watching).await);
        assert_eq!(seen.len(), expected.len() - from);
        assert!(seen == expected[from..]);
    }
    gateway.stop().await;
}

/// A watcher stalls while more transitions happen than are kept in memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_watcher_continues_where_it_was() {
    /// Each moves twice.
    const DEVICES: usize = KEPT_TRANSITIONS / 2 + 50;

    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..DEVICES).await.unwrap();
    let mut watching = watch(&mut narrow_client(&gateway).await, &id, "").await.unwrap();
    let (_, token) = watching.snapshot().await;
    let mut expected = Vec::new();
    for (outcome, state) in [
        (DeviceResult::Word("warning"), DeviceState::Waiting),
        (DeviceResult::Failed, DeviceState::Failed),
    ] {
        for n in 0..DEVICES {
            upstream.sim.finish(&id, &device(n).eid, outcome);
            expected.push((device(n).eid, state));
            let revision = i64::try_from(expected.len()).unwrap() + 1;
            eventually("a poll tells of one device", || {
                let mut client = client.clone();
                let mut call = status_call(&id);
                call.set_view(StatusView::Basic);
                async move { get_status(&mut client, call).await.unwrap().revision == revision }
            })
            .await;
        }
    }
    let read = gateway.requests.events_read();
    let mut watched = changes_until_slow(watching, token).await;
    if let Some(token) = watched.resume {
        watched.changes.extend(changes(watch(&mut client, &id, &token).await.unwrap()).await);
    }
    assert!(watched.changes == expected);
    assert!(
        gateway.requests.events_read() > read + expected.len() as u64,
        "it did not fall behind"
    );
    gateway.stop().await;
}

/// A client whose connection holds back the gateway as soon as a few changes are unread.
async fn narrow_client(gateway: &Gateway) -> Client {
    /// The size of the window, in bytes.
    const WINDOW: u32 = 1_000;
    let endpoint = Peer::from_shared(format!("http://{}", gateway.address)).unwrap();
    let channel = endpoint.initial_stream_window_size(WINDOW).connect().await.unwrap();
    Client::new(channel)
}

struct Watched {
    changes: Vec<(String, DeviceState)>,
    /// The last token of a watch that the gateway ended, because its reader was too slow.
    resume: Option<String>,
}

/// Returns the remaining changes of a watch, which the gateway may end with SLOW_READER. `token` is
/// the last one that was received.
async fn changes_until_slow(mut watching: Watching, mut token: String) -> Watched {
    let (mut changes, mut parts) = (Vec::new(), Vec::new());
    loop {
        let message = match watching.next().await {
            Ok(Some(message)) => message,
            Ok(None) => return Watched { changes, resume: None },
            Err(status) => {
                assert_eq!(reason(&status), "SLOW_READER", "{status:?}");
                return Watched { changes, resume: Some(token) };
            }
        };
        if let Some(Event::Change(change)) = message.event {
            parts.extend(change.devices.iter().map(told));
        }
        if !message.more {
            token = message.resume_token;
            changes.append(&mut parts);
        }
    }
}

/// Returns the remaining changes of a watch.
async fn changes(watching: Watching) -> Vec<(String, DeviceState)> {
    let mut changes = Vec::new();
    for message in watching.rest().await {
        match message.event.unwrap() {
            Event::Change(change) => changes.extend(change.devices.iter().map(told)),
            Event::Heartbeat(_) => {}
            Event::Snapshot(_) => panic!("a watch does not start over"),
        }
    }
    changes
}

/// Repeats a status call until this number of devices is finished. A query may already be in
/// flight.
async fn poll(client: &mut Client, id: &RequestId, finished: usize) {
    eventually("the poll tells", || {
        let mut client = client.clone();
        let mut status_call = status_call(id);
        status_call.set_view(StatusView::Basic);
        async move {
            let counts = get_status(&mut client, status_call).await.unwrap().counts.unwrap();
            usize::try_from(counts.succeeded + counts.failed).unwrap() == finished
        }
    })
    .await;
}
