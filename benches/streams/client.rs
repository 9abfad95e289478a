//! A client with many watches. It uses HTTP/2 directly, because it shares the processors with the
//! server, and a gRPC client takes more time than the server.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::future::join_all;
use h2::{RecvStream, client::SendRequest};
use http::Request;
use prost::Message as _;
use test_support::harness::ACCOUNT;
use thingspace_gateway::proto::esim::WatchRequestRequest;
use tokio::{net::TcpStream, sync::mpsc};

/// Watches of a connection.
const WATCHES_EACH: usize = 1_000;

/// The tags of the messages (protobuf: number of the field, then 2 for messages).
const SNAPSHOT: u8 = 1 << 3 | 2;
const CHANGE: u8 = 2 << 3 | 2;

/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// The window of a connection, in bytes. The client must not be what the server waits for.
const WINDOW: u32 = 16 << 20;

pub(crate) fn connections(watches: usize) -> usize {
    watches.div_ceil(WATCHES_EACH)
}

/// What all watches have received.
struct Received {
    watches: usize,
    snapshots: AtomicUsize,
    changes: AtomicUsize,
    first_change: Mutex<Instant>,
    /// Receives the time from the first watch to the last one, when all have a change.
    rounds: mpsc::UnboundedSender<Duration>,
}

/// Opens the watches and prints `open`. Then prints, for each change that all watches have, the
/// microseconds from the first watch to the last one.
pub(crate) async fn run(address: SocketAddr, request: &str, watches: usize) {
    let (rounds, mut fan_outs) = mpsc::unbounded_channel();
    let received = Arc::new(Received {
        watches,
        snapshots: AtomicUsize::new(0),
        changes: AtomicUsize::new(0),
        first_change: Mutex::new(Instant::now()),
        rounds,
    });
    let message = message(request);
    let opened = (0..connections(watches)).map(|n| {
        let count = WATCHES_EACH.min(watches - n * WATCHES_EACH);
        open(address, message.clone(), count, &received)
    });
    join_all(opened).await;
    while received.snapshots.load(Ordering::Relaxed) < watches {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("open");
    while let Some(fan_out) = fan_outs.recv().await {
        println!("{}", fan_out.as_micros());
    }
}

fn message(request: &str) -> Bytes {
    let message = WatchRequestRequest {
        account_name: ACCOUNT.to_owned(),
        request_id: request.to_owned(),
        resume_token: String::new(),
    };
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).unwrap());
    message.encode(&mut bytes).unwrap();
    bytes.freeze()
}

/// Opens a connection and some watches on it.
async fn open(address: SocketAddr, message: Bytes, watches: usize, received: &Arc<Received>) {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let handshake = h2::client::Builder::new()
        .initial_connection_window_size(WINDOW)
        .handshake::<_, Bytes>(stream)
        .await;
    let (mut http2, connection) = handshake.unwrap();
    tokio::spawn(async { connection.await.unwrap() });
    for _ in 0..watches {
        http2 = http2.ready().await.unwrap();
        let stream = watch(&mut http2, address, message.clone()).await;
        tokio::spawn(read(stream, Arc::clone(received)));
    }
}

async fn watch(http2: &mut SendRequest<Bytes>, address: SocketAddr, message: Bytes) -> RecvStream {
    let request =
        Request::post(format!("http://{address}/thingspace.esim.v1.EsimService/WatchRequest"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
    let (response, mut sender) = http2.send_request(request, false).unwrap();
    sender.send_data(message, true).unwrap();
    response.await.unwrap().into_body()
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
            received.count(rest[PREFIX]);
            rest = rest.split_off(end);
        }
    }
    panic!("a watch ended: {:?}", stream.trailers().await);
}

impl Received {
    fn count(&self, tag: u8) {
        match tag {
            SNAPSHOT => {
                self.snapshots.fetch_add(1, Ordering::Relaxed);
            }
            CHANGE => {
                let before = self.changes.fetch_add(1, Ordering::Relaxed) % self.watches;
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
