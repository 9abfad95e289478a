//! Promise 3: no download is ever ordered twice.

use thingspace_gateway::simulator::Outcome;

use crate::harness::*;

#[tokio::test]
async fn an_order_goes_from_snapshot_to_final_state() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..2).await.unwrap();
    let watching = watch(&mut client, &id, "").await.unwrap();
    upstream.sim.finish_all(&id, Outcome::Success);
    let messages = watching.rest().await;
    assert!(messages.len() >= 2);
    gateway.stop().await;
}
