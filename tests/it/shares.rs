//! Which calls are sent when more wait than the rate allows. The tests count calls at ThingSpace
//! and do not measure times.

use std::time::{Duration, Instant};

use futures_util::future::{join_all, try_join_all};
use thingspace_gateway::{
    config::Config,
    identity::RequestId,
    proto::storage,
    requests::fold::event::{self, Kind},
    simulator::Ledger,
    store::{LogName, Store, embedded::Embedded},
};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::harness::*;

/// Requests for which one caller makes status calls without a pause.
const ASKED: usize = 5;
/// Requests that are only polled.
const POLLED: usize = 20;
const ORDERS: usize = 40;

fn polls_of(ledger: &Ledger, ids: &[RequestId]) -> u64 {
    ids.iter().map(|id| ledger.polls_of(id)).sum()
}

/// Starts this number of callers, each of which repeats a status call for its request.
fn ask_without_pause(client: &Client, ids: &[RequestId]) -> JoinSet<()> {
    let mut asking = JoinSet::new();
    for id in ids {
        for _ in 0..10 {
            let (mut client, status_call) = (client.clone(), status_call(id));
            asking.spawn(async move {
                loop {
                    get_status(&mut client, status_call.clone()).await.unwrap();
                }
            });
        }
    }
    asking
}

/// More polls are due and more status calls are made than the rate allows. Polls get three of ten
/// permits. Orders go first when they arrive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_caller_in_a_tight_loop_starves_neither_polls_nor_orders() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.config();
    config.polling.min_age = Duration::ZERO;
    config.polling.factor = 1.0;
    (config.polling.max_watched, config.polling.max) = (config.polling.first, config.polling.first);
    let mut placing = config.clone();
    placing.thingspace.calls_per_second = 10_000;
    let gateway = Gateway::start(placing).await;
    let mut client = gateway.client().await;
    let mut ids = Vec::new();
    for n in 0..ASKED + POLLED {
        ids.push(place(&mut client, &format!("open {n}"), [n]).await.unwrap());
    }
    gateway.stop().await;

    config.thingspace.calls_per_second = 20;
    let gateway = Gateway::start(config).await;
    let client = gateway.client().await;
    let (asked, polled) = ids.split_at(ASKED);
    let _asking = ask_without_pause(&client, asked);
    // The permits of the first second went to the first calls.
    let all = upstream.sim.ledger().polls();
    let before = upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls() >= all + 40).await;
    let after =
        upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls() >= before.polls() + 120).await;
    let calls = after.polls() - before.polls();
    let of_polls = polls_of(&after, polled) - polls_of(&before, polled);
    let of_asks = polls_of(&after, asked) - polls_of(&before, asked);
    assert_eq!(of_polls + of_asks, calls);
    assert!(of_polls * 100 >= calls * 20 && of_asks * 100 >= calls * 60, "{of_polls} + {of_asks}");

    let orders = after.orders.len();
    let placing = tokio::spawn({
        let client = client.clone();
        async move {
            let orders = (0..ORDERS).map(|n| {
                let mut client = client.clone();
                async move { place(&mut client, &format!("more {n}"), [1_000 + n]).await }
            });
            join_all(orders).await
        }
    });
    let first = upstream.sim.wait_until(DEADLINE, |ledger| ledger.orders.len() > orders).await;
    let last =
        upstream.sim.wait_until(DEADLINE, |ledger| ledger.orders.len() == orders + ORDERS).await;
    let (placed, others) = (last.orders.len() - first.orders.len(), last.polls() - first.polls());
    let (placed, others) = (u64::try_from(placed).unwrap(), others);
    assert!(others <= placed, "{others} status calls and polls with {placed} orders");
    assert!(others * 4 >= placed, "{others} status calls and polls with {placed} orders");
    for placed in within("all orders", placing).await.unwrap() {
        placed.unwrap();
    }
    gateway.stop().await;
}

const OTHER_ACCOUNT: &str = "0000123456-00002";

/// The time between two polls of a request.
const INTERVAL: Duration = Duration::from_secs(2);

/// Open requests that are always due, and orders and queries that wait for their turn.
const BACKLOG: usize = 5_000;
const QUEUED: usize = 500;

/// The first account has credentials of its own, and so has the other.
fn two_sets(upstream: &Upstream) -> Config {
    let mut config = upstream.config();
    config.thingspace.calls_per_second = 10;
    config.polling.factor = 1.0;
    config.polling.first = INTERVAL;
    (config.polling.max_watched, config.polling.max) = (INTERVAL, INTERVAL);
    let mut other = config.credentials[0].clone();
    config.credentials[0].accounts.retain(|account| account.as_str() != OTHER_ACCOUNT);
    "other".clone_into(&mut other.name);
    other.accounts.retain(|account| account.as_str() == OTHER_ACCOUNT);
    config.credentials.push(other);
    config
}

/// Puts open requests of the first account into a store that is not in use.
async fn add_backlog(config: &Config) -> Vec<RequestId> {
    let store = Embedded::open(&config.store.path, Duration::from_hours(1_000)).unwrap();
    let ids: Vec<_> =
        (0..BACKLOG).map(|n| RequestId::parse(&format!("backlog-{n}")).unwrap()).collect();
    let accepted = ids.iter().enumerate().map(|(n, id)| {
        let accepted = storage::Accepted {
            order_id: format!("order-{n}"),
            account: ACCOUNT.to_owned(),
            devices: vec![storage::Device {
                iccid: device(100_000 + n).iccid,
                ..storage::Device::default()
            }],
            ..storage::Accepted::default()
        };
        (LogName::request(id.as_str()), event::encode(Kind::Accepted(accepted), None))
    });
    let store_ = &store;
    let appends = accepted.map(|(log, event)| async move {
        store_.append(&log, Uuid::now_v7(), event).await.map(drop)
    });
    try_join_all(appends).await.unwrap();
    store.close().await;
    ids
}

/// Returns how long concurrent orders of the other account take, and their results.
async fn orders_of_the_other(client: &Client, first: usize) -> (Duration, Vec<RequestId>) {
    const ORDERS: usize = 20;
    let began = Instant::now();
    let placed = (first..first + ORDERS).map(|n| {
        let mut client = client.clone();
        async move {
            let mut order = order(&format!("other {n}"), [n]);
            OTHER_ACCOUNT.clone_into(&mut order.account_name);
            let answer = client.download_profile(order).await?.into_inner();
            Ok::<_, tonic::Status>(RequestId::parse(&answer.request_id).unwrap())
        }
    });
    let ids = within("the other's orders", try_join_all(placed)).await.unwrap();
    (began.elapsed(), ids)
}

/// Calls that wait with one set of credentials do not delay another one, and a request is polled at
/// once when its first watch begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_set_of_credentials_is_not_slower_because_of_another() {
    let upstream = Upstream::manual().await;
    let config = two_sets(&upstream);
    let gateway = Gateway::start(config.clone()).await;
    let client = gateway.client().await;
    // These are polled from here on, as often as the rate allows.
    orders_of_the_other(&client, 0).await;
    let (alone, _) = orders_of_the_other(&client, 100).await;
    gateway.stop().await;

    let backlog = add_backlog(&config).await;
    let gateway = Gateway::start(config).await;
    let (client, busy) = (gateway.client().await, gateway.client().await);
    let mut waiting = JoinSet::new();
    for (n, id) in backlog.iter().enumerate().take(QUEUED) {
        let (mut client, ordered) = (busy.clone(), order(&format!("queued {n}"), [1_000 + n]));
        waiting.spawn(async move { client.download_profile(ordered).await.map(drop) });
        let (mut client, asked) = (busy.clone(), status_call(id));
        waiting.spawn(async move { client.get_request_status(asked).await.map(drop) });
    }
    let sent = upstream.sim.ledger().orders.len();
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.orders.len() > sent + 5).await;
    let (beside, ids) = orders_of_the_other(&client, 200).await;
    assert!(
        beside.as_secs_f64() <= alone.as_secs_f64() * 1.3,
        "{alone:?} alone, {beside:?} beside a backlog"
    );

    let new = backlog.last().unwrap();
    for (account, id) in [(ACCOUNT, new), (OTHER_ACCOUNT, &ids[0])] {
        let before = upstream.sim.ledger().polls_of(id);
        let request = thingspace_gateway::proto::esim::WatchRequestRequest {
            account_name: account.to_owned(),
            request_id: id.to_string(),
            ..Default::default()
        };
        let _watching = within("a watch", client.clone().watch_request(request)).await.unwrap();
        upstream.sim.wait_until(2 * INTERVAL, |ledger| ledger.polls_of(id) > before).await;
    }
    assert!(waiting.len() > QUEUED / 2, "the backlog is still there");
    drop(waiting);
    gateway.stop().await;
}
