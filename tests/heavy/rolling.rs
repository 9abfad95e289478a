//! All three replicas are restarted one after the other, under load. Callers that follow
//! `docs/clients.md` notice nothing.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use thingspace_gateway::{
    identity::RequestId,
    proto::esim::{DeviceState, GetRequestStatusRequest},
    simulator::DeviceResult,
};

use crate::{
    assert_nothing_ordered_twice,
    cluster::fleet::{Caller, Fleet, PATIENCE},
    harness::*,
};

const WATCHERS: usize = 300;
/// The number of watched requests, each with ten watches.
const REQUESTS: usize = 30;
const DEVICES: usize = 6;
/// The number of callers, each with five calls a second.
const CALLERS: usize = 10;
const PACE: Duration = Duration::from_millis(200);
/// Orders between the end of one restart and the next, each followed by one status call.
const LOAD: usize = 60;

/// Orders and makes status calls in turn until it is stopped. Returns its requests.
async fn keep_calling(
    mut caller: Caller,
    next: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
) -> Vec<(usize, RequestId)> {
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut placed: Vec<(usize, RequestId)> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        pace.tick().await;
        let n = next.fetch_add(1, Ordering::Relaxed);
        let order = order(&format!("load-{n}"), [n]);
        let called = caller.call(async |mut client| client.download_profile(order.clone()).await);
        let answer =
            called.await.unwrap_or_else(|status| panic!("order {n}: {status:?}")).into_inner();
        let id = RequestId::parse(&answer.request_id).unwrap();
        pace.tick().await;
        let asked =
            caller.call(async |mut client| client.get_request_status(status_call(&id)).await);
        asked.await.unwrap_or_else(|status| panic!("status call {n}: {status:?}"));
        placed.push((n, id));
    }
    placed
}

/// Lets the load continue for a while.
async fn more_calls(next: &AtomicUsize) {
    let begin = next.load(Ordering::Relaxed);
    eventually("the load goes on", async || next.load(Ordering::Relaxed) >= begin + LOAD).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_is_not_noticed() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.config();
    config.polling.first = Duration::from_millis(200);
    config.polling.max_watched = Duration::from_millis(500);
    config.polling.max = Duration::from_secs(1);
    let mut fleet = Fleet::start(upstream, config).await;
    let sim = fleet.upstream.sim.clone();

    let mut caller = fleet.caller();
    let mut watched = Vec::new();
    for n in 0..REQUESTS {
        let order = order(&format!("watched-{n}"), n * DEVICES..(n + 1) * DEVICES);
        let placed =
            caller.call(async |mut client| client.download_profile(order.clone()).await).await;
        watched.push(RequestId::parse(&placed.unwrap().into_inner().request_id).unwrap());
    }
    let watchers: Vec<_> = (0..WATCHERS)
        .map(|n| tokio::spawn(fleet.caller().watch(watched[n % REQUESTS].clone())))
        .collect();
    let stop = Arc::new(AtomicBool::new(false));
    let next = Arc::new(AtomicUsize::new(REQUESTS * DEVICES));
    let calling: Vec<_> = (0..CALLERS)
        .map(|_| tokio::spawn(keep_calling(fleet.caller(), Arc::clone(&next), Arc::clone(&stop))))
        .collect();

    // Devices are finished one by one, all the time; the last ones once all replicas are new.
    let finished = Arc::new(Mutex::new(0));
    let finishing = tokio::spawn({
        let (sim, watched, finished, stop) =
            (sim.clone(), watched.clone(), Arc::clone(&finished), Arc::clone(&stop));
        async move {
            let mut pace = tokio::time::interval(Duration::from_millis(100));
            for n in 0..REQUESTS * DEVICES {
                if n == REQUESTS * (DEVICES - 1) {
                    eventually("all replicas are new", async || stop.load(Ordering::Relaxed)).await;
                }
                pace.tick().await;
                let (device, request) = (n / REQUESTS, n % REQUESTS);
                sim.finish(&watched[request], &device_of(request, device), DeviceResult::Success);
                *finished.lock().unwrap() += 1;
            }
        }
    });
    let before = sim.ledger().logins();
    for n in 0..3 {
        more_calls(&next).await;
        fleet.roll(n).await;
    }
    more_calls(&next).await;
    stop.store(true, Ordering::Relaxed);
    let placed: Vec<_> = join_all(calling).await.into_iter().flat_map(Result::unwrap).collect();
    within("all devices are finished", finishing).await.unwrap();
    let (mut breaks, mut revisions) = (0, Vec::new());
    for (n, watcher) in watchers.into_iter().enumerate() {
        let seen = tokio::time::timeout(PATIENCE, watcher).await.expect("a watch ends").unwrap();
        breaks += seen.breaks;
        assert!(seen.states.values().all(|state| *state == DeviceState::Succeeded), "{seen:?}");
        assert_eq!(seen.states.len(), DEVICES);
        // Devices that finish between two polls share a revision.
        if n < REQUESTS {
            let call = GetRequestStatusRequest {
                wait: Some(PATIENCE.try_into().unwrap()),
                after_revision: seen.revision - 1,
                ..status_call(&watched[n])
            };
            let answer =
                caller.call(async |mut client| client.get_request_status(call.clone()).await);
            revisions.push(answer.await.unwrap().into_inner().status.unwrap().revision);
        }
        assert_eq!(seen.revision, revisions[n % REQUESTS], "{seen:?}");
    }
    assert!(breaks >= WATCHERS, "every replica was restarted, and {breaks} watches broke");
    let ledger = sim.ledger();
    eprintln!("{} calls, {breaks} watches resumed", 2 * placed.len());
    assert_eq!((before, ledger.logins()), (1, 1), "logins before the restarts, and altogether");
    assert_eq!(ledger.orders.len(), REQUESTS + placed.len());
    assert_nothing_ordered_twice(&ledger);
    fleet.stop().await;
}

fn device_of(request: usize, device: usize) -> String {
    crate::harness::device(request * DEVICES + device).eid
}
