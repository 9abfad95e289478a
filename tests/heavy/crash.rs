//! Promises 3 and 4 of the README, against `kill -9`: no download is ordered twice, no acknowledged
//! order is lost, and what was under way is reported as of unknown outcome, never guessed.

use std::{collections::HashMap, time::Duration};

use futures_util::future::join_all;
use thingspace_gateway::{
    identity::{AccountName, Device, Digits, RequestId},
    proto::storage::{self, KeyPhase},
    requests::{
        fold::event::{self, Kind, Once},
        key::{self, KeyCell},
    },
    simulator::{Endpoint, Fault, Gate, What, When},
    store::{LogName, Store, embedded::Embedded},
    thingspace,
};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{Dice, assert_known, assert_nothing_ordered_twice, harness::*, placed};

pub const KEY: &str = "k";
/// What is ordered under it.
pub const DEVICES: std::ops::Range<usize> = 0..3;

fn serve(upstream: &Upstream) -> Process {
    let mut config = upstream.config();
    config.thingspace.login_backoff_first = Duration::from_millis(100);
    Process::serve(&config, upstream.dir.path())
}

/// A password that was never accepted would be given up when a process dies with it.
async fn log_in(upstream: &Upstream, client: &mut Client) -> RequestId {
    let elsewhere = upstream.sim.add_request(upstream.accounts[0].clone(), [upstream_device(9)]);
    get_status(client, status_call(&elsewhere)).await.unwrap();
    elsewhere
}

/// An upstream whose gateway was killed while a call of its only order was held there.
async fn killed_at(endpoint: Endpoint, when: When) -> (Upstream, Gate) {
    let (upstream, gate) = (Upstream::manual().await, Gate::default());
    let gateway = serve(&upstream);
    let mut client = gateway.client().await;
    let hold = Fault::once(endpoint, when, What::Hold(gate.clone()));
    if endpoint == Endpoint::Login {
        let elsewhere = log_in(&upstream, &mut client).await;
        upstream.sim.expire_sessions();
        upstream.sim.inject(hold);
        // The status query finds that the session has ended. The order waits for the next session.
        let asking = client.clone();
        tokio::spawn(async move {
            eventually("a status query fails", || {
                let (mut asking, call) = (asking.clone(), status_call(&elsewhere));
                async move { get_status(&mut asking, call).await.is_err() }
            })
            .await;
        });
        upstream.sim.wait_until(DEADLINE, |ledger| ledger.in_flight(endpoint) == 1).await;
    } else {
        upstream.sim.inject(hold);
    }
    let call = tokio::spawn(async move { place(&mut client, KEY, DEVICES).await });
    let expected = usize::from(endpoint == Endpoint::Download && when == When::AfterEffect);
    upstream
        .sim
        .wait_until(DEADLINE, |ledger| {
            ledger.in_flight(endpoint) == 1 && ledger.orders.len() == expected
        })
        .await;
    gateway.kill();
    call.await.unwrap().unwrap_err();
    (upstream, gate)
}

/// The order's key says UNKNOWN, of one order, and goes on saying so.
pub async fn assert_unknown(client: &mut Client) {
    let mut told = Vec::new();
    for _ in 0..2 {
        let error = place(client, KEY, DEVICES).await.unwrap_err();
        assert_eq!(
            (error.code(), reason(&error).as_str()),
            (Code::FailedPrecondition, "ORDER_OUTCOME_UNKNOWN")
        );
        told.push(error.get_details_error_info().unwrap().metadata);
    }
    assert_eq!(told[0], told[1]);
    assert!(!told[0]["orderId"].is_empty() && !told[0]["sentTime"].is_empty(), "{told:?}");
}

/// Before anything of the order was sent, dying costs nothing: the repeated call places it, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_was_not_sent_is_placed_by_the_repeated_call() {
    for endpoint in [Endpoint::Token, Endpoint::Login] {
        for when in [When::BeforeEffect, When::AfterEffect] {
            let (upstream, _gate) = killed_at(endpoint, when).await;
            let gateway = serve(&upstream);
            let mut client = gateway.client().await;
            // After a login without a report the next one waits for its lease.
            eventually("the order is placed", || {
                let mut client = client.clone();
                async move { place(&mut client, KEY, DEVICES).await.is_ok() }
            })
            .await;
            let id = place(&mut client, KEY, DEVICES).await.unwrap();
            assert_known(&mut client, &id, DEVICES).await;
            assert_eq!(upstream.sim.ledger().orders.len(), 1);
        }
    }
}

/// Once the order may have left, it is of unknown outcome, whether ThingSpace never executes it,
/// executes it after the crash, or had executed it before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_under_way_is_of_unknown_outcome() {
    for (when, opened) in
        [(When::BeforeEffect, false), (When::BeforeEffect, true), (When::AfterEffect, false)]
    {
        let (upstream, gate) = killed_at(Endpoint::Download, when).await;
        let gateway = serve(&upstream);
        let mut client = gateway.client().await;
        assert_unknown(&mut client).await;
        if opened {
            gate.open();
            upstream.sim.wait_until(DEADLINE, |ledger| ledger.orders.len() == 1).await;
            assert_unknown(&mut client).await;
        }
        // Not even for another order does the key let go of it, nor after another crash.
        let reused = place(&mut client, KEY, 0..4).await.unwrap_err();
        assert_eq!(reason(&reused), "IDEMPOTENCY_KEY_REUSED");
        gateway.kill();
        let gateway = serve(&upstream);
        assert_unknown(&mut gateway.client().await).await;

        let ledger = upstream.sim.ledger();
        assert_eq!(ledger.calls(Endpoint::Download), 1, "sent again");
        assert_eq!(ledger.orders.len(), usize::from(opened || when == When::AfterEffect));
    }
}

/// An answer that was given holds: after a crash right behind it, or while the request is asked
/// about.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledged_order_is_known_and_complete() {
    for polled in [false, true] {
        let (upstream, gate) = (Upstream::manual().await, Gate::default());
        if polled {
            upstream.sim.inject(Fault::once(
                Endpoint::Status,
                When::BeforeEffect,
                What::Hold(gate),
            ));
        }
        let gateway = serve(&upstream);
        let id = place(&mut gateway.client().await, KEY, DEVICES).await.unwrap();
        if polled {
            upstream
                .sim
                .wait_until(DEADLINE, |ledger| ledger.in_flight(Endpoint::Status) == 1)
                .await;
        }
        gateway.kill();

        let gateway = serve(&upstream);
        let mut client = gateway.client().await;
        assert_known(&mut client, &id, DEVICES).await;
        let again = within("a repeat", client.download_profile(order(KEY, DEVICES))).await.unwrap();
        let again = again.into_inner();
        assert_eq!((again.request_id.as_str(), again.replayed), (id.as_str(), true));
        assert_eq!(upstream.sim.ledger().orders.len(), 1);
    }
}

/// A refusal sets the key free, and a crash does not tie it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_order_may_be_repeated_after_a_crash() {
    let upstream = Upstream::manual().await;
    upstream.sim.inject(Fault::once(
        Endpoint::Download,
        When::BeforeEffect,
        What::Throttle { retry_after: None },
    ));
    let gateway = serve(&upstream);
    let refused = place(&mut gateway.client().await, KEY, DEVICES).await.unwrap_err();
    assert_eq!(reason(&refused), "UPSTREAM_THROTTLED");
    gateway.kill();
    let gateway = serve(&upstream);
    let mut client = gateway.client().await;
    let id = place(&mut client, KEY, DEVICES).await.unwrap();
    assert_known(&mut client, &id, DEVICES).await;
    assert_eq!(upstream.sim.ledger().orders.len(), 1);
}

/// How far an order had come in the store when the gateway died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Written {
    Ordered,
    Claimed,
    /// What came of it: accepted.
    Outcome,
    Accepted,
    Cell,
}

pub const ORDER_ID: &str = "0190a0a0-0000-7000-8000-000000000001";

/// Writes an order into a new store of its gateway; see [`write`].
async fn write_embedded(upstream: &Upstream, request: &RequestId, outcome: Kind, until: Written) {
    let store = Embedded::open(&upstream.config().store.path, Duration::from_hours(1_000)).unwrap();
    write(&store, request, outcome, until, Duration::from_secs(150)).await;
    store.close().await;
}

/// Writes an order into a store, up to a step, as a gateway would have done that died after it.
pub async fn write(
    store: &dyn Store,
    request: &RequestId,
    outcome: Kind,
    until: Written,
    lease: Duration,
) {
    let device = |n| {
        let ids = device(n);
        Device {
            eid: Digits::new(&ids.eid),
            iccid: Digits::new(&ids.iccid),
            imei: Digits::new(&ids.imei),
            mdn: Digits::default(),
        }
    };
    let account = AccountName::parse(ACCOUNT).unwrap();
    let service_plan = order(KEY, DEVICES).service_plan;
    let order = thingspace::Order { account, devices: DEVICES.map(device).collect(), service_plan };
    let cell = key::cell(&order.account, KEY);
    let devices: Vec<_> = order.devices.iter().map(event::to_stored).collect();
    let (log, account, service_plan) =
        (LogName::order(ORDER_ID), order.account.to_string(), order.service_plan.clone());

    let ordered = Kind::Ordered(storage::Ordered {
        account: account.clone(),
        service_plan: service_plan.clone(),
        devices: devices.clone(),
        key_cell: cell.name.clone(),
        caller: String::new(),
    });
    store.append(&log, Once::Ordered.id(ORDER_ID), event::encode(ordered, None)).await.unwrap();
    if until >= Written::Claimed {
        let claim = storage::Key {
            order_id: ORDER_ID.to_owned(),
            request_hash: key::hash(&order),
            incarnation: "another".to_owned(),
            sent_time_ms: jiff::Timestamp::now().as_millisecond(),
            lease_ms: u32::try_from(lease.as_millis()).unwrap(),
            ..storage::Key::default()
        };
        let claimed = KeyCell::claim(store, &cell, None, claim).await.unwrap().unwrap();
        let accepted = matches!(outcome, Kind::AcceptedAs(_));
        if until >= Written::Outcome {
            let once = if accepted { Once::AcceptedAs } else { Once::NotPlaced };
            store.append(&log, once.id(ORDER_ID), event::encode(outcome, None)).await.unwrap();
        }
        if until >= Written::Accepted && accepted {
            let accepted = Kind::Accepted(storage::Accepted {
                order_id: ORDER_ID.to_owned(),
                account,
                service_plan,
                devices,
                caller: String::new(),
            });
            let log = LogName::request(request.as_str());
            store
                .append(&log, Once::Accepted.id(ORDER_ID), event::encode(accepted, None))
                .await
                .unwrap();
        }
        if until >= Written::Cell {
            let (phase, id) = if accepted {
                (KeyPhase::Accepted, request.as_str())
            } else {
                (KeyPhase::Released, "")
            };
            claimed.advance(store, &cell, phase, id).await.unwrap().unwrap();
        }
    }
}

pub fn elsewhere(upstream: &Upstream) -> RequestId {
    let account = AccountName::parse(ACCOUNT).unwrap();
    upstream.sim.add_request(
        account,
        DEVICES.map(|n| {
            let ids = device(n);
            Device {
                eid: Digits::new(&ids.eid),
                iccid: Digits::new(&ids.iccid),
                ..Device::default()
            }
        }),
    )
}

/// The steps between the answer of ThingSpace and the caller's, which nothing outside can hold:
/// from the moment that the answer is in the order's log, the order is known, complete, and never
/// sent again; before it, it is of unknown outcome once the key was claimed, and nothing at all
/// before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_step_of_storing_an_accepted_order_may_be_the_last() {
    for until in
        [Written::Ordered, Written::Claimed, Written::Outcome, Written::Accepted, Written::Cell]
    {
        let upstream = Upstream::manual().await;
        let request = elsewhere(&upstream);
        let outcome = Kind::AcceptedAs(storage::AcceptedAs { request_id: request.to_string() });
        write_embedded(&upstream, &request, outcome, until).await;
        let gateway = serve(&upstream);
        let mut client = gateway.client().await;
        match until {
            Written::Ordered => {
                let id = place(&mut client, KEY, DEVICES).await.unwrap();
                assert_known(&mut client, &id, DEVICES).await;
            }
            Written::Claimed => assert_unknown(&mut client).await,
            Written::Outcome | Written::Accepted | Written::Cell => {
                // Also without the key: the gateway finishes at its start what it finds.
                eventually("the request is known", || {
                    let (client, request) = (client.clone(), request.clone());
                    async move { whole(client, &request).await }
                })
                .await;
                assert_eq!(place(&mut client, KEY, DEVICES).await.unwrap(), request);
                assert_known(&mut client, &request, DEVICES).await;
            }
        }
        let expected = usize::from(until == Written::Ordered);
        assert_eq!(upstream.sim.ledger().orders.len(), expected, "{until:?}");
    }
}

/// Whether the request is known from its order: ThingSpace's answers lack the IMEIs.
async fn whole(mut client: Client, id: &RequestId) -> bool {
    let status = get_status(&mut client, status_call(id)).await;
    status.is_ok_and(|status| {
        let shown = status.devices.into_iter().map(|device| device.identifiers.unwrap());
        shown.eq(DEVICES.map(device))
    })
}

/// The same for an order that was not placed: its key is free as soon as its log says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_step_of_storing_a_refusal_may_be_the_last() {
    for until in [Written::Outcome, Written::Cell] {
        for outcome in
            [Kind::NotSent(storage::NotSent {}), Kind::Refused(storage::Refused::default())]
        {
            let upstream = Upstream::manual().await;
            let request = elsewhere(&upstream);
            write_embedded(&upstream, &request, outcome, until).await;
            let gateway = serve(&upstream);
            let mut client = gateway.client().await;
            // After a login without a report the next one waits for its lease.
            eventually("the order is placed", || {
                let mut client = client.clone();
                async move { place(&mut client, KEY, DEVICES).await.is_ok() }
            })
            .await;
            let id = place(&mut client, KEY, DEVICES).await.unwrap();
            assert_known(&mut client, &id, DEVICES).await;
            assert_eq!(upstream.sim.ledger().orders.len(), 1);
        }
    }
}

/// The answer to a caller, and the answer to its repeated call after a crash, agree with
/// ThingSpace.
pub fn assert_consistent(
    ordered: &HashMap<String, RequestId>,
    n: usize,
    told: &Result<RequestId, Status>,
    again: &Result<RequestId, Status>,
) {
    match (told, again) {
        (Ok(told), Ok(again)) => assert_eq!(told, again),
        (Ok(told), Err(lost)) => panic!("device {n}: acknowledged as {told}, and now: {lost:?}"),
        (Err(_), Ok(_)) => {}
        (Err(_), Err(unknown)) => {
            assert_eq!(reason(unknown), "ORDER_OUTCOME_UNKNOWN", "device {n}");
        }
    }
    if let Ok(again) = again {
        assert_eq!(ordered.get(&device(n).eid), Some(again), "device {n}");
    }
}

/// Crashes at random moments around ThingSpace's answer, all on the same store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_around_the_answer() {
    /// Each is one start of the binary.
    const CRASHES: usize = 24;
    /// The three writes after the answer take a few milliseconds; in µs.
    const AROUND: u64 = 30_000;

    let (upstream, mut dice) = (Upstream::manual().await, Dice::new());
    let mut told = Vec::new();
    for n in 0..CRASHES {
        let gateway = serve(&upstream);
        let mut client = gateway.client().await;
        let call = tokio::spawn(async move { place(&mut client, &n.to_string(), [n]).await });
        upstream.sim.wait_until(DEADLINE, |ledger| ledger.orders.len() > n).await;
        tokio::time::sleep(Duration::from_micros(dice.roll(AROUND))).await;
        gateway.kill();
        told.push(call.await.unwrap());
    }
    let gateway = serve(&upstream);
    let mut client = gateway.client().await;
    let ordered = placed(&upstream.sim.ledger());
    for (n, told) in told.iter().enumerate() {
        let again = place(&mut client, &n.to_string(), [n]).await;
        assert_consistent(&ordered, n, told, &again);
        if let Ok(id) = again {
            assert_known(&mut client, &id, [n]).await;
        }
    }
    let ledger = upstream.sim.ledger();
    assert_eq!(ledger.orders.len(), CRASHES);
    assert_nothing_ordered_twice(&ledger);
}

/// Five hundred callers at once, each with an order of its own.
async fn place_all(
    client: Client,
    devices: std::ops::Range<usize>,
) -> Vec<Result<RequestId, Status>> {
    let calls = devices.map(|n| {
        let mut client = client.clone();
        tokio::spawn(async move { place(&mut client, &n.to_string(), [n]).await })
    });
    join_all(calls).await.into_iter().map(Result::unwrap).collect()
}

/// Crashes in the middle of 500 concurrent orders, at random moments.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_in_the_middle_of_500_orders() {
    const ORDERS: usize = 500;
    const CRASHES: usize = 3;

    let (upstream, mut dice) = (Upstream::manual().await, Dice::new());
    let gateway = serve(&upstream);
    log_in(&upstream, &mut gateway.client().await).await;
    gateway.kill();
    let mut acknowledged = Vec::new();
    for crash in 0..CRASHES {
        let devices = crash * ORDERS..(crash + 1) * ORDERS;
        let gateway = serve(&upstream);
        let before = upstream.sim.ledger().orders.len();
        let moment = before + usize::try_from(dice.roll(ORDERS as u64)).unwrap();
        let calls = tokio::spawn(place_all(gateway.client().await, devices.clone()));
        upstream.sim.wait_until(DEADLINE, |ledger| ledger.orders.len() >= moment).await;
        gateway.kill();
        let told = calls.await.unwrap();

        let gateway = serve(&upstream);
        let again = place_all(gateway.client().await, devices.clone()).await;
        let ordered = placed(&upstream.sim.ledger());
        for (n, (told, again)) in devices.zip(told.iter().zip(&again)) {
            assert_consistent(&ordered, n, told, again);
            acknowledged.extend(again.as_ref().ok().map(|id| (n, id.clone())));
        }
        gateway.kill();
    }
    let gateway = serve(&upstream);
    let mut client = gateway.client().await;
    assert!(!acknowledged.is_empty());
    for (n, id) in acknowledged {
        assert_known(&mut client, &id, [n]).await;
    }
    let ledger =
        upstream.sim.wait_until(DEADLINE, |ledger| ledger.in_flight(Endpoint::Download) == 0).await;
    assert_nothing_ordered_twice(&ledger);
}
