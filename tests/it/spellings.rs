//! Request ids in another case: one request, however callers, callbacks and ThingSpace's answers write its id.

use thingspace_gateway::{
    identity::RequestId,
    proto::{
        esim::{DeviceState, GetRequestStatusRequest},
        storage::StatusClass,
    },
    requests::Settlement,
    simulator::{Endpoint, Fault, Gate, Outcome, What, When},
};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::{
    correlation::{account, call_back},
    harness::*,
};

fn spelled(text: &str) -> RequestId {
    RequestId::parse(text).unwrap()
}

fn shouted(id: &RequestId) -> RequestId {
    spelled(&id.as_str().to_ascii_uppercase())
}

type Placing = JoinHandle<Result<RequestId, Status>>;

/// An order of two devices that ThingSpace has, and whose answer waits for the gate.
async fn begin(upstream: &Upstream, client: &Client) -> (Gate, Placing) {
    let gate = Gate::default();
    upstream.sim.inject(Fault::once(Endpoint::Download, When::AfterEffect, What::Hold(gate.clone())));
    let mut client = client.clone();
    let order = tokio::spawn(async move { place(&mut client, "k", 0..2).await });
    upstream.sim.wait_until(DEADLINE, |ledger| !ledger.orders.is_empty()).await;
    (gate, order)
}

async fn first_device_failed_for_a_reason(client: &Client, id: &RequestId) {
    eventually("the reason has arrived", || {
        let mut client = client.clone();
        async move {
            // Without asking ThingSpace, which knows no reasons.
            let an_hour = prost_types::Duration { seconds: 3_600, nanos: 0 };
            let question = GetRequestStatusRequest { max_age: Some(an_hour), ..question(id) };
            let status = ask(&mut client, question).await.unwrap();
            let failed = &status.devices[0];
            assert_eq!(failed.identifiers.as_ref().unwrap().eid, device(0).eid);
            failed.state() == DeviceState::Failed && failed.fault.is_some()
        }
    })
    .await;
}

#[tokio::test]
async fn a_look_up_in_another_case_is_about_the_orders_request() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..3).await.unwrap();
    let page = GetRequestStatusRequest { page_size: 2, ..question(&shouted(&id)) };
    let first = client.get_request_status(page.clone()).await.unwrap().into_inner();
    assert_eq!(first.status.unwrap().request_id, id.as_str());
    for id in [&id, &shouted(&id)] {
        let next = GetRequestStatusRequest { page_token: first.next_page_token.clone(), ..page.clone() };
        let next = GetRequestStatusRequest { request_id: id.to_string(), ..next };
        assert_eq!(ask(&mut client, next).await.unwrap().devices.len(), 1, "{id}");
    }
    let mut watching = watch(&mut client, &shouted(&id), "").await.unwrap();
    let (_, token) = watching.event().await;
    for n in 0..3 {
        call_back(&gateway, &[id.clone(), shouted(&id)][n % 2], n, StatusClass::Failed).await;
    }
    watching.rest().await;
    first_device_failed_for_a_reason(&client, &id).await;
    for id in [&id, &shouted(&id)] {
        let resumed = watch(&mut client, id, &token).await.unwrap().rest().await;
        assert!(!resumed.is_empty(), "{id}");
    }
    assert_eq!(upstream.sim.ledger().polls_of(&shouted(&id)), 0);
    assert_eq!(gateway.requests.overview().stray_callbacks, 0);
    gateway.stop().await;
}

#[tokio::test]
async fn a_callback_in_another_case_before_the_answer_reaches_the_request() {
    for id in ["hj-1-abc", "HJ-1-ABC", "Hj-1-aBc"].map(spelled) {
        let upstream = Upstream::manual().await;
        let gateway = Gateway::start(upstream.quiet()).await;
        let client = gateway.client().await;
        upstream.sim.set_next_id(id.clone());
        let (gate, order) = begin(&upstream, &client).await;
        call_back(&gateway, &spelled("hJ-1-Abc"), 0, StatusClass::Failed).await;
        gate.open();
        assert_eq!(order.await.unwrap().unwrap(), id);
        first_device_failed_for_a_reason(&client, &id).await;
        gateway.stop().await;
    }
}

#[tokio::test]
async fn callbacks_reach_an_order_whose_id_was_looked_up_in_another_case_before() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let known = spelled("HJ-7");
    upstream.sim.set_next_id(known.clone());
    upstream.sim.add_request(account(), [upstream_device(0)]);
    assert_eq!(ask(&mut client, question(&known)).await.unwrap().request_id, "HJ-7");
    upstream.sim.set_next_id(spelled("hj-7"));
    let id = place(&mut client, "k", [0]).await.unwrap();
    assert_eq!(id.as_str(), "hj-7");
    call_back(&gateway, &known, 0, StatusClass::Failed).await;
    first_device_failed_for_a_reason(&client, &id).await;
    assert_eq!(ask(&mut client, question(&known)).await.unwrap().request_id, "hj-7");
    gateway.stop().await;
}

/// A request with other devices is looked up first, so the order's id in another case cannot be believed. ThingSpace shows them
/// to be two requests when the order is settled.
#[tokio::test]
async fn what_thingspace_shows_to_be_two_requests_are_two() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let other = spelled("HJ-8");
    upstream.sim.set_next_id(other.clone());
    upstream.sim.add_request(account(), [upstream_device(5)]);
    assert_eq!(ask(&mut client, question(&other)).await.unwrap().devices.len(), 1);
    let id = spelled("hj-8");
    upstream.sim.set_next_id(id.clone());
    let status = place(&mut client, "k", [0]).await.unwrap_err();
    assert_eq!(kind(&status), (Code::FailedPrecondition, "ORDER_OUTCOME_UNKNOWN".to_owned()));
    eventually("it is listed", async || gateway.requests.unknown_orders().await.unwrap().len() == 1).await;
    let unknown = gateway.requests.unknown_orders().await.unwrap();
    let settlement = Settlement::AcceptedAs(id.clone());
    gateway.requests.settle_order(&unknown[0].order_id, &settlement, false).await.unwrap();
    assert_eq!(place(&mut client, "k", [0]).await.unwrap(), id);
    for (id, n) in [(&id, 0), (&other, 5)] {
        upstream.sim.finish_all(id, Outcome::Failed);
        call_back(&gateway, id, n, StatusClass::Failed).await;
        eventually("each has its own callback", || {
            let mut client = client.clone();
            async move {
                let status = ask(&mut client, question(id)).await.unwrap();
                assert_eq!(status.request_id, id.as_str());
                assert_eq!(status.devices[0].identifiers.as_ref().unwrap().iccid, device(n).iccid);
                status.devices[0].fault.as_ref().is_some_and(|fault| fault.message == format!("no {n}"))
            }
        })
        .await;
    }
    gateway.stop().await;
}
