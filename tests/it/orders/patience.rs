//! Callers whose deadline ends before their order, or that hang up.

use std::{
    future::{self, Future},
    time::Duration,
};

use futures_util::FutureExt;

use thingspace_gateway::simulator::{Endpoint, Fault, Gate, What, When};
use tonic::Code;

use super::*;

/// Runs a call against a gateway whose order is held upstream.
async fn held<F: Future<Output = ()>>(test: impl FnOnce(Upstream, Client, Gate) -> F) {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let client = gateway.client().await;
    // Only the order itself takes long.
    place(&mut client.clone(), "before", [1_000]).await.unwrap();
    let gate = Gate::default();
    upstream.sim.inject(Fault::once(
        Endpoint::Download,
        When::BeforeEffect,
        What::Hold(gate.clone()),
    ));
    test(upstream, client, gate).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_deadline_ends_the_waiting_and_not_the_order() {
    held(async |upstream: Upstream, mut client: Client, gate: Gate| {
        let call = with_deadline(order("k", [0]), Duration::from_secs(1));
        let status = send(&mut client, call).await.unwrap_err();
        assert_is(&status, Code::DeadlineExceeded, "DEADLINE");
        assert_eq!(upstream.sim.ledger().in_flight(Endpoint::Download), 1);
        gate.open();
        let answer = send(&mut client, order("k", [0])).await.unwrap();
        assert!(answer.replayed);
        let ledger = upstream.sim.ledger();
        assert_eq!(ledger.times_ordered(&eid(0)), 1);
        assert_eq!(ledger.orders.last().unwrap().request_id.as_str(), answer.request_id);
        assert_eq!(orders_sent(&ledger), 2);
    })
    .await;
}

#[tokio::test]
async fn a_second_call_waits_for_the_first_within_its_own_deadline() {
    held(async |upstream: Upstream, mut client: Client, gate: Gate| {
        let first = tokio::spawn({
            let mut client = client.clone();
            async move { send(&mut client, order("k", [0])).await }
        });
        upstream.sim.wait_until(DEADLINE, |ledger| ledger.in_flight(Endpoint::Download) == 1).await;
        let call = with_deadline(order("k", [0]), Duration::from_secs(1));
        let status = send(&mut client, call).await.unwrap_err();
        assert_is(&status, Code::Unavailable, "ORDER_IN_PROGRESS");
        assert!(!retry_delay(&status).is_zero());
        let third = tokio::spawn(async move { send(&mut client, order("k", [0])).await });
        gate.open();
        let first = first.await.unwrap().unwrap();
        let third = third.await.unwrap().unwrap();
        assert_eq!(first.request_id, third.request_id);
        assert_eq!((first.replayed, third.replayed), (false, true));
        assert_eq!(upstream.sim.ledger().times_ordered(&eid(0)), 1);
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_hangs_up_does_not_end_its_order() {
    held(async |upstream: Upstream, mut client: Client, gate: Gate| {
        let call = tokio::spawn({
            let mut client = client.clone();
            async move { send(&mut client, order("k", [0])).await }
        });
        upstream.sim.wait_until(DEADLINE, |ledger| ledger.in_flight(Endpoint::Download) == 1).await;
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        gate.open();
        upstream.sim.wait_until(DEADLINE, |ledger| ledger.times_ordered(&eid(0)) == 1).await;
        let answer = send(&mut client, order("k", [0])).await.unwrap();
        assert!(answer.replayed);
        assert_eq!(orders_sent(&upstream.sim.ledger()), 2);
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_hangs_up_before_its_order_leaves_costs_nothing() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let gate = Gate::default();
    upstream.sim.inject(Fault::once(Endpoint::Login, When::BeforeEffect, What::Hold(gate.clone())));
    let call = tokio::spawn({
        let mut client = client.clone();
        async move { send(&mut client, order("k", [0])).await }
    });
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.in_flight(Endpoint::Login) == 1).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    gate.open();
    // Another order: the first call no longer locks its key.
    let answer = send(&mut client, order("k", [1])).await.unwrap();
    assert!(!answer.replayed);
    let ledger = upstream.sim.ledger();
    assert_eq!((ledger.times_ordered(&eid(0)), ledger.times_ordered(&eid(1))), (0, 1));
    assert_eq!((ledger.logins(), ledger.token_requests()), (1, 1));
}

/// At a rate of one order a second.
async fn slow_gateway(upstream: &Upstream) -> Gateway {
    let mut config = upstream.quiet();
    config.thingspace.calls_per_second = 1;
    let gateway = Gateway::start(config).await;
    // The gateway has its tokens.
    place(&mut gateway.client().await, "before", [1_000]).await.unwrap();
    gateway
}

#[tokio::test]
async fn a_deadline_that_passes_before_anything_is_sent_says_so() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let gate = Gate::default();
    upstream.sim.inject(Fault::once(Endpoint::Login, When::BeforeEffect, What::Hold(gate.clone())));
    let call = with_deadline(order("k", [0]), Duration::from_secs(1));
    let status = send(&mut client, call).await.unwrap_err();
    assert_is(&status, Code::DeadlineExceeded, "DEADLINE");
    assert!(status.message().contains("nothing was sent"), "{status:?}");
    assert_eq!(status.get_details_error_info().unwrap().metadata["nothingSent"], "true");
    assert_eq!(orders_sent(&upstream.sim.ledger()), 0);
    gate.open();
    gateway.stop().await;
}

#[tokio::test]
async fn an_order_that_cannot_be_sent_in_time_is_refused_at_once() {
    const ORDERS: usize = 60;
    let upstream = Upstream::manual().await;
    let gateway = slow_gateway(&upstream).await;
    let client = gateway.client().await;
    let calls = (0..ORDERS).map(|n| {
        let mut client = client.clone();
        let call = with_deadline(order(&format!("k{n}"), [n]), Duration::from_secs(8));
        async move { send(&mut client, call).await }
    });
    let (mut placed, mut refused) = (0, 0);
    for outcome in within("every call ends", join_all(calls)).await {
        match outcome {
            Ok(_) => placed += 1,
            Err(status) if status.code() == Code::ResourceExhausted => {
                assert_is(&status, Code::ResourceExhausted, "OVERLOADED");
                assert!(!retry_delay(&status).is_zero());
                refused += 1;
            }
            // On a busy machine the first calls in the queue may miss their deadline.
            Err(status) => {
                assert_is(&status, Code::DeadlineExceeded, "DEADLINE");
                assert!(status.message().contains("nothing was sent"), "{status:?}");
            }
        }
    }
    assert!(placed > 0 && refused >= ORDERS * 3 / 4, "{placed} placed, {refused} refused");
    assert_eq!(upstream.sim.ledger().orders.len(), placed + 1);
    gateway.stop().await;
}

#[tokio::test]
async fn a_drain_ends_calls_that_wait_for_a_permit_and_finishes_orders_that_were_sent() {
    const ORDERS: usize = 50;
    let upstream = Upstream::manual().await;
    let gateway = slow_gateway(&upstream).await;
    let client = gateway.client().await;
    let gate = Gate::default();
    upstream.sim.inject(Fault::always(
        Endpoint::Download,
        When::BeforeEffect,
        What::Hold(gate.clone()),
    ));
    let mut calls: FuturesUnordered<_> = (0..ORDERS)
        .map(|n| {
            let mut client = client.clone();
            tokio::spawn(async move { send(&mut client, order(&format!("k{n}"), [n])).await })
        })
        .collect();
    let sent = |ledger: &Ledger| usize::try_from(ledger.in_flight(Endpoint::Download)).unwrap();
    upstream.sim.wait_until(DEADLINE, |ledger| sent(ledger) > 0).await;
    gateway.stop.soft.cancel();
    let mut ended = 0;
    eventually("every call that was not sent ends", || {
        while let Some(Some(outcome)) = calls.next().now_or_never() {
            assert_is(&outcome.unwrap().unwrap_err(), Code::Unavailable, "DRAINING");
            ended += 1;
        }
        future::ready(ended + sent(&upstream.sim.ledger()) == ORDERS)
    })
    .await;
    assert!(ended >= ORDERS / 2, "{ended}");
    gate.open();
    while let Some(finished) = within("a call that was sent", calls.next()).await {
        finished.unwrap().unwrap();
        ended += 1;
    }
    assert_eq!(ended, ORDERS);
    gateway.stop().await;
}
