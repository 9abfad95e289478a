//! Callbacks as ThingSpace sends them. Those that are accepted change requests and are never lost.
//! Those that are refused leave no trace.

mod descriptors;
mod refusals;
mod shapes;
mod strangers;
mod tls;

use std::{sync::Arc, time::Duration};

use thingspace_gateway::{
    callbacks::{CallbackOutcome, secrets::CallbackSecrets},
    identity::{AccountName, RequestId},
    proto::esim::{DeviceState, RequestState, watch_request_response::Event},
    simulator::{Endpoint, Fault, Gate, What, When},
    store::{Store, embedded::Embedded},
};

use crate::harness::{
    ACCOUNT, DEADLINE, Gateway, Process, Upstream, device, eventually, get_status, place,
    serve_command, states, status_call, watch, within,
};
pub use test_support::sender;
use test_support::sender::{Sender, about};

#[tokio::test]
async fn a_watcher_sees_a_callback_and_its_details() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.with_callbacks()).await;
    let mut client = gateway.client().await;
    let sender = Sender::new(&gateway);
    let id = place(&mut client, "key", 0..2).await.unwrap();
    let mut watching = watch(&mut client, &id, "").await.unwrap();
    assert!(matches!(watching.event().await.0, Event::Snapshot(_)));

    assert_eq!(sender.post(&about(&id, &device(0), "SUCCESS")).await, 200);
    let (Event::Change(change), _) = watching.event().await else { panic!("a change") };
    assert_eq!(change.devices[0].state(), DeviceState::Succeeded);
    assert_eq!(change.devices[0].profile.as_ref().unwrap().role, "LOCAL");

    let fault = r#"{"faultcode":"A.B.C","faultstring":"no 8914800000000000010"}"#;
    assert_eq!(sender.post(&about(&id, &device(1), "Failed").replace("null", fault)).await, 200);
    let (Event::Change(change), _) = watching.event().await else { panic!("a change") };
    assert_eq!(change.state(), RequestState::PartiallySucceeded);
    let fault = change.devices[0].fault.as_ref().unwrap();
    assert_eq!((&*fault.code, &*fault.message), ("A.B.C", "no …0010"));
    assert!(watching.rest().await.is_empty());
    gateway.stop().await;
}

#[tokio::test]
async fn a_callback_before_the_orders_answer_is_kept() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.with_callbacks()).await;
    let sender = Sender::new(&gateway);
    let gate = Gate::default();
    upstream.sim.inject(Fault::once(
        Endpoint::Download,
        When::AfterEffect,
        What::Hold(gate.clone()),
    ));
    let mut client = gateway.client().await;
    let placing = tokio::spawn({
        let mut client = client.clone();
        async move { place(&mut client, "key", 0..1).await }
    });
    let ordered = upstream.sim.wait_until(DEADLINE, |ledger| !ledger.orders.is_empty()).await;
    let id = ordered.orders[0].request_id.clone();
    assert_eq!(sender.post(&about(&id, &device(0), "Success")).await, 200);
    gate.open();
    assert_eq!(within("the order's answer", placing).await.unwrap().unwrap(), id);
    let status = get_status(&mut client, status_call(&id)).await.unwrap();
    assert_eq!(status.state(), RequestState::Succeeded);
    assert!(status.devices[0].profile.is_some());
    gateway.stop().await;
}

#[tokio::test]
async fn the_same_callback_twice_at_the_same_moment_is_one_change() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.with_callbacks()).await;
    let sender = Sender::new(&gateway);
    let mut client = gateway.client().await;
    let id = place(&mut client, "key", 0..1).await.unwrap();
    let watching = watch(&mut client, &id, "").await.unwrap();
    let body = about(&id, &device(0), "Success");
    let again = body.replace(r#""callbackCount":1"#, r#""callbackCount":"2""#);
    assert_ne!(body, again);
    let (first, second) = tokio::join!(sender.post(&body), sender.post(&again));
    assert_eq!((first, second), (200, 200));
    let changes = watching.rest().await.into_iter().map(|message| message.event.unwrap());
    assert_eq!(changes.filter(|event| matches!(event, Event::Change(_))).count(), 1);
    assert_eq!(get_status(&mut client, status_call(&id)).await.unwrap().revision, 2);
    assert_eq!(sender.count(CallbackOutcome::Stored), 2);
    gateway.stop().await;
}

#[tokio::test]
async fn a_late_warning_changes_nothing() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.with_callbacks()).await;
    let sender = Sender::new(&gateway);
    let mut client = gateway.client().await;
    let id = place(&mut client, "key", 0..2).await.unwrap();
    for (n, word) in [(0, "Success"), (0, "warning"), (1, "warning")] {
        assert_eq!(sender.post(&about(&id, &device(n), word)).await, 200);
    }
    let settled = [DeviceState::Succeeded, DeviceState::Waiting];
    eventually("the callbacks are folded", async || {
        states(&get_status(&mut gateway.client().await, status_call(&id)).await.unwrap()) == settled
    })
    .await;
    assert_eq!(sender.post(&about(&id, &device(1), "Failed")).await, 200);
    eventually("the request is finished", async || {
        let status = get_status(&mut gateway.client().await, status_call(&id)).await.unwrap();
        status.state() == RequestState::PartiallySucceeded
    })
    .await;
    gateway.stop().await;
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_restart() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.with_callbacks()).await;
    let sender = Sender::new(&gateway);
    let id = place(&mut gateway.client().await, "key", 0..1).await.unwrap();
    assert_eq!(sender.post(&about(&id, &device(0), "Success")).await, 200);
    assert_eq!(sender.post("<not a callback>").await, 200);
    gateway.stop().await;

    let gateway = Gateway::start(upstream.with_callbacks()).await;
    let again = Sender::new(&gateway);
    assert_eq!(again.path, sender.path, "a registered address stays");
    let status = get_status(&mut gateway.client().await, status_call(&id)).await.unwrap();
    assert_eq!(status.state(), RequestState::Succeeded);
    let quarantine = gateway.callbacks.as_ref().unwrap().1.quarantine();
    let listed = quarantine.list().await.unwrap();
    let shown = quarantine.show(listed[0].number).await.unwrap();
    assert_eq!(
        (listed.len(), shown.map(|shown| shown.body).as_deref()),
        (1, Some("<not a callback>"))
    );
    // The registered pair is still valid.
    let same = Sender { url: again.url.clone(), ..sender };
    assert_eq!(same.post(&about(&id, &device(0), "Success")).await, 200);
    gateway.stop().await;
}

#[tokio::test]
async fn a_replaced_password_is_accepted_for_a_while() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.with_callbacks();
    for (grace, accepted) in [(config.callbacks.password_grace, 200), (Duration::ZERO, 401)] {
        config.callbacks.password_grace = grace;
        let gateway = Gateway::start(config.clone()).await;
        let id = place(&mut gateway.client().await, "key", 0..1).await.unwrap();
        let old = Sender::new(&gateway);
        let account = AccountName::parse(ACCOUNT).unwrap();
        old.callbacks.secrets().rotate(&account).await.unwrap();
        let new = Sender::new(&gateway);
        assert_ne!(old.password, new.password);
        assert_eq!(new.post(&about(&id, &device(0), "warning")).await, 200);
        assert_eq!(old.post(&about(&id, &device(0), "warning")).await, accepted);
        gateway.stop().await;
    }
}

#[tokio::test]
async fn callbacks_are_accepted_while_the_gateway_drains() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.with_callbacks()).await;
    let sender = Sender::new(&gateway);
    let gate = Gate::default();
    upstream.sim.inject(Fault::once(
        Endpoint::Download,
        When::AfterEffect,
        What::Hold(gate.clone()),
    ));
    let mut client = gateway.client().await;
    let placing = tokio::spawn(async move { place(&mut client, "key", 0..1).await });
    let ordered = upstream.sim.wait_until(DEADLINE, |ledger| !ledger.orders.is_empty()).await;
    let id = ordered.orders[0].request_id.clone();
    gateway.stop.soft.cancel();
    let address = gateway.address;
    eventually("the drain has begun", async || {
        tokio::net::TcpStream::connect(address).await.is_err()
    })
    .await;
    assert_eq!(sender.post(&about(&id, &device(0), "Success")).await, 200);
    gate.open();
    assert_eq!(within("the order's answer", placing).await.unwrap().unwrap(), id);
    gateway.stop().await;

    let gateway = Gateway::start(upstream.with_callbacks()).await;
    let status = get_status(&mut gateway.client().await, status_call(&id)).await.unwrap();
    assert_eq!(status.state(), RequestState::Succeeded);
    gateway.stop().await;
}

/// At the most detailed log level, no line contains the path secret, the pair or a body.
#[tokio::test]
async fn nothing_of_a_callback_is_logged() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.with_callbacks();
    config.callbacks.username_file = upstream.dir.path().join("callback-username");
    config.callbacks.password_file = upstream.dir.path().join("callback-password");
    std::fs::write(&config.callbacks.username_file, "verizon-says").unwrap();
    std::fs::write(&config.callbacks.password_file, "open-sesame").unwrap();
    let account = AccountName::parse(ACCOUNT).unwrap();
    let store: Arc<dyn Store> =
        Arc::new(Embedded::open(&config.store.path, Duration::from_hours(1)).unwrap());
    let accounts = [account.clone()];
    let secrets = CallbackSecrets::new(&config.callbacks, Arc::clone(&store), &accounts);
    secrets.refresh().await.unwrap();
    let path = secrets.path(&account);
    store.close().await;
    drop((secrets, store));

    let process =
        Process::spawn(serve_command(&config, upstream.dir.path()).env("RUST_LOG", "trace"));
    let url = format!("http://{}/{path}", process.callbacks.unwrap());
    let http = reqwest::Client::new();
    let id = RequestId::parse("request-1").unwrap();
    let body = about(&id, &device(7), "Success").replace(r#""user""#, r#""verizon-says""#);
    for (body, status) in [
        (body.replace(r#""secret""#, r#""open-sesame""#), 200),
        (body.clone(), 401),
        (format!("{{{body}"), 200),
        (" ".repeat(300_000), 413),
    ] {
        let answer = within("an answer", http.post(&url).body(body).send()).await.unwrap();
        assert_eq!(answer.status(), status);
    }
    process.terminate();
    let (_, lines) = process.wait().await;
    assert!(lines.iter().any(|line| line.contains("in quarantine")), "it logs");
    for secret in
        [&*path, "verizon-says", "open-sesame", &*device(7).eid, &*device(7).iccid, "LOCAL"]
    {
        let shown: Vec<_> = lines.iter().filter(|line| line.contains(secret)).collect();
        assert!(shown.is_empty(), "{secret}: {shown:?}");
    }
}
