//! A store that lost something: nothing is ordered twice, no replica is ready, all sources say
//! what is missing, and they continue without a restart when an operator has accepted the loss.

mod alone;
mod guards;
mod purged;

use std::time::Duration;

use async_nats::jetstream;
use futures_util::{TryStreamExt as _, future::join_all};
use thingspace_gateway::{
    identity::RequestId,
    proto::esim::{RequestState, watch_request_response::Event},
    simulator::DeviceResult,
};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt;

use crate::{
    callbacks::sender::Sender,
    control::told,
    harness::*,
    nats_server::NatsServer,
    replicas::{health, readiness, stop},
};

async fn admin(nats: &NatsServer) -> jetstream::Context {
    jetstream::new(async_nats::connect(nats.url()).await.unwrap())
}

/// Waits until no replica is ready, and each says what is missing and what to do.
async fn all_say(gateways: &[Gateway], what: &str) {
    for gateway in gateways {
        eventually("it is not ready", async || readiness(gateway).await.0 == 503).await;
        eventually(what, async || {
            let said = readiness(gateway).await.1;
            said.contains(what) && said.contains("store accept-loss")
        })
        .await;
        eventually("health says so", async || health(gateway).await == ServingStatus::NotServing)
            .await;
    }
}

async fn all_are_ready(gateways: &[Gateway]) {
    for gateway in gateways {
        eventually("it is ready", async || readiness(gateway).await.0 == 200).await;
        eventually("health says so", async || health(gateway).await == ServingStatus::Serving)
            .await;
    }
}

/// All streams are lost. Watches begin with a snapshot, and earlier results are not sent again as
/// if they were new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_deleted_waits_for_an_operator_and_is_read_anew() {
    let (upstream, nats) = (Upstream::manual().await, NatsServer::start().await);
    let config = upstream.replica(&upstream.with_callbacks(), &nats.url(), 1, 0);
    let gateways = [Gateway::start(config.clone()).await];
    let [gateway] = &gateways;
    let mut client = gateway.client().await;
    let id = place(&mut client, "before", 0..2).await.unwrap();
    let mut watching = watch(&mut client, &id, "").await.unwrap();
    let (_, token) = watching.event().await;
    let path = Sender::new(gateway).path;
    let mut told = HealthClient::new(channel(gateway.address).await);
    let asked = told.watch(HealthCheckRequest { service: String::new() });
    let mut told = within("health", asked).await.unwrap().into_inner();
    let mut next = async || within("a health", told.message()).await.unwrap().unwrap().status();
    assert_eq!(next().await, ServingStatus::Serving);

    let admin = admin(&nats).await;
    for stream in ["events", "cells", "keys"] {
        admin.delete_stream(format!("{}_{stream}", config.store.nats.prefix)).await.unwrap();
    }
    all_say(&gateways, "stream gw_events was deleted").await;
    assert_eq!(next().await, ServingStatus::NotServing);
    let refused = place(&mut client, "before", 0..2).await.unwrap_err();
    assert_eq!(kind(&refused), (Code::Unavailable, "STORE_UNAVAILABLE".to_owned()));
    let accepted = gateway.requests.accept_loss(false).await.unwrap().unwrap();
    assert!(accepted.what.contains("stream gw_keys was deleted"), "{}", accepted.what);

    let ended = loop {
        match watching.next().await {
            Ok(Some(message)) => {
                assert!(matches!(message.event, Some(Event::Heartbeat(_))), "{message:?}");
            }
            Ok(None) => panic!("it is not finished"),
            Err(status) => break status,
        }
    };
    assert_eq!(kind(&ended), (Code::Unavailable, "STORE_UNAVAILABLE".to_owned()));
    assert_eq!(ended.get_details_error_info().unwrap().metadata["resumeToken"], token);
    assert_eq!(next().await, ServingStatus::Serving);
    // The token belongs to another epoch: the watch begins with a snapshot of the state at
    // ThingSpace.
    upstream.sim.finish_all(&id, DeviceResult::Success);
    let mut again = client.clone();
    let resumed =
        eventually_ok("it resumes", async || watch(&mut again.clone(), &id, &token).await).await;
    let rest = resumed.rest().await;
    assert!(matches!(rest[0].event, Some(Event::Snapshot(_))), "{rest:?}");
    let other =
        eventually_ok("orders are taken", async || place(&mut again.clone(), "after", [7]).await)
            .await;
    assert_eq!(get_status(&mut again, status_call(&other)).await.unwrap().revision, 1);
    // The registration of callbacks is still valid.
    let second =
        Gateway::start(upstream.replica(&upstream.with_callbacks(), &nats.url(), 1, 1)).await;
    eventually("the path is as it was", async || Sender::new(&second).path == path).await;
    stop(gateways).await;
    stop([second]).await;
}

/// Repeats the orders of some keys at every replica; none of them may reach ThingSpace again.
async fn repeat(gateways: &[Gateway], keys: usize) {
    for gateway in gateways {
        let mut client = gateway.client().await;
        for n in 0..keys {
            if let Err(status) = place(&mut client, &format!("key-{n}"), [n]).await {
                assert_eq!(kind(&status), (Code::Unavailable, "STORE_UNAVAILABLE".to_owned()));
            }
        }
    }
}

/// The keys are used again before any replica has checked the streams.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_were_purged_order_nothing_again() {
    const KEYS: usize = 10;
    let (upstream, nats) = (Upstream::manual().await, NatsServer::start().await);
    let gateways = upstream.replicas(&upstream.quiet(), &nats.url()).await;
    let mut client = gateways[0].client().await;
    for n in 0..KEYS {
        place(&mut client, &format!("key-{n}"), [n]).await.unwrap();
    }
    admin(&nats).await.get_stream("gw_keys").await.unwrap().purge().await.unwrap();
    repeat(&gateways, KEYS).await;
    all_say(&gateways, "stream gw_keys was purged").await;
    repeat(&gateways, KEYS).await;
    assert_eq!(upstream.sim.ledger().orders.len(), KEYS);

    // One replica carries the command out for all, and everything works without a restart.
    gateways[1].requests.accept_loss(false).await.unwrap().unwrap();
    all_are_ready(&gateways).await;
    for (n, gateway) in gateways.iter().enumerate() {
        let mut client = gateway.client().await;
        let id = place(&mut client, &format!("new-{n}"), [100 + n]).await.unwrap();
        for other in &gateways {
            let mut client = other.client().await;
            let status = get_status(&mut client, status_call(&id)).await.unwrap();
            assert_eq!(status.state(), RequestState::Pending);
        }
    }
    stop(gateways).await;
}

/// An older copy of the servers' disks is restored while gateways run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_was_put_back_orders_nothing_again() {
    const KEYS: usize = 10;
    const PUT_BACK: [&str; 2] = ["gw_events", "gw_keys"];
    let (upstream, mut nats) = (Upstream::manual().await, NatsServer::start().await);
    let gateways = upstream.replicas(&upstream.quiet(), &nats.url()).await;
    let mut client = gateways[0].client().await;
    place(&mut client, "before", [100]).await.unwrap();
    let copies = tempfile::tempdir().unwrap();
    nats.back_up(&PUT_BACK, copies.path()).await;
    for n in 0..KEYS {
        let mut client = client.clone();
        let key = format!("key-{n}");
        eventually_ok("orders are taken", async || place(&mut client.clone(), &key, [n]).await)
            .await;
        place(&mut client, &key, [n]).await.unwrap();
    }
    // A loss of messages that no gateway has seen is not noticed.
    nats.events_reach(gateways.len()).await;
    nats.put_back(&PUT_BACK, copies.path()).await;
    repeat(&gateways, KEYS).await;
    all_say(&gateways, "it was put back to an older copy").await;
    repeat(&gateways, KEYS).await;
    assert_eq!(upstream.sim.ledger().orders.len(), 1 + KEYS);

    // Nor after a restart.
    let [first, second, third] = gateways;
    first.stop().await;
    let first = Gateway::launch(upstream.replica(&upstream.quiet(), &nats.url(), 1, 0)).await;
    let gateways = [first, second, third];
    all_say(&gateways, "it was put back to an older copy").await;
    repeat(&gateways, KEYS).await;
    assert_eq!(upstream.sim.ledger().orders.len(), 1 + KEYS);
    gateways[0].requests.accept_loss(false).await.unwrap().unwrap();
    all_are_ready(&gateways).await;
    place(&mut gateways[2].client().await, "after", [101]).await.unwrap();
    stop(gateways).await;
}

/// Users of a NATS server: an administrator, and one for a gateway that may not publish everything.
pub fn users(denied: &str) -> String {
    format!(
        "authorization {{ users: [ {{ user: admin, password: pw }}, \
         {{ user: gw, password: pw, permissions: {{ \
         publish: {{ deny: [{denied}] }} }} }} ] }}\nno_auth_user: gw"
    )
}

/// Deletes the consumers of all followers.
pub async fn delete_consumers(nats: &NatsServer) {
    let options = async_nats::ConnectOptions::with_user_and_password("admin".into(), "pw".into());
    let admin = jetstream::new(options.connect(nats.url()).await.unwrap());
    let stream = admin.get_stream("gw_events").await.unwrap();
    let consumers: Vec<_> = stream.consumer_names().try_collect().await.unwrap();
    for consumer in consumers {
        stream.delete_consumer(&consumer).await.unwrap();
    }
}

/// All streams are restored from a backup while no gateway runs, and the mark is removed as the
/// documentation says. The gateways notice that, wait, and do not trust the backup's count of
/// rejected logins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_backup_of_all_streams_waits_and_its_count_of_logins_is_void() {
    const STREAMS: [&str; 3] = ["gw_events", "gw_cells", "gw_keys"];
    let (upstream, mut nats) = (Upstream::manual().await, NatsServer::start().await);
    let config = upstream.replica(&upstream.quiet(), &nats.url(), 1, 0);
    let file = write_config(&config, upstream.dir.path());
    let gateway = Gateway::start(config.clone()).await;
    place(&mut gateway.client().await, "before", [0]).await.unwrap();
    gateway.stop().await;
    let copies = tempfile::tempdir().unwrap();
    nats.back_up(&STREAMS, copies.path()).await;
    // After the backup, ThingSpace rejects two logins, which the backup does not contain.
    let password = |text: &str| std::fs::write(upstream.dir.path().join("password"), text).unwrap();
    password("wrong");
    upstream.sim.expire_sessions();
    let gateway = Gateway::start(config.clone()).await;
    let client = gateway.client().await;
    eventually("logins are stopped", async || {
        let refused = place(&mut client.clone(), "rejected", [1]).await.unwrap_err();
        reason(&refused) == "UPSTREAM_LOGIN_BLOCKED"
    })
    .await;
    gateway.stop().await;
    let rejected = upstream.sim.ledger().logins_rejected;
    assert!(rejected > 0);

    nats.put_back(&STREAMS, copies.path()).await;
    let cells = admin(&nats).await.get_stream("gw_cells").await.unwrap();
    cells.purge().filter("gw.cell.store-mark").await.unwrap();
    let gateways = [
        Gateway::launch(config).await,
        Gateway::launch(upstream.replica(&upstream.quiet(), &nats.url(), 1, 1)).await,
    ];
    all_say(&gateways, " was purged").await;
    let said = told(&file, &["store", "accept-loss", "--restored"]).await;
    assert!(said.starts_with("Accepted: stream gw_cells "), "{said}");
    all_are_ready(&gateways).await;
    for gateway in &gateways {
        let refused = place(&mut gateway.client().await, "after", [2]).await.unwrap_err();
        assert_eq!(reason(&refused), "UPSTREAM_LOGIN_BLOCKED");
    }
    let ledger = upstream.sim.ledger();
    assert_eq!((ledger.logins_rejected, ledger.locked), (rejected, false));
    // An operator has logged in elsewhere with the right password, and confirms it.
    password("simulator-password");
    told(&file, &["unblock", "test", "--force"]).await;
    for (n, gateway) in gateways.iter().enumerate() {
        let client = gateway.client().await;
        let key = format!("after-{n}");
        eventually_ok("orders are taken", async || place(&mut client.clone(), &key, [3 + n]).await)
            .await;
    }
    assert_eq!(upstream.sim.ledger().logins_rejected, rejected);
    stop(gateways).await;
}

/// A follower that can no longer read is noticed while everything else works. It recovers by
/// itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_follower_is_noticed() {
    let nats = NatsServer::start_with(&users("")).await;
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.replica(&upstream.quiet(), &nats.url(), 1, 0)).await;
    let mut client = gateway.client().await;
    let before = place(&mut client, "before", [0]).await.unwrap();
    nats.reload_with(&users("\"$JS.API.CONSUMER.>\""));
    delete_consumers(&nats).await;
    // It is durable, even if it is not shown yet.
    let stored: RequestId = eventually_ok("an order is stored", async || {
        place(&mut client.clone(), "after", [1]).await
    })
    .await;
    eventually("it is not ready", async || readiness(&gateway).await.0 == 503).await;
    let said = readiness(&gateway).await.1;
    assert!(said.contains("the store is no longer followed"), "{said}");
    nats.reload_with(&users(""));
    all_are_ready(std::slice::from_ref(&gateway)).await;
    for id in [before, stored] {
        assert_eq!(get_status(&mut client, status_call(&id)).await.unwrap().revision, 1);
    }
    stop([gateway]).await;
}

/// The embedded store's file is replaced by an older copy: a revision that a watcher has seen
/// exists again with other content.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_of_a_store_that_was_put_back_begins_with_a_snapshot() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    config.grpc.heartbeat = Duration::from_millis(50);
    let gateway = Gateway::start(config.clone()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..4).await.unwrap();
    gateway.stop().await;
    let copies = ["store.redb", "store.redb.record"].map(|name| upstream.dir.path().join(name));
    let copy = |from: &str, to: &str| {
        for file in &copies {
            let [from, to] = [from, to].map(|end| format!("{}{end}", file.display()));
            std::fs::copy(from, to).unwrap();
        }
    };
    copy("", ".copy");

    let gateway = Gateway::start(config.clone()).await;
    let mut client = gateway.client().await;
    let observe = async |client: &mut Client, n: usize| {
        upstream.sim.finish(&id, &device(n).eid, DeviceResult::Success);
        get_status(client, status_call(&id)).await.unwrap().revision
    };
    // In the log of this request other events lie before those that the watcher saw.
    place(&mut client, "other", [10]).await.unwrap();
    assert_eq!(observe(&mut client, 0).await, 2);
    let mut watching = watch(&mut client, &id, "").await.unwrap();
    let (_, at_two) = watching.event().await;
    assert_eq!(observe(&mut client, 1).await, 3);
    let (_, at_three) = watching.event().await;
    drop(watching);
    gateway.stop().await;

    // The whole folder is restored, as from a snapshot of its volume, so nothing shows that the
    // file is older.
    copy(".copy", "");
    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    // Neither token belongs to a position that exists.
    for token in [&at_two, &at_three] {
        let mut watching = watch(&mut client, &id, token).await.unwrap();
        let (Event::Snapshot(snapshot), _) = watching.event().await else { panic!("no snapshot") };
        assert_eq!(snapshot.revision, 1);
    }
    // Two revisions with other content, and more events than there were.
    for n in 0..4 {
        upstream.sim.finish(&id, &device(n).eid, DeviceResult::Pending);
    }
    let all = join_all((20..30).map(|n| {
        let mut client = client.clone();
        async move { place(&mut client, &format!("more-{n}"), [n]).await.unwrap() }
    }));
    within("orders", all).await;
    assert_eq!(observe(&mut client, 2).await, 2);
    assert_eq!(observe(&mut client, 3).await, 3);
    for token in [&at_two, &at_three] {
        let mut watching = watch(&mut client, &id, token).await.unwrap();
        let (Event::Snapshot(snapshot), _) = watching.event().await else { panic!("no snapshot") };
        assert_eq!(snapshot.revision, 3);
    }
    gateway.stop().await;
}
