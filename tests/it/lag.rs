//! A store that answers late or not at all, and a follower that lags: no order is lost, stored
//! twice or waited for without end.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use futures_util::TryStreamExt as _;
use thingspace_gateway::{
    app,
    identity::RequestId,
    proto::storage,
    requests::fold::event::{self, Kind, Once},
    simulator::DeviceResult,
    store::{LogName, Store, nats::Nats},
};
use uuid::Uuid;

use crate::{
    harness::*,
    losses::{delete_consumers, users},
    nats_server::NatsServer,
};

/// The kinds of the events on a subject, oldest first.
async fn stored(nats: &NatsServer, subject: &str) -> Vec<Kind> {
    let options = async_nats::ConnectOptions::with_user_and_password("admin".into(), "pw".into());
    let admin = jetstream::new(options.connect(nats.url()).await.unwrap());
    let stream = admin.get_stream("gw_events").await.unwrap();
    let consumer = jetstream::consumer::pull::Config {
        filter_subject: subject.to_owned(),
        ack_policy: jetstream::consumer::AckPolicy::None,
        ..Default::default()
    };
    let consumer = stream.create_consumer(consumer).await.unwrap();
    let count = usize::try_from(consumer.cached_info().num_pending).unwrap();
    let messages = consumer.fetch().max_messages(count.max(1)).messages().await.unwrap();
    let messages: Vec<_> = messages.try_collect().await.unwrap();
    messages.iter().filter_map(|message| event::decode(&message.payload)?.kind).collect()
}

/// NATS does not acknowledge the event that precedes an order. The order is never sent. Without an
/// outcome it would stay in memory for days.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_may_be_stored_and_is_not_sent_gets_an_outcome() {
    let nats = NatsServer::start_with(&users("")).await;
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.replica(&upstream.quiet(), &nats.url(), 1, 0)).await;
    let mut client = gateway.client().await;
    place(&mut client, "before", [0]).await.unwrap();
    let before = stored(&nats, "gw.ev.o.*").await.len();
    nats.reload_with(&users("\"gw.ev.o.>\""));
    let refused = place(&mut client, "late", [1]).await.unwrap_err();
    assert_eq!(reason(&refused), "STORE_UNAVAILABLE");
    nats.reload_with(&users(""));
    eventually("it has an outcome", async || {
        let events = stored(&nats, "gw.ev.o.*").await.split_off(before);
        matches!(events[..], [Kind::Ordered(_), Kind::NotSent(_)])
    })
    .await;
    assert_eq!(upstream.sim.ledger().orders.len(), 1);
    place(&mut client, "late", [1]).await.unwrap();
    gateway.stop().await;
}

/// An answer is compared with the folded state, and a follower that lags has not folded the
/// previous answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn news_that_is_not_folded_yet_is_stored_once() {
    let nats = NatsServer::start_with(&users("")).await;
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.replica(&upstream.quiet(), &nats.url(), 1, 0)).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "key", 0..2).await.unwrap();
    nats.reload_with(&users("\"$JS.API.CONSUMER.>\""));
    delete_consumers(&nats).await;
    upstream.sim.finish(&id, &device(0).eid, DeviceResult::Success);
    let polls = upstream.sim.ledger().polls_of(&id);
    for _ in 0..3 {
        // The result may not be folded yet.
        drop(get_status(&mut client, status_call(&id)).await);
    }
    assert_eq!(upstream.sim.ledger().polls_of(&id), polls + 3);
    let kinds = stored(&nats, &format!("gw.ev.r.{id}")).await;
    assert!(matches!(kinds[..], [Kind::Accepted(_), Kind::Observed(_)]), "{kinds:?}");
    nats.reload_with(&users(""));
    eventually("it is folded", async || {
        get_status(&mut client.clone(), status_call(&id)).await.is_ok_and(|s| s.revision == 2)
    })
    .await;
    gateway.stop().await;
}

/// Orders that were accepted are finished in the background, which may hang on the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_in_time_although_an_accepted_order_cannot_be_finished() {
    const DRAIN: Duration = Duration::from_secs(2);
    const SLACK: Duration = Duration::from_secs(3);
    let nats = NatsServer::start_with(&users("")).await;
    let upstream = Upstream::manual().await;
    let mut config = upstream.replica(&upstream.quiet(), &nats.url(), 1, 0);
    config.grpc.drain = DRAIN;
    let store = Nats::open(&config.store.nats, app::retention(&config)).await.unwrap();
    usable(&store).await;
    let order_id = Uuid::now_v7().to_string();
    let request = RequestId::parse("accepted-1").unwrap();
    let ordered = storage::Ordered {
        account: ACCOUNT.to_owned(),
        key_cell: "key".to_owned(),
        ..Default::default()
    };
    let accepted_as = storage::AcceptedAs { request_id: request.to_string() };
    let log = LogName::order(&order_id);
    for (once, kind) in
        [(Once::Ordered, Kind::Ordered(ordered)), (Once::AcceptedAs, Kind::AcceptedAs(accepted_as))]
    {
        store.append(&log, once.id(&order_id), event::encode(kind, None)).await.unwrap();
    }
    store.close().await;
    // Appends to the request's log are never acknowledged.
    nats.reload_with(&users("\"gw.ev.r.>\""));
    let mut process = Process::serve(&config, upstream.dir.path());
    process.wait_for_line("completing an accepted order");
    let began = Instant::now();
    process.terminate();
    let (status, log) = process.wait().await;
    let took = began.elapsed();
    assert!(status.success() && took < DRAIN + SLACK, "{took:?}: {log:#?}");
}
