//! A client with many watches, in a process of its own. It uses HTTP/2 directly, because it shares
//! the machine with the server, and a gRPC client takes more time than the server.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::join_all;
use h2::{RecvStream, client::SendRequest};
use prost::Message as _;
use test_support::bench::{Core, Helper, on_core};
use thingspace_gateway::{
    identity::RequestId,
    proto::esim::{WatchRequestRequest, WatchRequestResponse},
};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    gateway::account,
    load::{PREFIX, Target, connect, framed, request},
};

/// Watches of a connection.
const WATCHES_EACH: usize = 1_000;

/// The tags of the messages (protobuf: number of the field, then 2 for messages).
const SNAPSHOT: u8 = 1 << 3 | 2;
const CHANGE: u8 = 2 << 3 | 2;

/// The client's side of the bench.
pub(crate) struct Watches(Helper);

impl Watches {
    /// Opens watches of a request, and waits until each has its snapshot.
    pub(crate) fn open(target: &Target, id: &RequestId, watches: usize) -> Self {
        let address = target.address.to_string();
        let arguments = ["watch", &address, id.as_str(), &watches.to_string()];
        let mut client = on_core(Core::Load, || Helper::start(&arguments));
        assert_eq!(client.line(), "open");
        Self(client)
    }

    /// Returns the time from the first watch that has the next change to the last one.
    pub(crate) fn change(&mut self) -> Duration {
        micros(&self.0.line())
    }

    /// Cuts all connections, connects again and resumes all watches at once. Returns the time until
    /// all are accepted.
    pub(crate) fn cut_and_resume(&mut self) -> Duration {
        micros(&self.0.ask("cut"))
    }
}

fn micros(line: &str) -> Duration {
    Duration::from_micros(line.parse().unwrap())
}

/// What all watches have received.
struct Received {
    watches: usize,
    snapshots: AtomicUsize,
    changes: AtomicUsize,
    accepted: AtomicUsize,
    first_change: Mutex<Instant>,
    resume_token: Mutex<String>,
    /// Receives the time from the first watch to the last one, when all have a change.
    rounds: mpsc::UnboundedSender<Duration>,
}

/// Connections and the tasks that read. They end when this is dropped.
type Open = JoinSet<()>;

/// Opens the watches and prints `open`. Then prints, for each change that all watches have, the
/// microseconds from the first watch to the last one; and for each line of standard input, those
/// from a cut of all connections until all watches are resumed.
pub(crate) async fn run(address: SocketAddr, request: &str, watches: usize) {
    let (rounds, mut fan_outs) = mpsc::unbounded_channel();
    let received = Arc::new(Received {
        watches,
        snapshots: AtomicUsize::new(0),
        changes: AtomicUsize::new(0),
        accepted: AtomicUsize::new(0),
        first_change: Mutex::new(Instant::now()),
        resume_token: Mutex::default(),
        rounds,
    });
    let mut open = open_all(address, request, &received).await;
    until(|| received.snapshots.load(Relaxed) >= watches).await;
    println!("open");
    let (cut, mut cuts) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        std::io::stdin().lines().try_for_each(|line| cut.send(line.unwrap()).ok())
    });
    loop {
        tokio::select! {
            Some(fan_out) = fan_outs.recv() => println!("{}", fan_out.as_micros()),
            Some(_) = cuts.recv() => {
                let began = Instant::now();
                drop(open);
                received.accepted.store(0, Relaxed);
                open = open_all(address, request, &received).await;
                until(|| received.accepted.load(Relaxed) >= watches).await;
                println!("{}", began.elapsed().as_micros());
            }
            else => return,
        }
    }
}

async fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn open_all(address: SocketAddr, request: &str, received: &Arc<Received>) -> Open {
    let watches = received.watches;
    let resume_token = received.resume_token.lock().unwrap().clone();
    let message = framed(&WatchRequestRequest {
        account_name: account(0),
        request_id: request.to_owned(),
        resume_token,
    });
    let connections = watches.div_ceil(WATCHES_EACH);
    let opened = (0..connections).map(|n| {
        let count = WATCHES_EACH.min(watches - n * WATCHES_EACH);
        open(address, message.clone(), count, received)
    });
    let mut all = JoinSet::new();
    for mut tasks in join_all(opened).await {
        all.spawn(async move { while tasks.join_next().await.is_some() {} });
    }
    all
}

/// Opens a connection and some watches on it.
async fn open(
    address: SocketAddr,
    message: Bytes,
    watches: usize,
    received: &Arc<Received>,
) -> Open {
    let mut tasks = JoinSet::new();
    let mut http2 = connect(address, &mut tasks).await;
    for _ in 0..watches {
        http2 = http2.ready().await.unwrap();
        let watch = watch(&mut http2, address, message.clone());
        let received = Arc::clone(received);
        tasks.spawn(async move {
            let (head, stream) = watch.await.unwrap().into_parts();
            assert!(head.headers.get("grpc-status").is_none(), "{head:?}");
            received.accepted.fetch_add(1, Relaxed);
            read(stream, received).await;
        });
    }
    tasks
}

fn watch(
    http2: &mut SendRequest<Bytes>,
    address: SocketAddr,
    message: Bytes,
) -> h2::client::ResponseFuture {
    let path = format!("http://{address}/thingspace.esim.v1.EsimService/WatchRequest");
    let (response, mut sender) = http2.send_request(request(&path), false).unwrap();
    sender.send_data(message, true).unwrap();
    response
}

/// Counts the messages of a watch.
async fn read(mut stream: RecvStream, received: Arc<Received>) {
    // Bytes that have arrived of the next message.
    let mut rest = Bytes::new();
    while let Some(data) = stream.data().await {
        let data = data.unwrap();
        let _ = stream.flow_control().release_capacity(data.len());
        rest = if rest.is_empty() { data } else { [rest, data].concat().into() };
        while let Some(length) = rest.get(1..PREFIX) {
            let length = u32::from_be_bytes(length.try_into().unwrap());
            let end = PREFIX + usize::try_from(length).unwrap();
            if rest.len() < end {
                break;
            }
            received.count(&rest[PREFIX..end]);
            rest = rest.split_off(end);
        }
    }
    panic!("a watch ended: {:?}", stream.trailers().await);
}

impl Received {
    fn count(&self, message: &[u8]) {
        match message[0] {
            SNAPSHOT if self.snapshots.fetch_add(1, Relaxed) == 0 => {
                let message = WatchRequestResponse::decode(message).unwrap();
                *self.resume_token.lock().unwrap() = message.resume_token;
            }
            CHANGE => {
                let before = self.changes.fetch_add(1, Relaxed) % self.watches;
                if before == 0 {
                    *self.first_change.lock().unwrap() = Instant::now();
                }
                if before + 1 == self.watches {
                    let fan_out = self.first_change.lock().unwrap().elapsed();
                    self.rounds.send(fan_out).unwrap();
                }
            }
            _ => {}
        }
    }
}
