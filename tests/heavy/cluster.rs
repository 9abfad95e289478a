//! Three gateways, each a process, on a cluster of three NATS servers: one dies, is suspended or is
//! called at a bad moment, and the others keep its promises.

mod cadence;
mod faults;
pub mod fleet;
mod lockout;
mod steps;

use std::time::Duration;

use futures_util::future::join_all;
use thingspace_gateway::{
    config::Config,
    proto::esim::{DeviceState, RequestState},
    simulator::{Endpoint, Fault, Gate, What, When},
};
use tonic::Code;

use crate::{assert_known, assert_nothing_ordered_twice, harness::*};
use fleet::Fleet;

/// Registers callbacks, which only the test sends.
fn called(upstream: &Upstream) -> Config {
    let mut config = upstream.called();
    config.callbacks.public_url = "http://127.0.0.1:9001/callbacks/".into();
    config
}

/// An order at one replica, callbacks at another, a watcher at the third, which dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_is_resumed_at_another_replica() {
    const DEVICES: usize = 8;
    let upstream = Upstream::manual().await;
    let config = called(&upstream);
    let mut fleet = Fleet::start(upstream, config).await;
    let id = place(&mut fleet.client(0).await, "key", 0..DEVICES).await.unwrap();
    let status = get_status(&mut fleet.client(2).await, status_call(&id)).await.unwrap();
    assert_eq!((status.revision, status.devices.len()), (1, DEVICES));

    let watching = tokio::spawn(fleet.caller().watch(id.clone()));
    let mut at_c = watch(&mut fleet.client(2).await, &id, "").await.unwrap();
    at_c.event().await;
    for device in 0..DEVICES {
        if device == DEVICES / 2 {
            fleet.kill(2);
        }
        assert_eq!(fleet.call_back(1, &id, device, "Success").await, 200);
        if device < DEVICES / 2 {
            at_c.event().await;
        }
    }
    let seen = within("the end of the watch", watching).await.unwrap();
    assert_eq!(seen.revision, 1 + i64::try_from(DEVICES).unwrap());
    assert!(seen.states.values().all(|state| *state == DeviceState::Succeeded), "{seen:?}");
    fleet.serve(2);
    for n in 0..3 {
        let status = get_status(&mut fleet.client(n).await, status_call(&id)).await.unwrap();
        assert_eq!(
            (status.revision, status.state()),
            (seen.revision, RequestState::Succeeded),
            "replica {n}"
        );
    }
    fleet.stop().await;
}

/// The same key at all replicas at once: one order, and every caller gets its id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_at_three_replicas_three_hundred_times() {
    const KEYS: usize = 300;
    const AT_ONCE: usize = 10;
    let upstream = Upstream::manual().await;
    let config = upstream.quiet();
    let fleet = Fleet::start(upstream, config).await;
    let clients = join_all((0..3).map(|n| fleet.client(n))).await;
    for begin in (0..KEYS).step_by(AT_ONCE) {
        let keys = (begin..begin + AT_ONCE).map(|n| {
            let calls = clients.iter().cloned().map(move |mut client| {
                tokio::spawn(async move { place(&mut client, &format!("key-{n}"), [n]).await })
            });
            join_all(calls.collect::<Vec<_>>())
        });
        for (n, answers) in join_all(keys.collect::<Vec<_>>()).await.into_iter().enumerate() {
            let ids: Vec<_> = answers.into_iter().map(|answer| answer.unwrap().unwrap()).collect();
            assert!(ids.iter().all(|id| *id == ids[0]), "key {}: {ids:?}", begin + n);
        }
    }
    let ledger = fleet.upstream.sim.ledger();
    assert_eq!(ledger.orders.len(), KEYS);
    assert_nothing_ordered_twice(&ledger);
    fleet.stop().await;
}

/// A replica is suspended during an order for longer than its lease, so the others report the order
/// as unknown. Its later result is accepted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_comes_back_late_is_believed() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    config.thingspace.order_timeout = Duration::from_secs(2);
    let gate = Gate::default();
    upstream.sim.inject(Fault::once(
        Endpoint::Download,
        When::AfterEffect,
        What::Hold(gate.clone()),
    ));
    let fleet = Fleet::start(upstream, config).await;
    let mut at_a = fleet.client(0).await;
    let placing = tokio::spawn(async move { at_a.download_profile(order("key", [0])).await });
    fleet.upstream.sim.wait_until(DEADLINE, |ledger| ledger.orders.len() == 1).await;
    fleet.gateway(0).freeze();
    // It gets its answer when it continues, because no time has passed for it.
    gate.open();
    let lost = place(&mut fleet.client(1).await, "key", [0]).await.unwrap_err();
    assert_eq!(kind(&lost), (Code::FailedPrecondition, "ORDER_OUTCOME_UNKNOWN".to_owned()));
    fleet.gateway(0).thaw();

    let ordered = fleet.upstream.sim.ledger().orders[0].request_id.clone();
    let answer = within("the answer", placing).await.unwrap();
    if let Ok(answer) = answer {
        // Or its connection to ThingSpace had expired, and the outcome is unknown.
        assert_eq!(answer.into_inner().request_id, ordered.as_str());
        for n in 0..3 {
            assert_eq!(
                place(&mut fleet.client(n).await, "key", [0]).await.unwrap(),
                ordered,
                "replica {n}"
            );
            assert_known(&mut fleet.client(n).await, &ordered, [0]).await;
        }
    }
    assert_eq!(fleet.upstream.sim.ledger().orders.len(), 1, "sent again");
    fleet.stop().await;
}
