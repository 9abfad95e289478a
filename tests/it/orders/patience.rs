//! Callers that wait for an order, in vain or not at all.

use std::{future::Future, time::Duration};

use thingspace_gateway::simulator::{Endpoint, Fault, Gate, What, When};
use tonic::Code;

use super::*;

/// Runs a call against a gateway whose order is held upstream.
async fn held<F: Future<Output = ()>>(test: impl FnOnce(Upstream, Client, Gate) -> F) {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let client = gateway.client().await;
    // Nothing but the order itself takes its time.
    place(&mut client.clone(), "before", [1_000]).await.unwrap();
    let gate = Gate::default();
    upstream.sim.inject(Fault::once(Endpoint::Download, When::BeforeEffect, What::Hold(gate.clone())));
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
    // Another order: the first call has let go of its key.
    let answer = send(&mut client, order("k", [1])).await.unwrap();
    assert!(!answer.replayed);
    let ledger = upstream.sim.ledger();
    assert_eq!((ledger.times_ordered(&eid(0)), ledger.times_ordered(&eid(1))), (0, 1));
    assert_eq!((ledger.logins(), ledger.token_requests()), (1, 1));
}
