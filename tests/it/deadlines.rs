//! A deadline always ends a call with DEADLINE_EXCEEDED and its reason, never with CANCELLED.
//!
//! The client of these tests only sends the header `grpc-timeout`. It has no timer of its own, so
//! it always receives the server's answer.

use futures_util::future::{BoxFuture, FutureExt, join_all};
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};
use thingspace_gateway::{
    proto::esim::{WatchRequestRequest, esim_service_client::EsimServiceClient},
    simulator::{Endpoint, Fault, Gate, What, When},
};
use tonic::{Code, Request, Status, body::Body, metadata::AsciiMetadataValue};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;

use crate::harness::*;

type Raw = EsimServiceClient<Http<HttpConnector, Body>>;

fn http() -> Http<HttpConnector, Body> {
    Http::builder(TokioExecutor::new()).http2_only(true).build_http()
}

fn raw(gateway: &Gateway) -> Raw {
    EsimServiceClient::with_origin(http(), format!("http://{}", gateway.address).parse().unwrap())
}

fn timed<T>(message: T, timeout: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("grpc-timeout", AsciiMetadataValue::try_from(timeout).unwrap());
    request
}

#[track_caller]
fn assert_late(status: &Status, what: &str) {
    assert_eq!(kind(status), (Code::DeadlineExceeded, "DEADLINE".to_owned()), "{what}: {status:?}");
    let speaks_of_orders = status.message().contains("order");
    assert!(!speaks_of_orders || what.contains("order"), "{what}: {status:?}");
}

fn target(id: &thingspace_gateway::identity::RequestId) -> WatchRequestRequest {
    WatchRequestRequest {
        account_name: ACCOUNT.to_owned(),
        request_id: id.to_string(),
        resume_token: String::new(),
    }
}

/// Watches a request that stays open. Returns the last token and the status that ends the watch.
async fn end_of_watch(mut client: Raw, request: Request<WatchRequestRequest>) -> (String, Status) {
    let mut token = String::new();
    let mut stream = match client.watch_request(request).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return (token, status),
    };
    loop {
        match stream.message().await {
            Ok(Some(message)) => token = message.resume_token,
            Ok(None) => panic!("the watch ended well"),
            Err(status) => return (token, status),
        }
    }
}

/// Hundreds of concurrent calls on two threads, so that some are polled late, with deadlines that
/// cannot be met.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_ends_with_deadline_exceeded_and_none_cancelled() {
    const TIMEOUTS: [&str; 14] = [
        "0n", "1n", "1u", "1m", "2m", "5m", "10m", "19m", "20m", "21m", "30m", "50m", "100m",
        "300000u",
    ];
    const ROUNDS: usize = 12;
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let id = place(&mut gateway.client().await, "before", [0]).await.unwrap();
    // From now on ThingSpace does not answer.
    let gate = Gate::default();
    for endpoint in [Endpoint::Status, Endpoint::Download] {
        upstream.sim.inject(Fault::always(endpoint, When::BeforeEffect, What::Hold(gate.clone())));
    }
    let (client, mut calls) = (raw(&gateway), Vec::<BoxFuture<'_, (String, Status)>>::new());
    for (n, timeout) in (0..ROUNDS).flat_map(|_| TIMEOUTS).enumerate() {
        let mut asking = client.clone();
        let asked = timed(status_call(&id), timeout);
        calls.push(
            async move {
                (
                    format!("a status, {timeout}"),
                    asking.get_request_status(asked).await.unwrap_err(),
                )
            }
            .boxed(),
        );
        let mut ordering = client.clone();
        let ordered = timed(order(&format!("k{n}"), [1 + n]), timeout);
        calls.push(
            async move {
                (
                    format!("an order, {timeout}"),
                    ordering.download_profile(ordered).await.unwrap_err(),
                )
            }
            .boxed(),
        );
        let watched = end_of_watch(client.clone(), timed(target(&id), timeout));
        calls.push(async move { (format!("a watch, {timeout}"), watched.await.1) }.boxed());
    }
    for (what, status) in within("every call ends", join_all(calls)).await {
        // An order with too many others before it is refused before its deadline.
        let overloaded = kind(&status) == (Code::ResourceExhausted, "OVERLOADED".to_owned());
        if !(overloaded && what.starts_with("an order")) {
            assert_late(&status, &what);
        }
    }
    gate.open();
    gateway.stop().await;
}

#[tokio::test]
async fn a_stream_ends_with_its_token() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let id = place(&mut gateway.client().await, "k", [0]).await.unwrap();
    // On a busy machine the deadline may pass before the first message.
    for timeout in ["100m", "500m", "2500m", "12S"] {
        let watched = end_of_watch(raw(&gateway), timed(target(&id), timeout));
        let (token, status) = within("the end", watched).await;
        assert_late(&status, timeout);
        let mut said = status.get_details_error_info().unwrap().metadata;
        assert_eq!(said.remove("resumeToken").unwrap_or_default(), token, "{timeout}");
        if !token.is_empty() {
            let resumed = watch(&mut gateway.client().await, &id, &token).await.unwrap();
            drop(resumed);
            return gateway.stop().await;
        }
    }
    panic!("no message in time");
}

/// The health service does not handle deadlines itself.
#[tokio::test]
async fn a_stream_of_another_service_ends_too() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let origin = format!("http://{}", gateway.address).parse().unwrap();
    let mut client = HealthClient::with_origin(http(), origin);
    let request = timed(HealthCheckRequest::default(), "200m");
    let mut stream = within("a stream", client.watch(request)).await.unwrap().into_inner();
    assert!(within("a message", stream.message()).await.unwrap().is_some());
    let status = within("the end", stream.message()).await.unwrap_err();
    assert_late(&status, "a watch of health");
    gateway.stop().await;
}

#[tokio::test]
async fn a_call_with_an_invalid_timeout_is_refused() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = raw(&gateway);
    for timeout in ["", "1", "S", "1x", "123456789S", "-1S"] {
        let call = client.download_profile(timed(order("k", [0]), timeout));
        let status = within("an answer", call).await.unwrap_err();
        assert_eq!(kind(&status), (Code::Internal, "MALFORMED_CALL".to_owned()), "{timeout:?}");
    }
    assert!(upstream.sim.ledger().orders.is_empty());
    gateway.stop().await;
}

/// With the shortest deadline that leaves any time.
#[tokio::test]
async fn wrong_fields_are_reported_at_once() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let client = raw(&gateway);
    let mut wrong = order("k", [0]);
    wrong.devices.clear();
    eventually("the answer is ahead of the deadline", async || {
        let call = client.clone().download_profile(timed(wrong.clone(), "20m")).await;
        let status = call.unwrap_err();
        let told = kind(&status) == (Code::InvalidArgument, "INVALID_FIELD".to_owned());
        if !told {
            assert_late(&status, "a wrong order");
        }
        told
    })
    .await;
    gateway.stop().await;
}
