//! Callbacks before, after and during polls and answers: for own and external requests, and for
//! unknown orders.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use thingspace_gateway::{
    config::Config,
    identity::{AccountName, RequestId},
    proto::{
        esim::{
            DeviceState, DeviceStatus, RequestState, RequestStatus, WatchRequestResponse,
            watch_request_response::Event,
        },
        storage::{self, StatusClass},
    },
    requests::{Settlement, fold::event},
    simulator::{DeviceResult, Endpoint, Fault, Gate, What, When},
};
use tonic::{Code, Status};

use crate::harness::*;

pub fn account() -> AccountName {
    AccountName::parse(ACCOUNT).unwrap()
}

/// Returns a callback about the `n`th device.
pub fn says(n: usize, class: StatusClass) -> storage::CalledBack {
    let fault = (class == StatusClass::Failed).then(|| storage::Fault {
        code: "Service.FAILED.Reason".to_owned(),
        message: format!("no {n}"),
    });
    storage::CalledBack {
        device: Some(event::to_stored(&upstream_device(n))),
        status: class.into(),
        fault,
        ..storage::CalledBack::default()
    }
}

pub async fn call_back(gateway: &Gateway, id: &RequestId, n: usize, class: StatusClass) {
    gateway.requests.called_back(&account(), id, says(n, class)).await.unwrap();
}

/// Returns the final state of a watch, its devices by ICCID, and the number of changes.
fn end(messages: &[WatchRequestResponse]) -> (RequestState, Vec<DeviceStatus>, usize) {
    let (mut state, mut devices, mut changes) = (RequestState::Unspecified, BTreeMap::new(), 0);
    for message in messages {
        let changed = match message.event.as_ref().unwrap() {
            Event::Snapshot(snapshot) => {
                state = snapshot.state();
                &snapshot.devices
            }
            Event::Change(change) => {
                state = change.state();
                // Transitions that wait for the watcher may share a message.
                changes += change.devices.len();
                &change.devices
            }
            Event::Heartbeat(_) => continue,
        };
        for device in changed {
            devices.insert(device.identifiers.as_ref().unwrap().iccid.clone(), device.clone());
        }
    }
    (state, devices.into_values().collect(), changes)
}

#[track_caller]
fn assert_reason(device: &DeviceStatus, n: usize) {
    assert_eq!(device.identifiers.as_ref().unwrap().eid, upstream_device(n).eid.as_str());
    assert_eq!(device.state(), DeviceState::Failed);
    assert_eq!(
        device.fault.as_ref().map(|fault| fault.message.as_str()),
        Some(&*format!("no {n}"))
    );
}

/// Places an order whose answer is lost. Returns the id of its request.
async fn lose(upstream: &Upstream, client: &mut Client, key: &str, devices: &[usize]) -> RequestId {
    upstream.sim.inject(Fault::once(Endpoint::Download, When::AfterEffect, What::Drop));
    unknown(place(client, key, devices.iter().copied()).await);
    upstream.sim.ledger().orders.last().unwrap().request_id.clone()
}

#[track_caller]
fn unknown(placed: Result<RequestId, Status>) {
    assert_eq!(
        kind(&placed.unwrap_err()),
        (Code::FailedPrecondition, "ORDER_OUTCOME_UNKNOWN".to_owned())
    );
}

/// Waits until a call with the key of an unknown order returns an id.
async fn resolved(client: &Client, key: &str, devices: &[usize]) -> RequestId {
    let found = std::sync::Mutex::new(None);
    eventually("an order is resolved", || {
        let (mut client, found) = (client.clone(), &found);
        async move {
            let id = place(&mut client, key, devices.iter().copied()).await.ok();
            found.lock().unwrap().clone_from(&id);
            id.is_some()
        }
    })
    .await;
    found.into_inner().unwrap().unwrap()
}

async fn shown(client: &mut Client, id: &RequestId) -> RequestStatus {
    get_status(client, status_call(id)).await.unwrap()
}

async fn becomes_final(client: &Client, id: &RequestId) {
    eventually("a request is final", || {
        let mut client = client.clone();
        async move { shown(&mut client, id).await.state() != RequestState::Pending }
    })
    .await;
}

#[tokio::test]
async fn a_callback_before_the_posts_answer_is_kept() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let client = gateway.client().await;
    let order = HeldOrder::begin(&upstream, &client, "k", 0..2).await;
    let id = order.id.clone();
    call_back(&gateway, &id, 0, StatusClass::Failed).await;
    call_back(&gateway, &id, 1, StatusClass::Succeeded).await;
    assert!(!order.is_answered());
    assert_eq!(order.answer().await.unwrap(), id);

    let (state, devices, _) = end(&watch(&mut client.clone(), &id, "").await.unwrap().rest().await);
    assert_eq!(state, RequestState::PartiallySucceeded);
    assert_reason(&devices[0], 0);
    assert_eq!(devices[1].state(), DeviceState::Succeeded);
    assert_eq!(gateway.requests.overview().finished_by_callback, 1);
    assert_eq!(upstream.sim.ledger().polls(), 0);
}

#[tokio::test]
async fn a_callback_twice_at_the_same_moment_is_one() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..2).await.unwrap();
    let mut watching = watch(&mut client, &id, "").await.unwrap();
    // The snapshot. All later messages are changes.
    watching.event().await;
    let read = gateway.requests.events_read();
    join_all((0..10).map(|_| call_back(&gateway, &id, 0, StatusClass::Failed))).await;
    call_back(&gateway, &id, 1, StatusClass::Succeeded).await;
    let messages = watching.rest().await;
    let (state, devices, changes) = end(&messages);
    assert_eq!((state, changes), (RequestState::PartiallySucceeded, 2), "{messages:?}");
    assert_reason(&devices[0], 0);
    assert_eq!(gateway.requests.events_read() - read, 2);
}

#[tokio::test]
async fn a_late_warning_changes_nothing_and_a_late_reason_is_filled_in() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..2).await.unwrap();
    call_back(&gateway, &id, 0, StatusClass::Succeeded).await;
    let silent = storage::CalledBack { fault: None, ..says(1, StatusClass::Failed) };
    gateway.requests.called_back(&account(), &id, silent).await.unwrap();
    becomes_final(&client, &id).await;
    let before = shown(&mut client, &id).await;
    call_back(&gateway, &id, 0, StatusClass::Waiting).await;
    call_back(&gateway, &id, 1, StatusClass::Waiting).await;
    call_back(&gateway, &id, 1, StatusClass::Failed).await;
    eventually("the reason is filled in", || {
        let (mut client, id) = (client.clone(), &id);
        async move { shown(&mut client, id).await.devices[1].fault.is_some() }
    })
    .await;
    let after = shown(&mut client, &id).await;
    assert_eq!((after.state(), after.revision), (before.state(), before.revision + 1));
    assert_eq!(after.devices[0], before.devices[0]);
    assert_reason(&after.devices[1], 1);
}

#[tokio::test]
async fn a_callback_that_names_no_device_tells_the_reason_of_an_order_of_one() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let nameless = |n| storage::CalledBack { device: None, ..says(n, StatusClass::Failed) };
    let id = place(&mut client, "k", [0]).await.unwrap();
    gateway.requests.called_back(&account(), &id, nameless(0)).await.unwrap();
    becomes_final(&client, &id).await;
    assert_reason(&shown(&mut client, &id).await.devices[0], 0);
    // Before the answer to the order, too.
    let order = HeldOrder::begin(&upstream, &client, "early", 1..2).await;
    let id = order.id.clone();
    gateway.requests.called_back(&account(), &id, nameless(1)).await.unwrap();
    assert_eq!(order.answer().await.unwrap(), id);
    becomes_final(&client, &id).await;
    assert_reason(&shown(&mut client, &id).await.devices[0], 1);
    gateway.stop().await;
}

/// An account for whose requests callbacks arrive.
async fn called_back_once(gateway: &Gateway, client: &mut Client) {
    let id = place(client, "first", [1_000]).await.unwrap();
    call_back(gateway, &id, 1_000, StatusClass::Succeeded).await;
    becomes_final(client, &id).await;
}

fn with_grace(upstream: &Upstream, grace: Duration) -> Config {
    let mut config = upstream.with_callbacks();
    config.callbacks.grace = grace;
    config
}

#[tokio::test]
async fn a_final_result_of_a_poll_waits_for_the_callbacks_reason() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(with_grace(&upstream, Duration::from_hours(1))).await;
    let mut client = gateway.client().await;
    called_back_once(&gateway, &mut client).await;
    let id = place(&mut client, "k", 0..2).await.unwrap();
    let mut watching = watch(&mut client, &id, "").await.unwrap();
    // The snapshot. All later messages are changes.
    watching.event().await;
    upstream.sim.finish_all(&id, DeviceResult::Failed);
    for _ in 0..2 {
        let polls = upstream.sim.ledger().polls_of(&id);
        assert_eq!(states(&shown(&mut client, &id).await), [DeviceState::Pending; 2]);
        assert!(upstream.sim.ledger().polls_of(&id) > polls, "ThingSpace was asked");
    }
    call_back(&gateway, &id, 0, StatusClass::Failed).await;
    call_back(&gateway, &id, 1, StatusClass::Failed).await;
    let (state, devices, changes) = end(&watching.rest().await);
    assert_eq!((state, changes), (RequestState::Failed, 2));
    (0..2).for_each(|n| assert_reason(&devices[n], n));
    let overview = gateway.requests.overview();
    assert_eq!((overview.finished_by_callback, overview.finished_by_poll), (2, 0));
}

#[tokio::test]
async fn without_the_callback_polling_continues() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(with_grace(&upstream, Duration::from_millis(300))).await;
    let mut client = gateway.client().await;
    called_back_once(&gateway, &mut client).await;
    let id = place(&mut client, "k", 0..2).await.unwrap();
    let watching = watch(&mut client, &id, "").await.unwrap();
    upstream.sim.finish_all(&id, DeviceResult::Failed);
    let polls = upstream.sim.ledger().polls_of(&id);
    shown(&mut client, &id).await;
    let (state, devices, changes) = end(&watching.rest().await);
    assert_eq!((state, changes), (RequestState::Failed, 2));
    assert!(devices.iter().all(|device| device.fault.is_none()));
    assert_eq!(upstream.sim.ledger().polls_of(&id), polls + 1, "it is told without asking again");
    let overview = gateway.requests.overview();
    assert_eq!((overview.finished_by_callback, overview.finished_by_poll), (1, 1));

    // The next does not wait.
    let id = place(&mut client, "next", [5]).await.unwrap();
    upstream.sim.finish_all(&id, DeviceResult::Success);
    assert_eq!(shown(&mut client, &id).await.state(), RequestState::Succeeded);
    // Until callbacks arrive again.
    call_back(&gateway, &id, 5, StatusClass::Succeeded).await;
    let id = place(&mut client, "again", [6]).await.unwrap();
    upstream.sim.finish_all(&id, DeviceResult::Success);
    assert_eq!(shown(&mut client, &id).await.state(), RequestState::Pending);
    becomes_final(&client, &id).await;
}

#[tokio::test]
async fn a_restart_knows_that_callbacks_arrive() {
    let upstream = Upstream::manual().await;
    let config = with_grace(&upstream, Duration::from_hours(1));
    let gateway = Gateway::start(config.clone()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..2).await.unwrap();
    call_back(&gateway, &id, 0, StatusClass::Succeeded).await;
    gateway.stop().await;

    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    upstream.sim.finish_all(&id, DeviceResult::Failed);
    assert_eq!(
        states(&shown(&mut client, &id).await),
        [DeviceState::Succeeded, DeviceState::Pending]
    );
    call_back(&gateway, &id, 1, StatusClass::Failed).await;
    becomes_final(&client, &id).await;
    assert_reason(&shown(&mut client, &id).await.devices[1], 1);
}

#[tokio::test]
async fn without_callbacks_nothing_waits_for_them() {
    let upstream = Upstream::manual().await;
    let mut config = with_grace(&upstream, Duration::from_hours(1));
    let gateway = Gateway::start(config.clone()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..2).await.unwrap();
    call_back(&gateway, &id, 0, StatusClass::Succeeded).await;
    gateway.stop().await;

    config.callbacks.enabled = false;
    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    upstream.sim.finish_all(&id, DeviceResult::Failed);
    assert_eq!(
        states(&shown(&mut client, &id).await),
        [DeviceState::Succeeded, DeviceState::Failed]
    );
}

#[tokio::test]
async fn a_callback_settles_an_unknown_order() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = lose(&upstream, &mut client, "k", &[0, 1]).await;
    let unknown = async || gateway.requests.unknown_orders().await.unwrap().len();
    eventually("it is listed", async || unknown().await == 1).await;
    call_back(&gateway, &id, 1, StatusClass::Failed).await;
    assert_eq!(resolved(&client, "k", &[0, 1]).await, id);
    assert_reason(&shown(&mut client, &id).await.devices[1], 1);
    eventually("it is listed no more", async || unknown().await == 0).await;
    let ledger = upstream.sim.ledger();
    assert_eq!((ledger.orders.len(), ledger.calls(Endpoint::Download)), (1, 1));
}

#[tokio::test]
async fn a_callback_before_the_lost_answer_settles_the_order() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    config.thingspace.order_timeout = Duration::from_millis(500);
    let gateway = Gateway::start(config).await;
    let client = gateway.client().await;
    let order = HeldOrder::begin(&upstream, &client, "k", 0..2).await;
    let id = order.id.clone();
    call_back(&gateway, &id, 0, StatusClass::Succeeded).await;
    unknown(order.fails().await);
    assert_eq!(resolved(&client, "k", &[0, 1]).await, id);
}

#[tokio::test]
async fn a_restart_follows_the_callbacks_of_an_unknown_order() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = lose(&upstream, &mut client, "k", &[0, 1]).await;
    // ThingSpace answers no status query before the restart.
    upstream.sim.inject(Fault::once(Endpoint::Status, When::BeforeEffect, What::Drop));
    call_back(&gateway, &id, 0, StatusClass::Succeeded).await;
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls() == 1).await;
    gateway.stop().await;

    let gateway = Gateway::start(upstream.quiet()).await;
    assert_eq!(resolved(&gateway.client().await, "k", &[0, 1]).await, id);
}

#[tokio::test]
async fn a_drain_does_not_wait_for_a_candidate() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    config.thingspace.call_timeout = Duration::from_mins(5);
    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    let id = lose(&upstream, &mut client, "k", &[0]).await;
    upstream.sim.inject(Fault::once(
        Endpoint::Status,
        When::BeforeEffect,
        What::Hold(Gate::default()),
    ));
    call_back(&gateway, &id, 0, StatusClass::Succeeded).await;
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls() == 1).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_request_with_other_devices_settles_no_order() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = lose(&upstream, &mut client, "k", &[0, 1]).await;
    let others: [&[usize]; 4] = [&[0, 1, 2], &[0], &[0, 5], &[]];
    for devices in others {
        let devices: Vec<_> = devices.iter().map(|n| upstream_device(*n)).collect();
        let other = upstream.sim.add_request(account(), devices);
        upstream.sim.finish_all(&other, DeviceResult::Success);
        call_back(&gateway, &other, 0, StatusClass::Succeeded).await;
        upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls_of(&other) == 1).await;
        // Another callback of the same request is no new candidate.
        call_back(&gateway, &other, 1, StatusClass::Succeeded).await;
        unknown(place(&mut client, "k", 0..2).await);
    }
    // A callback of another account that names the device, and one about other devices, cause no
    // status query.
    let elsewhere = upstream.sim.add_request(upstream.accounts[1].clone(), [upstream_device(0)]);
    let said = says(0, StatusClass::Succeeded);
    gateway.requests.called_back(&upstream.accounts[1], &elsewhere, said).await.unwrap();
    let foreign = upstream.sim.add_request(account(), [upstream_device(7)]);
    call_back(&gateway, &foreign, 7, StatusClass::Succeeded).await;

    call_back(&gateway, &id, 0, StatusClass::Succeeded).await;
    assert_eq!(resolved(&client, "k", &[0, 1]).await, id);
    let ledger = upstream.sim.ledger();
    assert_eq!(ledger.polls(), 5, "one status query for each candidate");
    assert_eq!((ledger.polls_of(&elsewhere), ledger.polls_of(&foreign)), (0, 0));
}

#[tokio::test]
async fn what_fits_two_orders_is_left_to_an_operator() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let first = lose(&upstream, &mut client, "first", &[0, 1]).await;
    let second = lose(&upstream, &mut client, "second", &[0, 1]).await;
    for id in [&first, &second] {
        call_back(&gateway, id, 0, StatusClass::Succeeded).await;
        // As a candidate of either order.
        upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls_of(id) == 2).await;
    }
    let listed = async || gateway.requests.unknown_orders().await.unwrap();
    eventually("both are listed", async || listed().await.len() == 2).await;
    let orders = listed().await;
    assert!(orders.iter().all(|order| order.account == ACCOUNT && order.devices == 2));
    let settlement = Settlement::AcceptedAs(second.clone());
    gateway.requests.settle_order(&orders[1].order_id, &settlement, false).await.unwrap();
    assert_eq!(place(&mut client, "second", 0..2).await.unwrap(), second);
    // One request cannot be two orders.
    gateway.requests.settle_order(&orders[0].order_id, &settlement, true).await.unwrap_err();
    unknown(place(&mut client, "first", 0..2).await);
}

/// ThingSpace repeats the callback of an external request for the same device.
#[tokio::test]
async fn a_request_known_before_the_order_does_not_settle_it() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let other = upstream.sim.add_request(account(), [upstream_device(0)]);
    upstream.sim.finish_all(&other, DeviceResult::Success);
    call_back(&gateway, &other, 0, StatusClass::Waiting).await;
    let id = lose(&upstream, &mut client, "k", &[0]).await;
    call_back(&gateway, &other, 0, StatusClass::Succeeded).await;
    call_back(&gateway, &id, 0, StatusClass::Succeeded).await;
    assert_eq!(resolved(&client, "k", &[0]).await, id);
    assert_eq!(upstream.sim.ledger().polls_of(&other), 0);
}

#[tokio::test]
async fn a_candidate_of_two_orders_waits_while_one_is_in_flight() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = lose(&upstream, &mut client, "one", &[0]).await;
    lose(&upstream, &mut client, "both", &[0, 1]).await;
    call_back(&gateway, &id, 0, StatusClass::Waiting).await;
    // As a candidate of either order. The gateway queries again when any order has ended.
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls_of(&id) == 2).await;
    lose(&upstream, &mut client, "another", &[2]).await;
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls_of(&id) == 4).await;
    unknown(place(&mut client, "one", [0]).await);
    upstream.sim.finish_all(&id, DeviceResult::Success);
    lose(&upstream, &mut client, "yet another", &[3]).await;
    assert_eq!(resolved(&client, "one", &[0]).await, id);
    unknown(place(&mut client, "both", 0..2).await);
}

#[tokio::test]
async fn an_external_request_has_the_reason_of_an_earlier_callback() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = upstream.sim.add_request(account(), [upstream_device(0)]);
    upstream.sim.finish_all(&id, DeviceResult::Failed);
    call_back(&gateway, &id, 0, StatusClass::Failed).await;
    assert_reason(&shown(&mut client, &id).await.devices[0], 0);
}

#[tokio::test]
async fn callbacks_of_a_watched_external_bulk_request_make_it_known() {
    const DEVICES: usize = 50;
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = upstream.sim.add_request(account(), (0..DEVICES).map(upstream_device));
    let watching = watch(&mut client, &id, "").await.unwrap();
    upstream.sim.finish_all(&id, DeviceResult::Failed);
    join_all((0..DEVICES).map(|n| call_back(&gateway, &id, n, StatusClass::Failed))).await;
    let (state, devices, _) = end(&watching.rest().await);
    assert_eq!((state, devices.len()), (RequestState::Failed, DEVICES));
    eventually("every reason is filled in", || {
        let (mut client, id) = (client.clone(), &id);
        async move {
            let devices = shown(&mut client, id).await.devices;
            devices.iter().all(|device| device.fault.is_some())
        }
    })
    .await;
    let devices = shown(&mut client, &id).await.devices;
    (0..DEVICES).for_each(|n| assert_reason(&devices[n], n));
}

/// ThingSpace and proxies compare ids without case.
#[tokio::test]
async fn a_callback_reaches_its_request_in_any_case() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    config.limits.closed_in_memory = Duration::ZERO;
    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..2).await.unwrap();
    let shouted = RequestId::parse(&id.as_str().to_ascii_uppercase()).unwrap();
    assert_ne!(shouted, id);
    call_back(&gateway, &shouted, 0, StatusClass::Failed).await;
    call_back(&gateway, &shouted, 1, StatusClass::Failed).await;
    becomes_final(&client, &id).await;
    assert_reason(&shown(&mut client, &id).await.devices[0], 0);
    assert_eq!(gateway.requests.overview().stray_callbacks, 0);
    // A stray callback is stored under its own id, and counted.
    call_back(&gateway, &RequestId::parse("nobody-s").unwrap(), 0, StatusClass::Failed).await;
    assert_eq!(gateway.requests.overview().stray_callbacks, 1);
}
