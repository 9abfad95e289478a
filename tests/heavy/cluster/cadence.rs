//! Promise 6 of the README, with several replicas: they poll as often as one does.

use std::time::Duration;

use thingspace_gateway::identity::RequestId;

use crate::{harness::*, nats_server::NatsServer};

/// Three replicas poll a request as often as one replica does, over sixty polls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_poll_as_often_as_one() {
    const POLLS: u64 = 60;
    let (alone, together) = (Upstream::manual().await, Upstream::manual().await);
    let nats = NatsServer::start().await;
    let every_second = |upstream: &Upstream| {
        let mut config = upstream.config();
        let second = Duration::from_secs(1);
        (config.polling.first, config.polling.factor) = (second, 1.0);
        (config.polling.max_watched, config.polling.max) = (second, second);
        config
    };
    let one = Gateway::start(every_second(&alone)).await;
    let three = together.replicas(&every_second(&together), &nats.url()).await;
    let of_one = place(&mut one.client().await, "key", [0]).await.unwrap();
    let of_three = place(&mut three[0].client().await, "key", [0]).await.unwrap();
    let polls = |upstream: &Upstream, id: &RequestId| upstream.sim.ledger().polls_of(id);
    // More than a minute, which is longer than the simulator's own wait may take.
    let half = alone.sim.wait_until(DEADLINE, |ledger| ledger.polls_of(&of_one) >= POLLS / 2).await;
    assert!(half.polls_of(&of_one) >= POLLS / 2);
    alone.sim.wait_until(DEADLINE, |ledger| ledger.polls_of(&of_one) >= POLLS).await;
    let (alone, together) = (polls(&alone, &of_one), polls(&together, &of_three));
    assert!(
        together * 10 >= alone * 8 && together * 10 <= alone * 12,
        "{together} polls, and {alone} by one"
    );
    one.stop().await;
    for gateway in three {
        gateway.stop().await;
    }
}
