//! A question lives as long as somebody waits for its answer.

use std::time::Duration;

use thingspace_gateway::simulator::{DeviceResult, Endpoint, Fault, Gate, What, When};
use tonic::{Code, Request, Status};

use crate::harness::*;

/// A request, and a gateway that asks about it only when somebody does; the next question is held
/// upstream.
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

async fn ask_for(
    mut client: Client,
    id: &thingspace_gateway::identity::RequestId,
    deadline: Duration,
) -> Result<(), Status> {
    let mut request = Request::new(question(id));
    request.set_timeout(deadline);
    within("a status", client.get_request_status(request)).await.map(drop)
}

#[tokio::test]
async fn a_question_nobody_waits_for_is_given_up() {
    let (upstream, gateway, id, gate) = held().await;
    let client = gateway.client().await;
    let late = ask_for(client.clone(), &id, Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late:?}");
    // Whoever comes now does not wait for an answer that nobody waited for, nor is told that it
    // failed.
    ask_for(client.clone(), &id, DEADLINE).await.unwrap();
    assert_eq!(upstream.sim.ledger().polls(), 2);
    // One that hangs up counts like one whose time is up.
    upstream.sim.inject(Fault::once(
        Endpoint::Status,
        When::BeforeEffect,
        What::Hold(gate.clone()),
    ));
    let hung_up = tokio::spawn({
        let (client, id) = (client.clone(), id.clone());
        async move { ask_for(client, &id, DEADLINE).await }
    });
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls() == 3).await;
    hung_up.abort();
    assert!(hung_up.await.unwrap_err().is_cancelled());
    eventually("the question is given up", || {
        let (client, id) = (client.clone(), id.clone());
        async move { ask_for(client, &id, Duration::from_secs(2)).await.is_ok() }
    })
    .await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_question_goes_on_for_whoever_still_waits() {
    let (upstream, gateway, id, gate) = held().await;
    let client = gateway.client().await;
    let patient = tokio::spawn({
        let (mut client, question) = (client.clone(), question(&id));
        async move { ask(&mut client, question).await }
    });
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls() == 1).await;
    ask_for(client.clone(), &id, Duration::from_millis(300)).await.unwrap_err();
    upstream.sim.finish_all(&id, DeviceResult::Success);
    gate.open();
    let answer = within("the answer", patient).await.unwrap().unwrap();
    assert_eq!(answer.counts.unwrap().succeeded, 1);
    assert_eq!(upstream.sim.ledger().polls(), 1);
    gateway.stop().await;
}

/// It is no longer anybody's, so a drain does not wait for it either.
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
