//! A status query is cancelled when no caller waits for its answer.

use std::time::Duration;

use thingspace_gateway::simulator::{DeviceResult, Endpoint, Fault, Gate, What, When};
use tonic::{Code, Request, Status};

use crate::harness::*;

/// Returns a request and a gateway that does not poll. ThingSpace holds its answer to the next
/// status query.
async fn held() -> (Upstream, Gateway, thingspace_gateway::identity::RequestId, Gate) {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let id = place(&mut gateway.client().await, "k", [0]).await.unwrap();
    let gate = Gate::default();
    upstream.sim.inject(Fault::once(
        Endpoint::Status,
        When::BeforeEffect,
        What::Hold(gate.clone()),
    ));
    (upstream, gateway, id, gate)
}

async fn get_status_within(
    mut client: Client,
    id: &thingspace_gateway::identity::RequestId,
    deadline: Duration,
) -> Result<(), Status> {
    let mut request = Request::new(status_call(id));
    request.set_timeout(deadline);
    within("a status", client.get_request_status(request)).await.map(drop)
}

#[tokio::test]
async fn a_status_query_without_a_waiting_caller_is_cancelled() {
    let (upstream, gateway, id, gate) = held().await;
    let client = gateway.client().await;
    let late =
        get_status_within(client.clone(), &id, Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late:?}");
    // A new call does not wait for the cancelled query, and does not get the error that it
    // failed.
    get_status_within(client.clone(), &id, DEADLINE).await.unwrap();
    assert_eq!(upstream.sim.ledger().polls(), 2);
    // A caller that hangs up counts like one whose deadline has passed.
    upstream.sim.inject(Fault::once(
        Endpoint::Status,
        When::BeforeEffect,
        What::Hold(gate.clone()),
    ));
    let hung_up = tokio::spawn({
        let (client, id) = (client.clone(), id.clone());
        async move { get_status_within(client, &id, DEADLINE).await }
    });
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls() == 3).await;
    hung_up.abort();
    assert!(hung_up.await.unwrap_err().is_cancelled());
    eventually("the status query is cancelled", || {
        let (client, id) = (client.clone(), id.clone());
        async move { get_status_within(client, &id, Duration::from_secs(2)).await.is_ok() }
    })
    .await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_status_query_continues_while_a_caller_waits() {
    let (upstream, gateway, id, gate) = held().await;
    let client = gateway.client().await;
    let patient = tokio::spawn({
        let (mut client, status_call) = (client.clone(), status_call(&id));
        async move { get_status(&mut client, status_call).await }
    });
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls() == 1).await;
    get_status_within(client.clone(), &id, Duration::from_millis(300)).await.unwrap_err();
    upstream.sim.finish_all(&id, DeviceResult::Success);
    gate.open();
    let answer = within("the answer", patient).await.unwrap().unwrap();
    assert_eq!(answer.counts.unwrap().succeeded, 1);
    assert_eq!(upstream.sim.ledger().polls(), 1);
    gateway.stop().await;
}

/// A drain does not wait for a query without a caller.
#[tokio::test]
async fn a_drain_waits_for_no_poll() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.config();
    config.thingspace.call_timeout = Duration::from_mins(5);
    config.grpc.drain = Duration::from_mins(10);
    let gateway = Gateway::start(config).await;
    let hold = What::Hold(Gate::default());
    upstream.sim.inject(Fault::always(Endpoint::Status, When::BeforeEffect, hold));
    place(&mut gateway.client().await, "k", [0]).await.unwrap();
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls() == 1).await;
    gateway.stop().await;
}
