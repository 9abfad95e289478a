//! Calls that are never complete, too many calls, and answers that are not read.

use std::collections::{BTreeMap, HashMap};

use futures_util::future::join_all;
use prost::Message;
use thingspace_gateway::{config::Config, identity::AccountName};
use tokio::time::{Instant, timeout};
use tonic::Code;

use super::{ATTACK, ATTACKER, Scene, lazily, with};
use crate::{harness::*, http2::*};

/// The largest message that is accepted, in bytes.
const LARGEST: usize = 4 << 20;

/// Calls on one connection whose messages never end, and how much of each may be sent now.
struct HalfSent {
    peer: Peer,
    window: i64,
    window_of_new: i64,
    calls: HashMap<u32, Half>,
    next: u32,
}

struct Half {
    window: i64,
    left: usize,
}

impl HalfSent {
    async fn begin(address: std::net::SocketAddr, calls: usize) -> Self {
        let (window, peer) = (65_535, Peer::connect(address).await);
        let mut half = Self { peer, window, window_of_new: window, calls: HashMap::new(), next: 1 };
        for _ in 0..calls {
            half.open().await;
        }
        half
    }

    async fn open(&mut self) {
        let length = u32::try_from(LARGEST).unwrap().to_be_bytes();
        let prefix = [&[0][..], &length].concat();
        let opened =
            [begin(self.next, &call(GET_STATUS, ATTACKER)), frame(DATA, 0, self.next, &prefix)];
        let _ = self.peer.send(&opened.concat()).await;
        self.window -= 5;
        self.calls.insert(self.next, Half { window: self.window_of_new - 5, left: LARGEST - 1 });
        self.next += 2;
    }

    /// Sends all that the windows allow.
    async fn send(&mut self) {
        for (stream, call) in &mut self.calls {
            while self.window > 0 && call.window > 0 && call.left > 0 {
                let most = self.window.min(call.window).min(16 << 10);
                let length = usize::try_from(most).unwrap().min(call.left);
                let _ = self.peer.send(&frame(DATA, 0, *stream, &vec![1; length])).await;
                call.left -= length;
                let length = i64::try_from(length).unwrap();
                (self.window, call.window) = (self.window - length, call.window - length);
            }
        }
    }

    /// Goes on until the connection ends. A call that ends is replaced.
    async fn go_on(&mut self) {
        loop {
            self.send().await;
            let Some(frame) = self.peer.next().await else { return };
            let number = |at: usize| {
                i64::from(u32::from_be_bytes(frame.payload[at..at + 4].try_into().unwrap()))
            };
            match frame.kind {
                SETTINGS => {
                    let window = INITIAL_WINDOW_SIZE.to_be_bytes();
                    let found = (0..frame.payload.len())
                        .step_by(6)
                        .find(|at| frame.payload[*at..at + 2] == window);
                    if let Some(at) = found {
                        let more = number(at + 2) - self.window_of_new;
                        self.window_of_new += more;
                        self.calls.values_mut().for_each(|call| call.window += more);
                    }
                }
                WINDOW_UPDATE if frame.stream == 0 => self.window += number(0),
                WINDOW_UPDATE => {
                    if let Some(call) = self.calls.get_mut(&frame.stream) {
                        call.window += number(0);
                    }
                }
                RST_STREAM | HEADERS
                    if (frame.kind == RST_STREAM || frame.flags & END_STREAM != 0)
                        && self.calls.remove(&frame.stream).is_some() =>
                {
                    self.open().await;
                }
                _ => {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_sent_messages_on_a_thousand_streams() {
    const CONNECTIONS: usize = 5;
    const STREAMS: usize = 200;
    let scene = Scene::start().await;
    let end = Instant::now() + 2 * ATTACK;
    join_all((0..CONNECTIONS).map(async |_| {
        while Instant::now() < end {
            let mut half = HalfSent::begin(scene.address(), STREAMS).await;
            let _ = timeout(end - Instant::now(), half.go_on()).await;
        }
    }))
    .await;
    scene.end("half-sent messages").await;
}

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_far_over_its_quota() {
    const CALLS: usize = 64;
    let few = |config: &mut Config| config.limits.caller_calls_per_second = 20;
    let scene = Scene::start_with(few, |same| same, lazily).await;
    let client = scene.gateway.client().await;
    let id = scene.request();
    let end = Instant::now() + ATTACK;
    let outcomes = join_all((0..CALLS).map(async |_| {
        let (mut client, mut outcomes) = (client.clone(), BTreeMap::<_, u32>::new());
        while Instant::now() < end {
            let outcome = client.get_request_status(with(status_call(&id), ATTACKER)).await;
            let outcome =
                outcome.map_or_else(|status| kind(&status), |_| (Code::Ok, String::new()));
            let outcome = (i32::from(outcome.0), outcome.1);
            *outcomes.entry(outcome).or_default() += 1;
        }
        outcomes
    }))
    .await;
    let mut all = BTreeMap::<_, u32>::new();
    for (outcome, times) in outcomes.into_iter().flatten() {
        *all.entry(outcome).or_default() += times;
    }
    eprintln!("{all:?}");
    let over = (i32::from(Code::ResourceExhausted), "OVERLOADED".to_owned());
    assert!(all[&over] > 100, "{all:?}");
    scene.end("over the quota").await;
}
