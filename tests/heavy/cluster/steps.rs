//! A replica dies at any step of an order: the key's answer at another one is right.

use std::{ops::Range, time::Duration};

use futures_util::future::join_all;
use thingspace_gateway::{
    app,
    config::Config,
    identity::RequestId,
    proto::storage,
    requests::fold::event::{self, Kind, Once},
    simulator::{Endpoint, Fault, Gate, What, When},
    store::{LogName, Store, nats::Nats},
};

use crate::{
    Dice, assert_known, assert_nothing_ordered_twice,
    crash::{DEVICES, KEY, ORDER_ID, Written, assert_consistent, assert_unknown, elsewhere, write},
    harness::*,
    nats_server::NatsServer,
    placed,
};

/// Leases that expire while a test waits.
fn impatient(upstream: &Upstream) -> Config {
    let mut config = upstream.quiet();
    config.thingspace.order_timeout = Duration::from_secs(1);
    config.thingspace.call_timeout = Duration::from_secs(1);
    config.thingspace.login_backoff_first = Duration::from_millis(100);
    config
}

/// A replica in a process of its own.
fn process(upstream: &Upstream, nats: &NatsServer) -> Process {
    Process::serve(&upstream.replica(&impatient(upstream), &nats.url(), 1, 0), upstream.dir.path())
}

/// A replica in this process.
async fn survivor(upstream: &Upstream, nats: &NatsServer) -> Gateway {
    Gateway::start(upstream.replica(&impatient(upstream), &nats.url(), 1, 1)).await
}

/// Opens the store without a gateway.
async fn open(config: &Config) -> Nats {
    let store = Nats::open(&config.store.nats, app::retention(config)).await.unwrap();
    usable(&store).await;
    store
}

/// Runs all steps at once, because most of the time they wait for the lease of a login or token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_thingspace_is_called() {
    use When::{AfterEffect, BeforeEffect};
    let steps = [
        (Endpoint::Token, BeforeEffect),
        (Endpoint::Token, AfterEffect),
        (Endpoint::Login, BeforeEffect),
        (Endpoint::Login, AfterEffect),
        (Endpoint::Download, BeforeEffect),
        (Endpoint::Download, AfterEffect),
    ];
    join_all(steps.map(|(endpoint, when)| killed_at(endpoint, when))).await;
}

async fn killed_at(endpoint: Endpoint, when: When) {
    let (upstream, nats, gate) =
        (Upstream::manual().await, NatsServer::start().await, Gate::default());
    let (dying, other) = (process(&upstream, &nats), survivor(&upstream, &nats).await);
    // Credentials that were accepted once stay usable after a process died while it used them.
    let known = place(&mut other.client().await, "known", [1_000]).await.unwrap();
    let sends = endpoint == Endpoint::Download;
    match endpoint {
        Endpoint::Token => upstream.sim.expire_bearer(),
        Endpoint::Login => upstream.sim.expire_sessions(),
        _ => {}
    }
    upstream.sim.inject(Fault::once(endpoint, when, What::Hold(gate.clone())));
    let mut client = dying.client().await;
    let call = tokio::spawn(async move {
        if sends {
            place(&mut client, KEY, DEVICES).await.map(drop)
        } else {
            get_status(&mut client, status_call(&known)).await.map(drop)
        }
    });
    let executed = 1 + usize::from(sends && when == When::AfterEffect);
    upstream
        .sim
        .wait_until(DEADLINE, |ledger| {
            ledger.in_flight(endpoint) == 1 && ledger.orders.len() == executed
        })
        .await;
    dying.kill();
    call.await.unwrap().unwrap_err();

    let mut client = other.client().await;
    if sends {
        assert_unknown(&mut client).await;
        // ThingSpace may or may not execute it: it is not sent again.
        gate.open();
        assert_unknown(&mut client).await;
    } else {
        // A call right after the lease gets UNAVAILABLE with a short RetryInfo.
        let id =
            eventually_ok("it is placed", async || place(&mut client.clone(), KEY, DEVICES).await)
                .await;
        assert_known(&mut client, &id, DEVICES).await;
    }
    let ledger = upstream.sim.ledger();
    assert_nothing_ordered_twice(&ledger);
    if !sends {
        assert_eq!(ledger.orders.len(), 2, "{endpoint:?} {when:?}");
    }
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_step_of_storing_an_order_may_be_the_last() {
    for until in
        [Written::Ordered, Written::Claimed, Written::Outcome, Written::Accepted, Written::Cell]
    {
        for accepted in [true, false] {
            let (upstream, nats) = (Upstream::manual().await, NatsServer::start().await);
            let request = elsewhere(&upstream);
            let config = upstream.replica(&impatient(&upstream), &nats.url(), 1, 0);
            let store = open(&config).await;
            let accepted_as =
                Kind::AcceptedAs(storage::AcceptedAs { request_id: request.to_string() });
            let outcome =
                if accepted { accepted_as.clone() } else { Kind::NotSent(storage::NotSent {}) };
            let gateways = [survivor(&upstream, &nats).await, Gateway::start(config).await];
            write(&store, &request, outcome, until, Duration::from_secs(2)).await;
            let (mut client, mut other) = (gateways[0].client().await, gateways[1].client().await);
            let ordered = match until {
                Written::Claimed => {
                    assert_unknown(&mut client).await;
                    // The sender was only late. ThingSpace's answer counts, even after the lease.
                    let log = LogName::order(ORDER_ID);
                    let id = Once::AcceptedAs.id(ORDER_ID);
                    store.append(&log, id, event::encode(accepted_as, None)).await.unwrap();
                    assert_eq!(place(&mut other, KEY, DEVICES).await.unwrap(), request);
                    assert_eq!(place(&mut client, KEY, DEVICES).await.unwrap(), request);
                    0
                }
                Written::Outcome | Written::Accepted | Written::Cell if accepted => {
                    assert_eq!(place(&mut client, KEY, DEVICES).await.unwrap(), request);
                    assert_known(&mut other, &request, DEVICES).await;
                    0
                }
                // It was not sent, or was refused: its key is free.
                _ => {
                    let id = place(&mut client, KEY, DEVICES).await.unwrap();
                    assert_known(&mut other, &id, DEVICES).await;
                    1
                }
            };
            assert_eq!(upstream.sim.ledger().orders.len(), ordered, "{until:?} {accepted}");
            for gateway in gateways {
                gateway.stop().await;
            }
        }
    }
}

/// An order without a caller is finished, too: the request of an order that was accepted is
/// known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_accepted_order_is_finished_by_whoever_lives() {
    let (upstream, nats) = (Upstream::manual().await, NatsServer::start().await);
    let request = elsewhere(&upstream);
    let gateway = survivor(&upstream, &nats).await;
    let config = upstream.replica(&impatient(&upstream), &nats.url(), 1, 0);
    let store = open(&config).await;
    let accepted_as = Kind::AcceptedAs(storage::AcceptedAs { request_id: request.to_string() });
    write(&store, &request, accepted_as, Written::Outcome, Duration::from_secs(2)).await;
    eventually("the request is whole", async || {
        gateway.requests.overview().open_devices == DEVICES.len()
    })
    .await;
    assert_known(&mut gateway.client().await, &request, DEVICES).await;
    assert_eq!(upstream.sim.ledger().orders.len(), 0);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_around_the_answer() {
    const CRASHES: Range<usize> = 0..8;
    /// The writes after the answer take a few milliseconds; in µs.
    const AROUND: u64 = 30_000;
    let (upstream, nats, mut dice) =
        (Upstream::manual().await, NatsServer::start().await, Dice::new());
    let other = survivor(&upstream, &nats).await;
    let mut client = other.client().await;
    for n in CRASHES {
        let dying = process(&upstream, &nats);
        let mut at_dying = dying.client().await;
        let call = tokio::spawn(async move { place(&mut at_dying, &n.to_string(), [n]).await });
        upstream.sim.wait_until(DEADLINE, |ledger| ledger.orders.len() > n).await;
        tokio::time::sleep(Duration::from_micros(dice.roll(AROUND))).await;
        dying.kill();
        let told: Result<RequestId, _> = call.await.unwrap();
        let again = place(&mut client, &n.to_string(), [n]).await;
        assert_consistent(&placed(&upstream.sim.ledger()), n, &told, &again);
    }
    let ledger = upstream.sim.ledger();
    assert_eq!(ledger.orders.len(), CRASHES.len());
    assert_nothing_ordered_twice(&ledger);
    other.stop().await;
}
