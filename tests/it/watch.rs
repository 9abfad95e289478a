//! Promises 5 and 6 of the README: a watcher misses nothing, and a thousand watchers cost no more
//! than one.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use thingspace_gateway::{
    identity::RequestId,
    proto::{
        esim::{
            DeviceState, DeviceStatus, RequestChange, RequestState, RequestStatus,
            WatchRequestRequest, WatchRequestResponse, watch_request_response::Event,
        },
        storage,
    },
    requests::fold::event::{self, Kind},
    simulator::{DeviceResult, Endpoint, Fault, Gate, What, When},
    store::{LogName, Store, embedded::Embedded},
};
use tonic::{Code, Request, transport};
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::harness::*;

const EVER: Duration = Duration::from_hours(1);

/// The EID and the state of each device in a change.
fn told(change: &RequestChange) -> Vec<(String, DeviceState)> {
    let of = |device: &DeviceStatus| (device.identifiers.clone().unwrap().eid, device.state());
    change.devices.iter().map(of).collect()
}

/// The same for all changes among messages.
fn changes(messages: &[WatchRequestResponse]) -> Vec<(String, DeviceState)> {
    let change = |message: &WatchRequestResponse| match &message.event {
        Some(Event::Change(change)) => told(change),
        Some(Event::Heartbeat(_)) => Vec::new(),
        other => panic!("not expected: {other:?}"),
    };
    messages.iter().flat_map(change).collect()
}

async fn change(watching: &mut Watching) -> RequestChange {
    match watching.event().await.0 {
        Event::Change(change) => change,
        other => panic!("no change: {other:?}"),
    }
}

async fn snapshot(watching: &mut Watching) -> RequestStatus {
    watching.snapshot().await.0
}

#[tokio::test]
async fn a_snapshot_then_each_change_then_the_end() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..2).await.unwrap();
    let mut watching = watch(&mut client, &id, "").await.unwrap();
    let first = snapshot(&mut watching).await;
    assert_eq!((first.account_name.as_str(), first.request_id.as_str()), (ACCOUNT, id.as_str()));
    assert_eq!((first.state(), first.revision), (RequestState::Pending, 1));
    assert_eq!(states(&first), [DeviceState::Pending; 2]);

    upstream.sim.finish(&id, &device(1).eid, DeviceResult::Word("Warning"));
    let waiting = change(&mut watching).await;
    assert_eq!((waiting.state(), waiting.revision), (RequestState::Pending, 2));
    assert_eq!(told(&waiting), [(device(1).eid, DeviceState::Waiting)]);
    upstream.sim.finish(&id, &device(0).eid, DeviceResult::Success);
    let succeeded = change(&mut watching).await;
    assert_eq!((succeeded.revision, succeeded.counts.unwrap().pending), (3, 1));
    assert_eq!(told(&succeeded), [(device(0).eid, DeviceState::Succeeded)]);
    upstream.sim.finish(&id, &device(1).eid, DeviceResult::Failed);
    let last = change(&mut watching).await;
    assert_eq!((last.state(), last.revision), (RequestState::PartiallySucceeded, 4));
    assert_eq!(told(&last), [(device(1).eid, DeviceState::Failed)]);
    assert!(watching.rest().await.is_empty());
    gateway.stop().await;
}

#[tokio::test]
async fn a_finished_request_is_a_snapshot() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..2).await.unwrap();
    upstream.sim.finish_all(&id, DeviceResult::Success);
    watch(&mut client, &id, "").await.unwrap().rest().await;
    let messages = watch(&mut client, &id, "").await.unwrap().rest().await;
    let [
        WatchRequestResponse { event: Some(Event::Snapshot(snapshot)), resume_token, more: false },
    ] = &messages[..]
    else {
        panic!("{messages:?}");
    };
    assert_eq!((snapshot.state(), resume_token.is_empty()), (RequestState::Succeeded, false));
    assert_eq!(states(snapshot), [DeviceState::Succeeded; 2]);
    gateway.stop().await;
}

#[tokio::test]
async fn each_token_resumes_after_its_message() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..4).await.unwrap();
    let mut watching = watch(&mut client, &id, "").await.unwrap();
    let mut tokens = vec![watching.event().await.1];
    let mut all = Vec::new();
    for n in [2, 0, 3, 1] {
        upstream.sim.finish(&id, &device(n).eid, DeviceResult::Success);
        let (Event::Change(change), token) = watching.event().await else { panic!("no change") };
        all.extend(told(&change));
        tokens.push(token);
    }
    assert!(watching.rest().await.is_empty());
    for (at, token) in tokens.iter().enumerate() {
        let messages = watch(&mut client, &id, token).await.unwrap().rest().await;
        assert_eq!(changes(&messages), all[at..], "after message {at}");
        // Also after the last change.
        assert!(!messages.is_empty());
        assert_eq!(messages.last().unwrap().resume_token, *tokens.last().unwrap());
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_quiet_stream_shows_that_it_is_alive() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    config.grpc.heartbeat = Duration::from_millis(50);
    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..3).await.unwrap();
    upstream.sim.finish(&id, &device(0).eid, DeviceResult::Success);
    get_status(&mut client, status_call(&id)).await.unwrap();
    let mut watching = watch(&mut client, &id, "").await.unwrap();
    snapshot(&mut watching).await;
    let mut token = String::new();
    for _ in 0..3 {
        let message = watching.next().await.unwrap().unwrap();
        let Some(Event::Heartbeat(heartbeat)) = message.event else { panic!("{message:?}") };
        assert_eq!((heartbeat.state(), heartbeat.revision), (RequestState::Pending, 2));
        assert_eq!(heartbeat.counts.unwrap().succeeded, 1);
        token = message.resume_token;
    }
    drop(watching);
    upstream.sim.finish_all(&id, DeviceResult::Success);
    get_status(&mut client, status_call(&id)).await.unwrap();
    let rest = watch(&mut client, &id, &token).await.unwrap().rest().await;
    assert_eq!(changes(&rest), [1, 2].map(|n| (device(n).eid, DeviceState::Succeeded)));
    gateway.stop().await;
}

/// Watches of one request on a few connections, each after its snapshot.
async fn watch_often(gateway: &Gateway, id: &RequestId, count: usize) -> Vec<Watching> {
    const CONNECTIONS: usize = 4;
    let mut watchings = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = gateway.client().await;
        let opening = (0..count.div_ceil(CONNECTIONS)).map(|_| {
            let mut client = client.clone();
            async move {
                let mut watching = watch(&mut client, id, "").await.unwrap();
                snapshot(&mut watching).await;
                watching
            }
        });
        watchings.extend(join_all(opening).await);
    }
    watchings
}

#[tokio::test]
async fn watchers_cost_nothing_upstream() {
    let mut seen = BTreeSet::new();
    for watchers in [1, 1_000] {
        let upstream = Upstream::manual().await;
        let gateway = Gateway::start(upstream.quiet()).await;
        let mut client = gateway.client().await;
        let id = place(&mut client, "k", 0..3).await.unwrap();
        let watchings = watch_often(&gateway, &id, watchers).await;
        assert_eq!(upstream.sim.ledger().polls_of(&id), 0);
        for n in 0..3 {
            upstream.sim.finish(&id, &device(n).eid, DeviceResult::Success);
            get_status(&mut client, status_call(&id)).await.unwrap();
        }
        for rest in join_all(watchings.into_iter().map(Watching::rest)).await {
            // All watchers saw the same changes, even if their messages were cut differently.
            let revision = |message: &WatchRequestResponse| match &message.event {
                Some(Event::Change(change)) => change.revision,
                _ => 0,
            };
            seen.insert((changes(&rest), rest.iter().map(revision).max()));
        }
        assert_eq!(upstream.sim.ledger().polls_of(&id), 3, "with {watchers} watchers");
        gateway.stop().await;
    }
    let all: Vec<_> = (0..3).map(|n| (device(n).eid, DeviceState::Succeeded)).collect();
    assert_eq!(seen, BTreeSet::from([(all, Some(4))]));
}

#[tokio::test]
async fn watchers_share_the_poll_in_progress() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let gate = Gate::default();
    upstream.sim.inject(Fault::always(
        Endpoint::Status,
        When::BeforeEffect,
        What::Hold(gate.clone()),
    ));
    let id = place(&mut client, "k", 0..3).await.unwrap();
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.in_flight(Endpoint::Status) == 1).await;
    let watchings = watch_often(&gateway, &id, 1_000).await;
    upstream.sim.finish_all(&id, DeviceResult::Success);
    gate.open();
    for rest in join_all(watchings.into_iter().map(Watching::rest)).await {
        assert_eq!(changes(&rest).len(), 3);
    }
    assert_eq!(upstream.sim.ledger().polls_of(&id), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn a_drain_ends_a_watch_with_its_token() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..2).await.unwrap();
    let mut watching = watch(&mut client, &id, "").await.unwrap();
    let (_, token) = watching.event().await;
    gateway.stop().await;
    let status = watching.next().await.unwrap_err();
    assert_eq!(kind(&status), (Code::Unavailable, "DRAINING".to_owned()));
    let resume_token = &status.get_details_error_info().unwrap().metadata["resumeToken"];
    assert_eq!(*resume_token, token);

    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    upstream.sim.finish_all(&id, DeviceResult::Success);
    get_status(&mut client, status_call(&id)).await.unwrap();
    let rest = watch(&mut client, &id, resume_token).await.unwrap().rest().await;
    assert_eq!(changes(&rest), [0, 1].map(|n| (device(n).eid, DeviceState::Succeeded)));
    gateway.stop().await;
}

#[tokio::test]
async fn a_request_that_is_given_up() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.config();
    config.polling.give_up = Duration::from_millis(1);
    config.polling.min_age = Duration::ZERO;
    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    let gate = Gate::default();
    upstream.sim.inject(Fault::once(
        Endpoint::Status,
        When::BeforeEffect,
        What::Hold(gate.clone()),
    ));
    let id = place(&mut client, "k", [1]).await.unwrap();
    let mut watching = watch(&mut client, &id, "").await.unwrap();
    assert!(!snapshot(&mut watching).await.polling_stopped);
    gate.open();
    let stopped = change(&mut watching).await;
    assert_eq!((stopped.state(), stopped.polling_stopped), (RequestState::Pending, true));
    let status = watching.next().await.unwrap_err();
    assert_eq!(kind(&status), (Code::FailedPrecondition, "STILL_PENDING".to_owned()));

    let polls = upstream.sim.ledger().polls_of(&id);
    let mut watching = watch(&mut client, &id, "").await.unwrap();
    assert!(snapshot(&mut watching).await.polling_stopped);
    assert_eq!(kind(&watching.next().await.unwrap_err()).1, "STILL_PENDING");
    assert_eq!(upstream.sim.ledger().polls_of(&id), polls + 1);

    upstream.sim.finish_all(&id, DeviceResult::Success);
    let rest = watch(&mut client, &id, "").await.unwrap().rest().await;
    let [WatchRequestResponse { event: Some(Event::Snapshot(end)), .. }] = &rest[..] else {
        panic!("not one snapshot: {rest:?}")
    };
    assert_eq!(end.state(), RequestState::Succeeded);
    assert_eq!(upstream.sim.ledger().polls_of(&id), polls + 2);
    gateway.stop().await;
}

#[tokio::test]
async fn a_caller_s_deadline_ends_its_watch() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", [1]).await.unwrap();
    let mut request = Request::new(WatchRequestRequest {
        account_name: ACCOUNT.to_owned(),
        request_id: id.to_string(),
        resume_token: String::new(),
    });
    request.set_timeout(Duration::from_secs(1));
    let mut messages = client.watch_request(request).await.unwrap().into_inner();
    assert!(within("a snapshot", messages.message()).await.unwrap().is_some());
    let status = within("the end", messages.message()).await.unwrap_err();
    assert_eq!(kind(&status), (Code::DeadlineExceeded, "DEADLINE".to_owned()));
    gateway.stop().await;
}

#[tokio::test]
async fn a_slow_reader_misses_nothing() {
    const DEVICES: usize = 3_000;
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..DEVICES).await.unwrap();
    // The snapshot exceeds the window, so the gateway has to wait for this reader.
    let narrow = transport::Endpoint::from_shared(format!("http://{}", gateway.address)).unwrap();
    let narrow = narrow.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    let mut slow = Client::new(narrow.connect().await.unwrap());
    let mut watching = watch(&mut slow, &id, "").await.unwrap();
    for n in 0..5 {
        upstream.sim.finish(&id, &device(n).eid, DeviceResult::Word("Warning"));
        get_status(&mut client, status_call(&id)).await.unwrap();
    }
    upstream.sim.finish_all(&id, DeviceResult::Success);
    get_status(&mut client, status_call(&id)).await.unwrap();
    let first = snapshot(&mut watching).await;
    assert_eq!((first.revision, first.devices.len()), (1, DEVICES));
    let rest = watching.rest().await;
    let waiting = (0..5).map(|n| (device(n).eid, DeviceState::Waiting));
    let succeeded = (0..DEVICES).map(|n| (device(n).eid, DeviceState::Succeeded));
    assert!(changes(&rest).into_iter().eq(waiting.chain(succeeded)));
    gateway.stop().await;
}

#[tokio::test]
async fn a_watch_far_behind_reads_on_from_the_log() {
    // More transitions than are kept in memory.
    const CHANGES: usize = 1_500;
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..CHANGES).await.unwrap();
    let (_, token) = watch(&mut client, &id, "").await.unwrap().snapshot().await;
    gateway.stop().await;

    let store = Embedded::open(&upstream.quiet().store.path, EVER).unwrap();
    let log = LogName::request(id.as_str());
    let observed = |n| {
        Kind::Observed(storage::Observed {
            account: ACCOUNT.to_owned(),
            overall: storage::StatusClass::Pending.into(),
            devices: vec![storage::ObservedDevice {
                device: Some(event::to_stored(&upstream_device(n))),
                status: storage::StatusClass::Succeeded.into(),
            }],
            overall_only: false,
            complete: true,
        })
    };
    let appends =
        (0..CHANGES).map(|n| store.append(&log, Uuid::now_v7(), event::encode(observed(n), None)));
    let mut order: Vec<_> = join_all(appends)
        .await
        .into_iter()
        .map(Result::unwrap)
        .map(|position| position.sequence)
        .zip(0..)
        .collect();
    order.sort_unstable();
    let all: Vec<_> =
        order.into_iter().map(|(_, n)| (device(n).eid, DeviceState::Succeeded)).collect();
    store.close().await;

    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let mut watching = watch(&mut client, &id, &token).await.unwrap();
    let (Event::Change(first), token) = watching.event().await else { panic!("no change") };
    let first = told(&first);
    let rest = watching.rest().await;
    assert!([&first[..], &changes(&rest)].concat() == all);
    let resumed = watch(&mut client, &id, &token).await.unwrap().rest().await;
    assert!(changes(&resumed) == all[first.len()..]);
    gateway.stop().await;
}
