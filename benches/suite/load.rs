//! The load generator for unary calls, in a process of its own. It uses HTTP/2 directly, because a
//! gRPC client takes more time than the server. It always keeps the same number of calls in flight.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::future::join_all;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use prost::Message;
use serde::{Deserialize, Serialize};
use test_support::{
    bench::{Core, Helper, Usage, on_core},
    harness::device,
};
use thingspace_gateway::proto::esim::{DownloadProfileRequest, GetRequestStatusRequest};
use tokio::{net::TcpStream, task::JoinSet, time::sleep_until};

use crate::gateway::account;

/// The window of a stream and of a connection, in bytes. The client must not be what the server
/// waits for.
const WINDOW: u32 = 16 << 20;

/// Connections, if so many calls are in flight.
const CONNECTIONS: usize = 8;

/// A server that is measured.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) pid: u32,
    /// The name of the service in paths.
    pub(crate) service: &'static str,
}

/// Calls to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Calls {
    /// Status calls about these requests, each with the number of its account.
    Status(Vec<(usize, String)>),
    /// Orders for so many devices. `keys` begins each key, and no other load has the same.
    Orders { devices: usize, keys: String },
}

/// Work of the load generator.
#[derive(Debug, Serialize, Deserialize)]
struct Work {
    address: SocketAddr,
    service: String,
    in_flight: usize,
    calls: Calls,
    time: Duration,
    /// Calls per second; `None`: as many as the server answers.
    rate: Option<f64>,
}

/// What the load generator saw.
#[derive(Debug, Serialize, Deserialize)]
struct Seen {
    calls: u32,
    time: Duration,
    failed: u32,
    first_failure: String,
    p50: Duration,
    p99: Duration,
    max: Duration,
}

/// The results of one load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    /// Processor time of the server for a call, in microseconds.
    pub(crate) cpu: f64,
    /// In milliseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
    pub(crate) failed: u32,
    /// Calls per second.
    pub(crate) rate: f64,
}

/// A load that has not begun. Its connections are open.
pub(crate) struct Load {
    process: Helper,
    pid: u32,
}

/// Calls a server for this time, at least once in each place in flight.
pub(crate) fn load(target: &Target, in_flight: usize, time: Duration, calls: &Calls) -> Measured {
    let measured = Load::new(target, in_flight, time, calls, None).run(|| ());
    assert_eq!(measured.failed, 0, "calls of {target:?} failed");
    measured
}

impl Load {
    /// With a rate, `in_flight` is the most calls in flight, and the time of a call begins when it
    /// was due.
    pub(crate) fn new(
        target: &Target,
        in_flight: usize,
        time: Duration,
        calls: &Calls,
        rate: Option<f64>,
    ) -> Self {
        let (address, service) = (target.address, target.service.to_owned());
        let work = Work { address, service, in_flight, calls: calls.clone(), time, rate };
        let work = serde_json::to_string(&work).unwrap();
        let mut process = on_core(Core::Load, || Helper::start(&["load"]));
        assert_eq!(process.ask(&work), "ready");
        Self { process, pid: target.pid }
    }

    /// Makes the calls. Does something else meanwhile.
    pub(crate) fn run(mut self, meanwhile: impl FnOnce()) -> Measured {
        let before = Usage::of(self.pid).processor;
        self.process.write("go");
        meanwhile();
        let seen: Seen = serde_json::from_str(&self.process.line()).unwrap();
        let used = Usage::of(self.pid).processor.saturating_sub(before);
        if seen.failed > 0 {
            println!("{} calls failed, the first with {}", seen.failed, seen.first_failure);
        }
        let calls = f64::from(seen.calls);
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        Measured {
            cpu: used.as_secs_f64() * 1e6 / calls,
            p50: ms(seen.p50),
            p99: ms(seen.p99),
            max: ms(seen.max),
            failed: seen.failed,
            rate: calls / seen.time.as_secs_f64(),
        }
    }
}

/// Reads the work from standard input, and prints what it saw.
pub(crate) async fn run() {
    let work: Work = serde_json::from_str(&line()).unwrap();
    let connections = CONNECTIONS.min(work.in_flight);
    let mut open = JoinSet::new();
    let mut http2 = Vec::new();
    for _ in 0..connections {
        http2.push(connect(work.address, &mut open).await);
    }
    let (in_flight, service) = (work.in_flight, work.service);
    let (calls, due) = (Arc::new(work.calls), Arc::new(AtomicU32::new(0)));
    println!("ready");
    assert_eq!(line(), "go");
    let began = Instant::now();
    let until = began + work.time;
    let places = (0..in_flight).map(|n| {
        let place = Place {
            http2: http2[n % http2.len()].clone(),
            path: format!("http://{}/{service}/{}", work.address, calls.method()),
            calls: Arc::clone(&calls),
            due: Arc::clone(&due),
            n,
        };
        tokio::spawn(place.run(began, until, work.rate))
    });
    let places = join_all(places.collect::<Vec<_>>()).await;
    let time = began.elapsed();
    let (mut times, mut failures) = (Vec::new(), Vec::new());
    for place in places {
        let (taken, failed) = place.unwrap();
        times.extend(taken);
        failures.extend(failed);
    }
    times.sort_unstable();
    let part = |hundredths: usize| times[(times.len() - 1) * hundredths / 100];
    let seen = Seen {
        calls: u32::try_from(times.len()).unwrap(),
        time,
        failed: u32::try_from(failures.len()).unwrap(),
        first_failure: failures.into_iter().next().unwrap_or_default(),
        p50: part(50),
        p99: part(99),
        max: part(100),
    };
    println!("{}", serde_json::to_string(&seen).unwrap());
}

fn line() -> String {
    std::io::stdin().lines().next().unwrap().unwrap()
}

/// Opens a connection. Its task ends with the others in `open`.
pub(crate) async fn connect(address: SocketAddr, open: &mut JoinSet<()>) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let handshake = h2::client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(stream)
        .await;
    let (http2, connection) = handshake.unwrap();
    open.spawn(async { _ = connection.await });
    http2
}

/// A place for one call in flight.
struct Place {
    http2: SendRequest<Bytes>,
    path: String,
    calls: Arc<Calls>,
    /// The number of the next call of all places.
    due: Arc<AtomicU32>,
    n: usize,
}

impl Place {
    /// Makes calls one after the other. Returns the time of each, and the errors.
    async fn run(
        mut self,
        begin: Instant,
        until: Instant,
        rate: Option<f64>,
    ) -> (Vec<Duration>, Vec<String>) {
        let (mut times, mut failures) = (Vec::new(), Vec::new());
        loop {
            let message = self.calls.message(self.n, times.len());
            let mut began = Instant::now();
            if let Some(rate) = rate {
                let number = f64::from(self.due.fetch_add(1, Relaxed));
                began = begin + Duration::from_secs_f64(number / rate);
                sleep_until(began.into()).await;
            }
            if let Err(failure) = self.call(message).await {
                failures.push(failure);
            }
            times.push(began.elapsed());
            if Instant::now() > until {
                return (times, failures);
            }
        }
    }

    async fn call(&mut self, message: Bytes) -> Result<(), String> {
        self.http2 = self.http2.clone().ready().await.map_err(|error| error.to_string())?;
        call(&mut self.http2, &self.path, message).await
    }
}

/// Makes a call. Fails unless it ends with OK and a message.
async fn call(http2: &mut SendRequest<Bytes>, path: &str, message: Bytes) -> Result<(), String> {
    let text = |error: h2::Error| error.to_string();
    let (response, mut sender) = http2.send_request(request(path), false).map_err(text)?;
    sender.send_data(message, true).map_err(text)?;
    let (head, mut body) = response.await.map_err(text)?.into_parts();
    let mut received = 0;
    while let Some(data) = body.data().await {
        let data = data.map_err(text)?;
        received += data.len();
        let _ = body.flow_control().release_capacity(data.len());
    }
    let trailers = body.trailers().await.map_err(text)?;
    let trailers = trailers.as_ref().unwrap_or(&head.headers);
    if status(trailers) == "0" && received > PREFIX { Ok(()) } else { Err(format!("{trailers:?}")) }
}

fn status(trailers: &HeaderMap) -> &str {
    trailers.get("grpc-status").and_then(|status| status.to_str().ok()).unwrap_or_default()
}

/// Returns the head of a gRPC call.
pub(crate) fn request(path: &str) -> Request<()> {
    Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

/// Bytes before a message: whether it is compressed, and its length.
pub(crate) const PREFIX: usize = 5;

/// Returns a message as gRPC sends it.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap());
    message.encode(&mut bytes).unwrap();
    bytes.freeze()
}

impl Calls {
    /// Returns the calls of a run: the keys of its orders are its own.
    pub(crate) fn of_run(&self, run: usize) -> Self {
        match self {
            Self::Status(requests) => Self::Status(requests.clone()),
            Self::Orders { devices, keys } => {
                Self::Orders { devices: *devices, keys: format!("{keys}-{run}") }
            }
        }
    }

    fn method(&self) -> &'static str {
        match self {
            Self::Status(_) => "GetRequestStatus",
            Self::Orders { .. } => "DownloadProfile",
        }
    }

    /// Returns the message of a call: the `round`th of the place `n`.
    fn message(&self, n: usize, round: usize) -> Bytes {
        match self {
            Self::Status(requests) => {
                let (number, id) = &requests[n % requests.len()];
                framed(&GetRequestStatusRequest {
                    account_name: account(*number),
                    request_id: id.clone(),
                    ..GetRequestStatusRequest::default()
                })
            }
            Self::Orders { devices, keys } => framed(&DownloadProfileRequest {
                account_name: account(n),
                devices: (0..*devices).map(device).collect(),
                service_plan: "plan 1".to_owned(),
                idempotency_key: format!("{keys}-{n}-{round}"),
                validate_only: false,
            }),
        }
    }
}
