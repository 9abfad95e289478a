//! Whose calls go upstream when there is less room than there are calls: by count at ThingSpace, never by time.

use std::time::Duration;

use futures_util::future::join_all;
use thingspace_gateway::{identity::RequestId, simulator::Ledger};
use tokio::task::JoinSet;

use crate::harness::*;

/// Requests that one caller asks about without pause.
const ASKED: usize = 5;
/// Requests that are only polled.
const POLLED: usize = 20;
const ORDERS: usize = 40;

fn polls_of(ledger: &Ledger, ids: &[RequestId]) -> u64 {
    ids.iter().map(|id| ledger.polls_of(id)).sum()
}

/// So many callers of one request each, asking again as soon as they are answered.
fn ask_without_pause(client: &Client, ids: &[RequestId]) -> JoinSet<()> {
    let mut asking = JoinSet::new();
    for id in ids {
        for _ in 0..10 {
            let (mut client, question) = (client.clone(), question(id));
            asking.spawn(async move {
                loop {
                    ask(&mut client, question.clone()).await.unwrap();
                }
            });
        }
    }
    asking
}

/// More polls are due and more is asked than the rate allows, all the time. Polls get their three of ten, of which the polls of
/// the requests that are asked about are a fifth; and when orders come, they go first.
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
    // The first second's worth went to whoever came first.
    let all = upstream.sim.ledger().polls();
    let before = upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls() >= all + 40).await;
    let after = upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls() >= before.polls() + 120).await;
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
    let last = upstream.sim.wait_until(DEADLINE, |ledger| ledger.orders.len() == orders + ORDERS).await;
    let (placed, others) = (last.orders.len() - first.orders.len(), last.polls() - first.polls());
    let (placed, others) = (u64::try_from(placed).unwrap(), others);
    assert!(others <= placed, "{others} questions and polls with {placed} orders");
    assert!(others * 4 >= placed, "{others} questions and polls with {placed} orders");
    for placed in within("all orders", placing).await.unwrap() {
        placed.unwrap();
    }
    gateway.stop().await;
}
