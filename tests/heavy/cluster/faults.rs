//! Failures of NATS servers: a server or the leader is killed, one is suspended, all are restarted.
//! Nothing acknowledged is lost, and the gateways recover by themselves.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream;
use futures_util::future::join_all;
use thingspace_gateway::{
    identity::RequestId,
    proto::esim::{DeviceState, RequestState},
};

use super::{
    called,
    fleet::{Caller, Fleet},
};
use crate::{
    assert_nothing_ordered_twice,
    harness::*,
    nats_server::{NatsCluster, NatsServer},
    placed,
};

const CALLERS: usize = 4;

/// The time between two orders of a caller. In the end the test looks up each order several times.
const PACE: Duration = Duration::from_millis(20);

/// Returns the server that leads the stream of events.
async fn leader(nats: &NatsCluster) -> String {
    let urls: Vec<_> = nats.servers.iter().map(NatsServer::url).collect();
    eventually_ok("the events have a leader", async || {
        let client = async_nats::connect(urls.clone()).await.map_err(|error| error.to_string())?;
        let stream = jetstream::new(client)
            .get_stream("gw_events")
            .await
            .map_err(|error| error.to_string())?;
        let info = stream.cached_info().cluster.as_ref();
        info.and_then(|cluster| cluster.leader.clone()).ok_or("no server leads".to_owned())
    })
    .await
}

/// Places orders one after the other, each until it is placed or unknown. Returns the results.
async fn keep_ordering(
    mut caller: Caller,
    next: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
) -> Vec<(usize, Option<RequestId>)> {
    let (mut told, mut pace) = (Vec::new(), tokio::time::interval(PACE));
    while !stop.load(Ordering::Relaxed) {
        let n = next.fetch_add(1, Ordering::Relaxed);
        let answer = loop {
            let order = order(&format!("fault-{n}"), [n]);
            match caller.call(async |mut client| client.download_profile(order.clone()).await).await
            {
                Ok(answer) => {
                    break Some(RequestId::parse(&answer.into_inner().request_id).unwrap());
                }
                // A caller may repeat its call with its key as often as it likes.
                Err(status) if status.code() == tonic::Code::Unavailable => {}
                // Accepted, and not stored before the caller was answered.
                Err(status) => {
                    assert_eq!(reason(&status), "ORDER_OUTCOME_UNKNOWN", "order {n}");
                    break None;
                }
            }
        };
        told.push((n, answer));
        pace.tick().await;
    }
    told
}

/// A request whose devices are called back one by one, until each is acknowledged.
async fn call_back(fleet: &Fleet, id: &RequestId, device: usize) {
    eventually("the callback is taken", async || {
        fleet.call_back(device % 3, id, device, "Success").await == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_becomes_of_the_servers_nothing_acknowledged_is_lost() {
    const DEVICES: usize = 6;
    let upstream = Upstream::manual().await;
    let config = called(&upstream);
    let mut fleet = Fleet::start(upstream, config).await;
    let id = place(&mut fleet.client(0).await, "watched", 0..DEVICES).await.unwrap();
    let watchers: Vec<_> = (0..3).map(|_| tokio::spawn(fleet.caller().watch(id.clone()))).collect();
    let (next, stop) = (Arc::new(AtomicUsize::new(DEVICES)), Arc::new(AtomicBool::new(false)));
    let ordering: Vec<_> = (0..CALLERS)
        .map(|_| tokio::spawn(keep_ordering(fleet.caller(), Arc::clone(&next), Arc::clone(&stop))))
        .collect();
    call_back(&fleet, &id, 0).await;

    let led = leader(&fleet.nats).await;
    let follower = fleet.nats.servers.iter().position(|server| server.name() != led).unwrap();
    fleet.nats.servers[follower].kill();
    call_back(&fleet, &id, 1).await;
    fleet.nats.servers[follower].restart().await;

    let led = leader(&fleet.nats).await;
    fleet.nats.named(&led).kill();
    call_back(&fleet, &id, 2).await;
    fleet.nats.named(&led).restart().await;

    let led = leader(&fleet.nats).await;
    fleet.nats.named(&led).freeze();
    call_back(&fleet, &id, 3).await;
    fleet.nats.named(&led).thaw();
    call_back(&fleet, &id, 4).await;

    fleet.nats.servers.iter_mut().for_each(NatsServer::kill);
    fleet.nats.servers.iter_mut().for_each(NatsServer::spawn);
    for server in &mut fleet.nats.servers {
        server.ready().await;
    }
    call_back(&fleet, &id, 5).await;

    stop.store(true, Ordering::Relaxed);
    let told: Vec<_> = within("the callers end", join_all(ordering))
        .await
        .into_iter()
        .flat_map(Result::unwrap)
        .collect();
    for watcher in watchers {
        let seen = within("the end of a watch", watcher).await.unwrap();
        assert!(seen.states.values().all(|state| *state == DeviceState::Succeeded), "{seen:?}");
        assert_eq!(seen.revision, 1 + i64::try_from(DEVICES).unwrap(), "{seen:?}");
    }
    let ordered = placed(&fleet.upstream.sim.ledger());
    for n in 0..3 {
        let mut client = fleet.client(n).await;
        assert_eq!(
            get_status(&mut client, status_call(&id)).await.unwrap().state(),
            RequestState::Succeeded
        );
        for (order, told) in &told {
            // Also one whose caller got an unknown outcome.
            let again = place(&mut client, &format!("fault-{order}"), [*order]).await.unwrap();
            assert_eq!(
                ordered.get(&device(*order).eid),
                Some(&again),
                "order {order} at replica {n}"
            );
            assert!(
                told.as_ref().is_none_or(|told| *told == again),
                "order {order} at replica {n}: {told:?}"
            );
            assert_eq!(get_status(&mut client, status_call(&again)).await.unwrap().revision, 1);
        }
    }
    eprintln!(
        "{} orders, {} of them late",
        told.len(),
        told.iter().filter(|(_, told)| told.is_none()).count()
    );
    let ledger = fleet.upstream.sim.ledger();
    assert_nothing_ordered_twice(&ledger);
    assert_eq!(ledger.logins(), 1, "the session is used on, with any store");
    fleet.stop().await;
}
