//! Header blocks that never end, that are too large, or that become large when they are decoded.

use futures_util::future::join_all;
use tokio::time::Instant;
use tonic::Code;

use super::{ATTACK, ATTACKER, Scene, floods::flood, with};
use crate::harness::*;
use crate::http2::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_blocks_that_never_end() {
    let scene = Scene::start().await;
    let address = scene.address();
    let begun = frame(HEADERS, 0, 1, &call(GET_STATUS, ATTACKER));
    let continued = |payload: Vec<u8>| move |_| frame(CONTINUATION, 0, 1, &payload);
    let fields = literal(0, "name", "value").repeat(1_000);
    // A string of 256 MiB.
    let text = [&begun[..], &frame(CONTINUATION, 0, 1, &[0, 1, b'a'])].concat();
    let text = [text, frame(CONTINUATION, 0, 1, &integer(0, 7, 256 << 20))].concat();
    let sent = tokio::join!(
        flood(address, &begun, continued(Vec::new())),
        flood(address, &begun, continued(fields)),
        flood(address, &text, continued(vec![b'a'; 16 << 10]))
    );
    eprintln!("{sent:?} frames");
    scene.end("CONTINUATION").await;
}

/// Each block is small, and names an entry of 4 KB of the dynamic table thousands of times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_blocks_that_become_large() {
    const CONNECTIONS: usize = 50;
    let scene = Scene::start().await;
    let call = call(GET_STATUS, ATTACKER);
    let entry = [&call[..], &literal(0x40, "name", &"v".repeat(4_000))].concat();
    let bomb = [&call[..], &vec![0xbe; 15 << 10]].concat();
    let end = Instant::now() + ATTACK;
    let bombs = join_all((0..CONNECTIONS).map(async |_| {
        let mut bombs = 0;
        while Instant::now() < end {
            let mut peer = Peer::connect(scene.address()).await;
            let mut stream = 1;
            if peer.send(&begin(stream, &entry)).await.is_ok() {
                let next = || {
                    stream += 2;
                    begin(stream, &bomb)
                };
                bombs += peer.flood(end - Instant::now(), next).await;
            }
        }
        bombs
    }));
    eprintln!("{} bombs", bombs.await.iter().sum::<u64>());
    scene.end("HPACK").await;
}

/// A call with large headers fails, and its caller understands why unless they are very large.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_headers() {
    const CALLERS: usize = 32;
    let scene = Scene::start().await;
    let end = Instant::now() + ATTACK;
    let calls = join_all((0..CALLERS).map(async |n| {
        let size = [20 << 10, 60 << 10, 1 << 20][n % 3];
        let mut calls = 0;
        while Instant::now() < end {
            let mut client = scene.gateway.client().await;
            let mut request = with(status_call(&scene.request()), ATTACKER);
            request.metadata_mut().insert("more", "m".repeat(size).parse().unwrap());
            let refused = client.get_request_status(request).await.unwrap_err();
            let understood = refused.code() == Code::OutOfRange;
            assert!(understood || size > 64 << 10, "{size} bytes: {refused:?}");
            calls += 1;
        }
        calls
    }));
    eprintln!("{} calls", calls.await.iter().sum::<u32>());
    scene.end("large headers").await;
}
