//! Frames without end, on connections that are opened again as often as the gateway closes them.

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use super::{ATTACK, ATTACKER, Scene};
use crate::http2::*;

/// The frames that are sent at once.
const BATCH: u32 = 100;

/// Sends batches of frames until the attack ends, each for a next odd number of a stream, after
/// `first`. Returns the number of frames.
pub(super) async fn flood(
    address: std::net::SocketAddr,
    first: &[u8],
    frames: impl Fn(u32) -> Vec<u8>,
) -> u64 {
    let end = Instant::now() + ATTACK;
    let mut sent = 0;
    while Instant::now() < end {
        let (mut peer, mut stream) = (Peer::connect(address).await, 1);
        let batch = || {
            let first = stream + 2;
            stream += 2 * BATCH;
            (0..BATCH).flat_map(|n| frames(first + 2 * n)).collect()
        };
        if peer.send(first).await.is_ok() {
            sent += u64::from(BATCH) * peer.flood(end - Instant::now(), batch).await;
        }
    }
    sent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_reset_at_once() {
    let scene = Scene::start().await;
    let call = call(GET_STATUS, ATTACKER);
    let begun = |stream| [begin(stream, &call), reset(stream, CANCEL)].concat();
    let whole = |stream| [unary(stream, &call, EMPTY_MESSAGE), reset(stream, CANCEL)].concat();
    // The server has to reset these.
    let refused = |stream| [begin(stream, &call), window_update(stream, 0)].concat();
    let address = scene.address();
    let sent = tokio::join!(
        flood(address, &[], begun),
        flood(address, &[], whole),
        flood(address, &[], refused)
    );
    eprintln!("{sent:?} calls");
    scene.end("rapid reset").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_frames_without_end() {
    let scene = Scene::start().await;
    let address = scene.address();
    let open = begin(1, &call(GET_STATUS, ATTACKER));
    let pings = flood(address, &[], |_| ping([1; 8]));
    let acknowledged = flood(address, &[], |_| frame(PING, ACK, 0, &[1; 8]));
    let changed = flood(address, &[], |n| settings(&[(INITIAL_WINDOW_SIZE, n)]));
    let priorities = flood(address, &[], |n| frame(PRIORITY, 0, n, &[0, 0, 0, 0, 1]));
    let windows = flood(address, &open, |_| window_update(1, 1));
    let empty = flood(address, &open, |_| frame(DATA, 0, 1, &[]));
    let padded = flood(address, &open, |_| frame(DATA, PADDED, 1, &[0]));
    let unknown = flood(address, &[], |_| frame(0xbe, 0, 0, &[0; 100]));
    let sent =
        tokio::join!(pings, acknowledged, changed, priorities, windows, empty, padded, unknown);
    eprintln!("{sent:?} frames");
    scene.end("control frames").await;
}

/// The gateway has to answer each of these frames, and its answers are not read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_frames_whose_answers_are_not_read() {
    const CONNECTIONS: usize = 50;
    let scene = Scene::start().await;
    let call = call(GET_STATUS, ATTACKER);
    let frames = [
        ping([1; 8]).repeat(100),
        settings(&[(INITIAL_WINDOW_SIZE, 1)]).repeat(100),
        (0..100).flat_map(|n| unary(2 * n + 3, &call, EMPTY_MESSAGE)).collect(),
    ];
    let end = Instant::now() + ATTACK;
    join_all((0..CONNECTIONS).map(async |n| {
        while Instant::now() < end {
            let mut peer = Peer::connect(scene.address()).await;
            let sending = async { while peer.send(&frames[n % frames.len()]).await.is_ok() {} };
            let _ = timeout(end - Instant::now(), sending).await;
        }
    }))
    .await;
    scene.end("answers that are not read").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage() {
    const CONNECTIONS: u64 = 20;
    let scene = Scene::start().await;
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let block = call(GET_STATUS, ATTACKER);
    let end = Instant::now() + ATTACK;
    let connections = join_all((0..CONNECTIONS).map(async |n| {
        let mut random = fastrand::Rng::with_seed(seed + n);
        let mut connections = 0;
        while Instant::now() < end {
            let mut peer = Peer::connect(scene.address()).await;
            let open = [begin(1, &block), begin(3, &block)].concat();
            if peer.send(&open).await.is_ok() {
                peer.flood(end - Instant::now(), || random_frame(&mut random, &block)).await;
            }
            connections += 1;
        }
        connections
    }));
    eprintln!("{} connections", connections.await.iter().sum::<u32>());
    scene.end("garbage").await;
}

/// A frame that is sometimes valid.
fn random_frame(random: &mut fastrand::Rng, block: &[u8]) -> Vec<u8> {
    let most = [1, 10, 100, 1_000][random.usize(..4)];
    let length = random.usize(..most);
    let mut payload: Vec<_> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
    if random.bool() {
        payload = match random.u8(..4) {
            0 => block.to_vec(),
            1 => block[random.usize(..block.len())..].to_vec(),
            2 => vec![0; 4],
            _ => vec![0; 8],
        };
    }
    let flags = if random.bool() { END_HEADERS } else { random.u8(..) };
    let mut bytes = frame(random.u8(..11), flags, random.u32(..12), &payload);
    if random.u8(..20) == 0 {
        let damaged = random.usize(..bytes.len());
        bytes[damaged] = random.u8(..);
    }
    bytes
}
