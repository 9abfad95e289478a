//! A gateway with TLS, with 2,000 watches, and with peers that do nothing, is told to end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use thingspace_gateway::{identity::RequestId, proto::esim::DeviceState, simulator::DeviceResult};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    cluster::fleet::{Fleet, PATIENCE},
    harness::*,
    http2::*,
    pki::{Authority, GATEWAY, VALID, client_hello, handshake, tls_channel},
};

/// On each of some connections.
const WATCHES: usize = 100;
const CONNECTIONS: usize = 20;
/// The number of watched requests, and the devices of each.
const REQUESTS: usize = 20;
const DEVICES: usize = 5;

/// How long a gateway without orders in progress may take to end.
const LIMIT: Duration = Duration::from_secs(20);

/// No peer holds up the end, and every watch goes on at another gateway without a gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_with_two_thousand_watches_ends_in_time() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.config();
    config.polling.max_watched = Duration::from_millis(500);
    let (authority, file) = (Authority::new(), |name: &str| upstream.dir.path().join(name));
    (config.grpc.tls_cert_file, config.grpc.tls_key_file) = (file("tls.pem"), file("tls.key"));
    authority.issue(GATEWAY, VALID).write(&config.grpc.tls_cert_file, &config.grpc.tls_key_file);
    let tls = authority.client(None);
    let mut fleet = Fleet::start_with(upstream, config, Some(Arc::clone(&tls))).await;
    for n in [1, 2] {
        fleet.drain(n).await;
    }
    let mut caller = fleet.caller();
    let mut ids = Vec::new();
    for n in 0..REQUESTS {
        let order = order(&format!("k{n}"), n * DEVICES..(n + 1) * DEVICES);
        let placed = caller.call(async |mut client| client.download_profile(order.clone()).await);
        ids.push(RequestId::parse(&placed.await.unwrap().into_inner().request_id).unwrap());
    }
    let mut watchers = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut caller = fleet.caller();
        let call = status_call(&ids[0]);
        caller
            .call(async |mut client| client.get_request_status(call.clone()).await)
            .await
            .unwrap();
        let watch = |n: usize| tokio::spawn(caller.clone().watch(ids[n % REQUESTS].clone()));
        watchers.extend((0..WATCHES).map(watch));
    }
    let sim = fleet.upstream.sim.clone();
    let finish = |of_request: usize| {
        for (n, id) in ids.iter().enumerate() {
            let eid = device(n * DEVICES + of_request).eid;
            sim.finish(id, &eid, DeviceResult::Success);
        }
    };
    finish(0);

    let address = fleet.gateway(0).address;
    let mut health = HealthClient::new(tls_channel(address, Arc::clone(&tls)));
    let mut health = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    fleet.serve(1);
    let connect = async || Peer::over(handshake(address, &tls).await.unwrap());
    // They acknowledge nothing, and their calls never end.
    let (mut idle, mut calling) = (connect().await, connect().await);
    for peer in [&mut idle, &mut calling] {
        peer.send(&[PREFACE, &settings(&[])].concat()).await.unwrap();
    }
    calling.send(&begin(1, &call(GET_STATUS, ""))).await.unwrap();
    for peer in [&mut idle, &mut calling] {
        peer.ping().await;
    }
    finish(1);
    // The time limits of these begin now.
    let mut half_preface = connect().await;
    half_preface.send(&PREFACE[..10]).await.unwrap();
    let hello = client_hello(&tls);
    let handshakes = [&[], &hello[..hello.len() / 2], &hello].map(async |begun| {
        let mut peer = TcpStream::connect(address).await.unwrap();
        peer.write_all(begun).await.unwrap();
        peer
    });
    let handshakes = join_all(handshakes).await;
    let began = Instant::now();
    fleet.drain(0).await;
    let took = began.elapsed();
    eprintln!("ended after {took:?}");
    assert!(took < LIMIT, "{took:?}");
    while let Ok(Some(_)) = within("the watch of health ends", health.message()).await {}
    drop((idle, calling, half_preface, handshakes));
    (2..DEVICES).for_each(finish);
    let mut breaks = 0;
    for seen in
        join_all(watchers.into_iter().map(|watch| tokio::time::timeout(PATIENCE, watch))).await
    {
        let seen = seen.expect("a watch ends").unwrap();
        assert_eq!(seen.states.len(), DEVICES);
        assert!(seen.states.values().all(|state| *state == DeviceState::Succeeded), "{seen:?}");
        breaks += seen.breaks;
    }
    assert!(breaks >= CONNECTIONS * WATCHES, "{breaks} watches broke");
    fleet.drain(1).await;
}
