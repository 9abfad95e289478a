//! Events that were purged in the middle of a request's log: the rest must not be shown as if it
//! were complete.

use thingspace_gateway::{proto::esim::RequestState, simulator::DeviceResult};
use tonic::Code;

use super::{admin, all_are_ready, all_say};
use crate::{harness::*, nats_server::NatsServer, replicas::stop};

const DEVICES: usize = 3;

/// The order's events are purged, and a status answer that names one device of three is left. No
/// replica shows the request with one device, not even one that has read the whole log before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_with_purged_events_is_not_shown() {
    let (upstream, nats) = (Upstream::manual().await, NatsServer::start().await);
    let gateways = upstream.replicas(&upstream.quiet(), &nats.url()).await;
    let mut client = gateways[0].client().await;
    let id = place(&mut client, "key", 0..DEVICES).await.unwrap();
    upstream.sim.finish(&id, &device(0).eid, DeviceResult::Success);
    let before = get_status(&mut client, status_call(&id)).await.unwrap();
    assert_eq!((before.revision, before.state()), (2, RequestState::Pending));

    let events = admin(&nats).await.get_stream("gw_events").await.unwrap();
    let last = events.get_last_raw_message_by_subject(&format!("gw.ev.r.{id}")).await.unwrap();
    events.purge().sequence(last.sequence).await.unwrap();
    all_say(&gateways, "stream gw_events was purged up to").await;
    gateways[2].requests.accept_loss(false).await.unwrap().unwrap();
    let [first, second, third] = gateways;
    third.stop().await;
    let third = Gateway::start(upstream.replica(&upstream.quiet(), &nats.url(), 1, 2)).await;
    let gateways = [first, second, third];
    all_are_ready(&gateways).await;
    upstream.sim.finish_all(&id, DeviceResult::Failed);
    for gateway in &gateways {
        let mut client = gateway.client().await;
        for _ in 0..2 {
            let refused = get_status(&mut client, status_call(&id)).await.unwrap_err();
            assert_eq!(kind(&refused), (Code::NotFound, "REQUEST_NOT_FOUND".to_owned()));
        }
        // The key is known: it still leads to the request, and orders nothing.
        assert_eq!(place(&mut client, "key", 0..DEVICES).await.unwrap(), id);
    }
    assert_eq!(upstream.sim.ledger().orders.len(), 1);
    stop(gateways).await;
}
