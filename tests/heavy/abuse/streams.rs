//! Too many streams, and answers that are not read.

use futures_util::future::join_all;
use prost::Message;
use thingspace_gateway::identity::AccountName;
use tokio::time::{Instant, timeout};

use super::{ATTACK, ATTACKER, Scene};
use crate::{harness::*, http2::*};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_streams_on_one_connection() {
    const STREAMS: u32 = 10_000;
    let scene = Scene::start().await;
    let mut peer = Peer::connect(scene.address()).await;
    let call = call(GET_STATUS, ATTACKER);
    let calls: Vec<u8> = (0..STREAMS).flat_map(|n| begin(2 * n + 1, &call)).collect();
    let refused = async {
        peer.send(&calls).await.unwrap();
        let mut refused = 0;
        while let Some(frame) = peer.next().await {
            refused += u32::from(frame.kind == RST_STREAM && frame.code() == REFUSED_STREAM);
            if refused == STREAMS - 1_000 {
                return;
            }
        }
        panic!("{refused} calls were refused, then the connection ended");
    };
    within("all above the limit are refused", refused).await;
    scene.end("10,000 streams").await;
}

/// Many answers of a megabyte, of which one byte is read now and then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_read_byte_by_byte() {
    const CONNECTIONS: usize = 10;
    const STREAMS: u32 = 20;
    const DEVICES: usize = 5_000;
    let scene = Scene::start().await;
    let account = AccountName::parse(ACCOUNT).unwrap();
    let far = (0..DEVICES).map(|n| upstream_device(1_000_000 + n));
    let id = scene.upstream.sim.add_request(account, far);
    let mut status_call = status_call(&id);
    status_call.page_size = 1_000;
    let message = status_call.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let message = [&[0][..], &length, &message].concat();
    let watch = "/thingspace.esim.v1.EsimService/WatchRequest";
    let blocks = [call(watch, ATTACKER), call(GET_STATUS, ATTACKER)];
    let end = Instant::now() + 2 * ATTACK;
    let read = join_all((0..CONNECTIONS).map(async |n| {
        let mut peer = Peer::connect_with(scene.address(), &[(INITIAL_WINDOW_SIZE, 0)]).await;
        let streams = (0..STREAMS).map(|n| 2 * n + 1);
        let calls: Vec<_> =
            streams.clone().flat_map(|s| unary(s, &blocks[n % 2], &message)).collect();
        peer.send(&calls).await.unwrap();
        let windows: Vec<_> = streams.flat_map(|stream| window_update(stream, 1)).collect();
        let mut read = 0;
        while Instant::now() < end && peer.send(&windows).await.is_ok() {
            while let Ok(Some(frame)) = timeout(ATTACK / 50, peer.next()).await {
                read += u32::from(frame.kind == DATA);
            }
        }
        read
    }))
    .await;
    eprintln!("{read:?} bytes");
    assert!(read.iter().all(|read| *read > 0), "{read:?}");
    scene.end("slow readers").await;
}
