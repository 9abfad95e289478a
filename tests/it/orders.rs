//! Promise 3 of the README: no download is ever ordered twice.

mod offline;
mod outcomes;
mod patience;
mod same_id;

use std::time::Duration;

use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use thingspace_gateway::{
    proto::esim::{DownloadProfileRequest, DownloadProfileResponse},
    simulator::{DeviceResult, Endpoint, Fault, Gate, Ledger, What, When},
};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::harness::*;

async fn send(
    client: &mut Client,
    order: impl tonic::IntoRequest<DownloadProfileRequest>,
) -> Result<DownloadProfileResponse, Status> {
    Ok(within("an order", client.download_profile(order)).await?.into_inner())
}

async fn refused(client: &mut Client, order: DownloadProfileRequest) -> Status {
    send(client, order).await.unwrap_err()
}

fn with_deadline(
    order: DownloadProfileRequest,
    deadline: Duration,
) -> Request<DownloadProfileRequest> {
    let mut request = Request::new(order);
    request.set_timeout(deadline);
    request
}

#[track_caller]
fn assert_is(status: &Status, code: Code, why: &str) {
    assert_eq!((status.code(), reason(status).as_str()), (code, why), "{status:?}");
}

fn retry_delay(status: &Status) -> Duration {
    status
        .get_details_retry_info()
        .and_then(|info| info.retry_delay)
        .expect("it says when to repeat")
}

fn eid(n: usize) -> String {
    device(n).eid
}

fn orders_sent(ledger: &Ledger) -> u64 {
    ledger.calls(Endpoint::Download)
}

#[tokio::test]
async fn an_order_goes_from_snapshot_to_final_state() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..2).await.unwrap();
    let watching = watch(&mut client, &id, "").await.unwrap();
    upstream.sim.finish_all(&id, DeviceResult::Success);
    let messages = watching.rest().await;
    assert!(messages.len() >= 2);
    gateway.stop().await;
}

#[tokio::test]
async fn the_same_key_is_the_same_order_on_its_account() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let first = send(&mut client, order("k", 0..2)).await.unwrap();
    assert!(!first.replayed);
    let again = send(&mut client, order("k", 0..2)).await.unwrap();
    assert_eq!((again.request_id.as_str(), again.replayed), (first.request_id.as_str(), true));

    let other_orders = [
        order("k", 0..1),
        order("k", 0..3),
        order("k", [1, 0]),
        DownloadProfileRequest { service_plan: "plan 2".to_owned(), ..order("k", 0..2) },
        DownloadProfileRequest { service_plan: String::new(), ..order("k", 0..2) },
    ];
    for other in other_orders {
        let status = refused(&mut client, other).await;
        assert_is(&status, Code::InvalidArgument, "IDEMPOTENCY_KEY_REUSED");
    }
    assert_eq!(upstream.sim.ledger().orders.len(), 1);

    let elsewhere = DownloadProfileRequest {
        account_name: upstream.accounts[1].to_string(),
        ..order("k", 0..2)
    };
    let elsewhere = send(&mut client, elsewhere).await.unwrap();
    assert!(!elsewhere.replayed);
    assert_ne!(elsewhere.request_id, first.request_id);
    let placed: Vec<_> =
        upstream.sim.ledger().orders.iter().map(|order| order.account.clone()).collect();
    assert_eq!(placed, upstream.accounts);
}

#[tokio::test]
async fn a_check_orders_nothing_and_leaves_the_key_alone() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let check = DownloadProfileRequest { validate_only: true, ..order("k", 0..2) };
    assert_eq!(send(&mut client, check).await.unwrap(), DownloadProfileResponse::default());
    assert_eq!(upstream.sim.ledger().token_requests(), 0);
    place(&mut client, "k", 5..6).await.unwrap();
}

#[tokio::test]
async fn fifty_calls_at_once_with_one_key_place_one_order() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let client = gateway.client().await;
    let calls = (0..50).map(|_| {
        let mut client = client.clone();
        async move { send(&mut client, order("k", 0..2)).await.unwrap() }
    });
    let answers = join_all(calls).await;
    assert!(answers.iter().all(|answer| answer.request_id == answers[0].request_id));
    assert_eq!(answers.iter().filter(|answer| !answer.replayed).count(), 1);
    let ledger = upstream.sim.ledger();
    assert_eq!((ledger.orders.len(), orders_sent(&ledger)), (1, 1));
}

#[tokio::test]
async fn above_the_limit_of_open_devices_nothing_is_sent() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.config();
    config.limits.open_devices = 3;
    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "a", 0..2).await.unwrap();
    let status = refused(&mut client, order("b", 2..4)).await;
    assert_is(&status, Code::ResourceExhausted, "OVERLOADED");
    assert!(!retry_delay(&status).is_zero());
    assert_eq!(orders_sent(&upstream.sim.ledger()), 1);
    place(&mut client, "c", 4..5).await.unwrap();
    // Orders that are already placed need no room.
    assert_eq!(place(&mut client, "a", 0..2).await.unwrap(), id);

    upstream.sim.finish_all(&id, DeviceResult::Success);
    watch(&mut client, &id, "").await.unwrap().rest().await;
    place(&mut client, "b", 2..4).await.unwrap();
    assert_eq!(orders_sent(&upstream.sim.ledger()), 3);
}

#[tokio::test]
async fn orders_under_way_count_as_open_devices() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.config();
    config.limits.open_devices = 3;
    let gateway = Gateway::start(config).await;
    let client = gateway.client().await;
    // Until it is opened, all orders wait in the queue.
    let gate = Gate::default();
    upstream.sim.inject(Fault::once(Endpoint::Login, When::BeforeEffect, What::Hold(gate.clone())));
    let mut calls: FuturesUnordered<_> = (0..20)
        .map(|n| {
            let mut client = client.clone();
            async move { send(&mut client, order(&format!("k{n}"), [n])).await }
        })
        .collect();
    for _ in 0..17 {
        let status = within("a refusal", calls.next()).await.unwrap().unwrap_err();
        assert_is(&status, Code::ResourceExhausted, "OVERLOADED");
    }
    gate.open();
    while let Some(answer) = calls.next().await {
        answer.unwrap();
    }
    assert_eq!(orders_sent(&upstream.sim.ledger()), 3);
}
