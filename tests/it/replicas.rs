//! Several replicas on one NATS server keep the same promises as one gateway, also while NATS is
//! unavailable. Tests that take long or kill processes are in `tests/heavy`.

use std::time::Duration;

use futures_util::future::join_all;
use thingspace_gateway::{
    callbacks::registration::Registrar,
    identity::AccountName,
    proto::esim::{RequestState, watch_request_response::Event},
    requests::Settlement,
    simulator::{DeviceResult, Endpoint, Fault, Gate, What, When},
};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt;

use crate::{
    callbacks::sender::{Sender, about},
    harness::*,
    nats_server::NatsServer,
};

pub async fn health(gateway: &Gateway) -> ServingStatus {
    let mut client = HealthClient::new(channel(gateway.address).await);
    let asked = client.check(HealthCheckRequest { service: String::new() });
    within("health", asked).await.unwrap().into_inner().status()
}

pub async fn readiness(gateway: &Gateway) -> (u16, String) {
    let answer =
        within("a probe", reqwest::get(format!("http://{}/readyz", gateway.admin))).await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

pub async fn stop(gateways: impl IntoIterator<Item = Gateway>) {
    join_all(gateways.into_iter().map(Gateway::stop)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_replica_receives_all_replicas_know() {
    let (upstream, nats) = (Upstream::manual().await, NatsServer::start().await);
    let gateways = upstream.replicas(&upstream.with_callbacks(), &nats.url()).await;
    let [a, b, c] = &gateways;
    let (mut at_a, mut at_c) = (a.client().await, c.client().await);
    for n in 0..20 {
        let id = place(&mut at_a, &format!("known-{n}"), [100 + n]).await.unwrap();
        let status = get_status(&mut at_c, status_call(&id)).await.unwrap();
        assert_eq!((status.revision, status.devices.len()), (1, 1), "order {n}");
    }

    let id = place(&mut at_a, "watched", 0..2).await.unwrap();
    let mut watching = watch(&mut at_c, &id, "").await.unwrap();
    assert!(matches!(watching.event().await.0, Event::Snapshot(_)));
    let senders = [Sender::new(a), Sender::new(b), Sender::new(c)];
    assert!(
        senders
            .iter()
            .all(|sender| (&sender.path, &sender.password)
                == (&senders[0].path, &senders[0].password))
    );
    assert_eq!(senders[1].post(&about(&id, &device(0), "Success")).await, 200);
    let (Event::Change(change), token) = watching.event().await else { panic!("a change") };
    assert_eq!((change.revision, change.devices.len()), (2, 1));
    drop(watching);

    // It is resumed at another replica and gets only the missed changes.
    assert_eq!(senders[2].post(&about(&id, &device(1), "Failed")).await, 200);
    let rest = watch(&mut at_a, &id, &token).await.unwrap().rest().await;
    let told: Vec<_> = rest
        .into_iter()
        .filter_map(|m| m.event)
        .filter(|e| !matches!(e, Event::Heartbeat(_)))
        .collect();
    let [Event::Change(last)] = &told[..] else { panic!("one change: {told:?}") };
    assert_eq!((last.revision, last.state()), (3, RequestState::PartiallySucceeded));
    for gateway in &gateways {
        let mut client = gateway.client().await;
        eventually("every replica is there", async || {
            get_status(&mut client.clone(), status_call(&id)).await.unwrap().revision == 3
        })
        .await;
        let status = get_status(&mut client, status_call(&id)).await.unwrap();
        assert_eq!(status.state(), RequestState::PartiallySucceeded);
    }
    stop(gateways).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_is_one_order_at_whatever_replicas() {
    let (upstream, nats) = (Upstream::manual().await, NatsServer::start().await);
    let gateways = upstream.replicas(&upstream.quiet(), &nats.url()).await;
    let clients = join_all(gateways.iter().map(Gateway::client)).await;
    for n in 0..20 {
        let gate = Gate::default();
        if n == 0 {
            upstream.sim.inject(Fault::once(
                Endpoint::Download,
                When::AfterEffect,
                What::Hold(gate.clone()),
            ));
        }
        let calls = clients.iter().cloned().map(|mut client| {
            tokio::spawn(
                async move { client.download_profile(order(&format!("key-{n}"), [n])).await },
            )
        });
        let calls: Vec<_> = calls.collect();
        if n == 0 {
            // The replicas that do not send the order wait for the one that does.
            upstream
                .sim
                .wait_until(DEADLINE, |ledger| ledger.in_flight(Endpoint::Download) == 1)
                .await;
            gate.open();
        }
        let answers = within("the answers", join_all(calls)).await;
        let answers: Vec<_> =
            answers.into_iter().map(|answer| answer.unwrap().unwrap().into_inner()).collect();
        assert!(
            answers.iter().all(|answer| answer.request_id == answers[0].request_id),
            "{answers:?}"
        );
        assert_eq!(answers.iter().filter(|answer| !answer.replayed).count(), 1, "{answers:?}");
        assert_eq!(upstream.sim.ledger().times_ordered(&device(n).eid), 1);
    }
    assert_eq!(upstream.sim.ledger().orders.len(), 20);
    // The key belongs to this order only.
    let other = place(&mut clients[1].clone(), "key-0", [1_000]).await.unwrap_err();
    assert_eq!(kind(&other), (Code::InvalidArgument, "IDEMPOTENCY_KEY_REUSED".to_owned()));
    stop(gateways).await;
}

/// A suspended sender continues after an operator has settled its order. Even its own result, that
/// nothing was placed, does not free the key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_order_was_settled_as_stays() {
    let (upstream, nats) = (Upstream::manual().await, NatsServer::start().await);
    let mut config = upstream.quiet();
    config.thingspace.order_timeout = Duration::from_millis(300);
    let gateways = upstream.replicas(&config, &nats.url()).await;
    let mut clients = join_all(gateways.iter().map(Gateway::client)).await;
    place(&mut clients[0], "before", [0]).await.unwrap();
    // It is refused, and gets no session for another attempt until long after its lease.
    upstream.sim.expire_sessions();
    let gate = Gate::default();
    upstream.sim.inject(Fault::once(Endpoint::Login, When::BeforeEffect, What::Hold(gate.clone())));
    let mut sender = clients[0].clone();
    let late = tokio::spawn(async move { place(&mut sender, "k", [1]).await });
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.in_flight(Endpoint::Login) == 1).await;
    let unknown = place(&mut clients[1], "k", [1]).await.unwrap_err();
    assert_eq!(kind(&unknown), (Code::FailedPrecondition, "ORDER_OUTCOME_UNKNOWN".to_owned()));
    let order_id = unknown.get_details_error_info().unwrap().metadata["orderId"].clone();
    let placed = upstream.sim.add_request(upstream.accounts[0].clone(), []);
    let settlement = Settlement::AcceptedAs(placed.clone());
    within("a settlement", gateways[1].requests.settle_order(&order_id, &settlement, true))
        .await
        .unwrap();

    gate.open();
    let late = within("the sender's answer", late).await.unwrap().unwrap_err();
    assert_eq!(kind(&late), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".to_owned()));
    for client in &mut clients {
        assert_eq!(place(client, "k", [1]).await.unwrap(), placed);
    }
    let ledger = upstream.sim.ledger();
    assert_eq!(
        (ledger.calls(Endpoint::Download), ledger.orders.len()),
        (2, 1),
        "sent once, turned away"
    );
    stop(gateways).await;
}

/// One replica registers, and the others accept the registration. An operator's command at one of
/// them applies to all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_registration_serves_all_replicas() {
    let (upstream, nats) = (Upstream::manual().await, NatsServer::start().await);
    let mut config = upstream.with_callbacks();
    config.credentials[0].accounts.truncate(1);
    config.callbacks.register = true;
    config.callbacks.public_url = "http://127.0.0.1:9001/callbacks/".into();
    let gateways = upstream.replicas(&config, &nats.url()).await;
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.calls(Endpoint::ListCallbacks) >= 3).await;
    let account = AccountName::parse(ACCOUNT).unwrap();
    let registration = |n: usize| -> &Registrar { gateways[n].registration.as_ref().unwrap() };
    for n in 0..3 {
        let listed = within("a listing", registration(n).list(&account)).await.unwrap();
        assert!(listed.len() == 1 && listed[0].ours, "{listed:?}");
    }
    within("a rotation", registration(1).rotate(&account)).await.unwrap();
    let secrets = gateways[1].callbacks.as_ref().unwrap().1.secrets();
    assert_eq!(
        upstream.sim.registered(&account).unwrap().username,
        secrets.pair(&account).unwrap().username
    );
    within("its end", registration(2).deregister(&account)).await.unwrap();
    let listed = within("a listing", registration(0).list(&account)).await.unwrap();
    assert!(listed.is_empty(), "{listed:?}");
    stop(gateways).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_nats_known_states_are_returned() {
    let (upstream, mut nats) = (Upstream::manual().await, NatsServer::start().await);
    let mut config = upstream.with_callbacks();
    config.grpc.heartbeat = Duration::from_millis(100);
    let gateway = Gateway::start(upstream.replica(&config, &nats.url(), 1, 0)).await;
    let (mut client, sender) = (gateway.client().await, Sender::new(&gateway));
    let finished = place(&mut client, "finished", [0]).await.unwrap();
    let open = place(&mut client, "open", 1..3).await.unwrap();
    upstream.sim.finish_all(&finished, DeviceResult::Success);
    assert_eq!(
        get_status(&mut client, status_call(&finished)).await.unwrap().state(),
        RequestState::Succeeded
    );
    let mut watching = watch(&mut client, &open, "").await.unwrap();
    assert!(matches!(watching.event().await.0, Event::Snapshot(_)));

    nats.kill();
    let before = upstream.sim.ledger();
    let refused = place(&mut client, "away", [3]).await.unwrap_err();
    assert_eq!(kind(&refused), (Code::Unavailable, "STORE_UNAVAILABLE".to_owned()));
    assert_eq!(sender.post(&about(&open, &device(1), "Success")).await, 503);
    assert_eq!(
        get_status(&mut client, status_call(&finished)).await.unwrap().state(),
        RequestState::Succeeded
    );
    for _ in 0..5 {
        let beat = watching.next().await.unwrap().and_then(|message| message.event);
        assert!(matches!(beat, Some(Event::Heartbeat(_))), "{beat:?}");
    }
    // Also a call that begins now.
    let (begun, _) = watch(&mut client, &open, "").await.unwrap().event().await;
    assert!(matches!(begun, Event::Snapshot(_)));
    assert_eq!(
        (readiness(&gateway).await.0, health(&gateway).await),
        (200, ServingStatus::Serving)
    );
    let after = upstream.sim.ledger();
    assert_eq!((after.logins(), after.orders.len()), (before.logins(), before.orders.len()));

    nats.restart().await;
    let mut again = client.clone();
    eventually("orders are taken again", async || {
        place(&mut again.clone(), "away", [3]).await.is_ok()
    })
    .await;
    assert_eq!(sender.post(&about(&open, &device(1), "Success")).await, 200);
    let (Event::Change(change), _) = watching.event().await else { panic!("a change") };
    assert_eq!(change.revision, 2);
    place(&mut again, "away", [3]).await.unwrap();
    assert_eq!(upstream.sim.ledger().times_ordered(&device(3).eid), 1);
    assert_eq!(upstream.sim.ledger().logins(), before.logins());
    stop([gateway]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_without_nats_waits_for_it() {
    let (upstream, mut nats) = (Upstream::manual().await, NatsServer::stopped_with(""));
    let config = upstream.replica(&upstream.with_callbacks(), &nats.url(), 1, 0);
    let gateway = Gateway::launch(config).await;
    let mut client = gateway.client().await;
    assert_eq!(health(&gateway).await, ServingStatus::NotServing);
    let (status, why) = readiness(&gateway).await;
    assert!(status == 503 && why.contains("store"), "{status} {why}");
    let refused = place(&mut client, "early", [0]).await.unwrap_err();
    assert_eq!(kind(&refused), (Code::Unavailable, "STORE_UNAVAILABLE".to_owned()));
    let path = "a".repeat(43);
    let url = format!("http://{}/{path}", gateway.callbacks.as_ref().unwrap().0);
    let http = reqwest::Client::new();
    let answer = within("an answer", http.post(&url).body("{}").send()).await.unwrap();
    assert_eq!(answer.status(), 503, "it may be a right path");

    nats.restart().await;
    eventually("it is ready", async || health(&gateway).await == ServingStatus::Serving).await;
    assert_eq!(readiness(&gateway).await.0, 200);
    let id = place(&mut client, "early", [0]).await.unwrap();
    assert_eq!(Sender::new(&gateway).post(&about(&id, &device(0), "Success")).await, 200);
    let answer = within("an answer", http.post(&url).body("{}").send()).await.unwrap();
    assert_eq!(answer.status(), 404);
    stop([gateway]).await;
}

/// Without a watch, the next poll would be hours later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_anywhere_gets_the_watched_cadence() {
    let (upstream, nats) = (Upstream::manual().await, NatsServer::start().await);
    let mut config = upstream.config();
    config.polling.factor = 10.0;
    config.polling.max_watched = Duration::from_millis(100);
    config.polling.max = Duration::from_hours(24);
    let gateways = upstream.replicas(&config, &nats.url()).await;
    let id = place(&mut gateways[0].client().await, "key", [0]).await.unwrap();
    let watching = watch(&mut gateways[2].client().await, &id, "").await.unwrap();
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls_of(&id) >= 20).await;
    upstream.sim.finish_all(&id, DeviceResult::Success);
    watching.rest().await;
    stop(gateways).await;
}
