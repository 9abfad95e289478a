//! Generated answers of a special ThingSpace, which sends raw bytes over real sockets and counts
//! the orders.
//!
//! The upstream knows of each answer to an order whether it certainly refused it, because it made
//! the answer. It sees every POST. So the promise can be checked from outside: after an answer that
//! was not certainly a refusal, no device is ever ordered again. `GENERATED_ORDERS` says how many
//! orders there are, and `GENERATED_SEED` repeats them.

use std::{
    collections::HashMap,
    env, fs,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use fastrand::Rng;
use futures_util::{StreamExt, stream};
use thingspace_gateway::identity::RequestId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tonic::Code;

use crate::harness::*;

const ORDERS: usize = 1_500;

/// Orders at the same time.
const AT_ONCE: usize = 16;

/// Calls with each key.
const CALLS: usize = 3;

/// The most memory that the gateway may take at any time.
const MAX_RESIDENT_KIB: u64 = 400 << 10;

const REFUSAL: &str = r#""errorCode":"UnifiedWebService.REQUEST_FAILED.DeviceNotFound""#;

const SESSION: &str = r#""errorCode":"UnifiedWebService.REQUEST_FAILED.SessionToken.Expired""#;

/// What the upstream did for a device.
#[derive(Default)]
struct Device {
    posts: u32,
    /// An answer that was not certainly a refusal was sent.
    may_exist: bool,
    /// The only request id that was sent.
    given: Option<String>,
}

#[derive(Default)]
struct State {
    devices: HashMap<String, Device>,
    /// Devices that were ordered again although they may have existed, with the answer before.
    doubled: Vec<String>,
    last: HashMap<String, String>,
    logins: u32,
    tokens: u64,
}

struct Upstream {
    state: Mutex<State>,
    seed: u64,
}

/// An answer to an order, and what it means.
struct Answer {
    bytes: Vec<u8>,
    certainly_refused: bool,
    gives: Option<String>,
    /// The connection ends after the bytes.
    ends: bool,
}

fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())]
}

fn written(status: u16, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{headers}\r\n{body}").into_bytes()
}

/// A text that occurs only in answers to orders that exist.
fn trace_of_an_order(rng: &mut Rng, id: &str) -> String {
    let name = pick(
        rng,
        &["requestId", "requestid", "REQUESTID", "request_id", "Request-Id", "requestId ", "id"],
    );
    match rng.u8(..14) {
        0 => format!(r#""{name}":["{id}"]"#),
        1 => format!(r#""{name}":{{"id":"{id}"}}"#),
        2 => format!(r#""data":{{"requestId":"{id}"}}"#),
        3 => format!(
            r#""{name}":{}"#,
            pick(rng, &["7", "true", "100000000000000000001", "\"a_b\"", "-1"])
        ),
        4 => format!(r#""requestId":"{id}","RequestId":"{id}x""#),
        5 => r#""status":"Pending""#.to_owned(),
        6 => r#""fault":{"code":101503}"#.to_owned(),
        7 => format!(r#""errorMessage":"accepted, {{\"requestId\":\"{id}\"}}""#),
        8 => format!(r#""detail":{{"text":"request id {id}"}}"#),
        9 => format!(r#""{}":"{id}""#, pick(rng, &["reqId", "ｒequestId", "REQ_ID"])),
        10 => r#""errors":[{"code":"S.REQUEST_ONHOLD.x"}]"#.to_owned(),
        11 => pick(rng, &[r#""state":"Pending""#, r#""result":"Success""#, r#""accepted":true"#])
            .to_owned(),
        12 => r#""errorCode":400.0"#.to_owned(),
        _ => format!(r#""{name}":"{id}""#),
    }
}

/// A head that says why an order is not carried out, and the fields that say it.
fn certain(rng: &mut Rng) -> (u16, &'static str) {
    match rng.u8(..12) {
        0 => (400, SESSION),
        1 => (401, r#""fault":{"code":"900901"}"#),
        2 | 3 => (429, r#""fault":{"code":900800}"#),
        4 => (429, ""),
        5 => (403, r#""errorCode":"400""#),
        _ => (pick(rng, &[400, 403, 404, 422]), REFUSAL),
    }
}

fn answer(rng: &mut Rng, id: &str) -> Answer {
    let unknown = |bytes| Answer { bytes, certainly_refused: false, gives: None, ends: false };
    match rng.u8(..20) {
        0..=3 => {
            let body =
                format!(r#"{{"{}":"{id}"}}"#, pick(rng, &["requestId", "RequestId", "requestID"]));
            let gives = Some(id.to_owned());
            Answer { gives, ..unknown(written(pick(rng, &[200, 201, 202]), "", &body)) }
        }
        4..=7 => {
            let (status, fields) = certain(rng);
            let headers = pick(
                rng,
                &["", "retry-after: 0\r\n", "content-type: text/html\r\n", "x-request-id: r-1\r\n"],
            );
            Answer {
                certainly_refused: true,
                ..unknown(written(status, headers, &format!("{{{fields}}}")))
            }
        }
        8..=12 => {
            let (status, fields) = certain(rng);
            let comma = if fields.is_empty() { "" } else { "," };
            let body = format!("{{{fields}{comma}{}}}", trace_of_an_order(rng, id));
            unknown(written(status, "", &body))
        }
        13 => {
            let (status, fields) = certain(rng);
            let header = match rng.u8(..3) {
                0 => format!("location: /api/m2m/v2/accounts/0-1/requests/{id}/status\r\n"),
                1 => format!("requestId: {id}\r\n"),
                _ => "www-authenticate: Bearer error_description=\"accepted\"\r\n".to_owned(),
            };
            unknown(written(status, &header, &format!("{{{fields}}}")))
        }
        14 => {
            // Half of a refusal, with or without the other half announced.
            let (status, _) = certain(rng);
            let half = &format!("{{{REFUSAL},\"requestI")[..rng.usize(10..70)];
            let mut bytes = written(status, "", half);
            let ends = rng.bool();
            if ends {
                let head = format!("HTTP/1.1 {status} X\r\ncontent-length: 5000\r\n\r\n{half}");
                bytes = head.into_bytes();
            }
            Answer { ends, ..unknown(bytes) }
        }
        15 => {
            let value = pick(
                rng,
                &[
                    "true",
                    "0",
                    "-1",
                    "\"null\"",
                    "\"undefined\"",
                    "\"error\"",
                    "\"pending\"",
                    "\"400\"",
                    "500",
                    "100000000000000000001",
                    "1e3",
                    "[]",
                    "{}",
                    "\"\"",
                ],
            );
            unknown(written(200, "", &format!(r#"{{"requestId":{value}}}"#)))
        }
        16 => {
            let body = format!(r#"{{"requestId":"{id}",{REFUSAL}}}"#);
            unknown(written(pick(rng, &[200, 202, 400]), "", &body))
        }
        17 => unknown(written(
            pick(rng, &[200, 500, 502, 503, 408, 302, 307]),
            "location: /x\r\n",
            &format!("{{{}}}", pick(rng, &[REFUSAL, SESSION])),
        )),
        18 => Answer { ends: true, ..unknown(Vec::new()) },
        _ => {
            let bytes = (0..rng.usize(1..400)).map(|_| rng.u8(..)).collect();
            Answer { ends: true, ..unknown(bytes) }
        }
    }
}

/// An answer to a status query, usually a valid one.
fn status(rng: &mut Rng, path: &str) -> Vec<u8> {
    let id = path.split('/').rev().nth(1).unwrap_or_default();
    let body = match rng.u8(..8) {
        0 => r#"{"requestId":"another","status":"Success"}"#.to_owned(),
        1 => format!(
            r#"{{"requestId":"{id}","status":"Success",
            "subRequests":[{{"ids":[{{"kind":"eid","id":1e99}}]}}]}}"#
        ),
        2 => (0..rng.usize(..300)).map(|_| char::from(rng.u8(32..127))).collect(),
        3 => format!("{}{}", "[".repeat(50_000), "]".repeat(50_000)),
        _ => format!(r#"{{"requestId":"{id}","status":"Pending","subRequests":[]}}"#),
    };
    written(pick(rng, &[200, 200, 200, 400, 404, 503]), "", &body)
}

impl Upstream {
    async fn start(seed: u64) -> (SocketAddr, Arc<Self>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let upstream = Arc::new(Self { state: Mutex::default(), seed });
        let serving = Arc::clone(&upstream);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let upstream = Arc::clone(&serving);
                tokio::spawn(async move { upstream.serve(stream).await });
            }
        });
        (address, upstream)
    }

    /// Answers the requests of one connection until it ends.
    async fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let mut buffer = Vec::new();
        loop {
            let head = loop {
                if let Some(end) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                    break end + 4;
                }
                (stream.read_buf(&mut buffer).await.ok()? > 0).then_some(())?;
            };
            let text = String::from_utf8(buffer[..head].to_vec()).ok()?;
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
            let end = head + length.map_or(0, |length| length.parse::<usize>().unwrap());
            while buffer.len() < end {
                (stream.read_buf(&mut buffer).await.ok()? > 0).then_some(())?;
            }
            let body = String::from_utf8(buffer[head..end].to_vec()).ok()?;
            let answer = self.answer(text.lines().next()?, &body);
            buffer.drain(..end);
            stream.write_all(&answer.bytes).await.ok()?;
            (!answer.ends).then_some(())?;
        }
    }

    fn answer(&self, line: &str, body: &str) -> Answer {
        let state = &mut *self.state.lock().unwrap();
        let plain = |bytes| Answer { bytes, certainly_refused: false, gives: None, ends: false };
        state.tokens += 1;
        let path = line.split(' ').nth(1).unwrap_or_default();
        if path.ends_with("/oauth2/token") {
            plain(written(
                200,
                "",
                &format!(r#"{{"access_token":"bearer-{}","expires_in":3600}}"#, state.tokens),
            ))
        } else if path.ends_with("/session/login") {
            state.logins += 1;
            plain(written(200, "", &format!(r#"{{"sessionToken":"session-{}"}}"#, state.tokens)))
        } else if path.ends_with("/actions/download") {
            self.ordered(state, body)
        } else if path.ends_with("/status") {
            plain(status(&mut Rng::with_seed(self.seed ^ state.tokens), path))
        } else {
            plain(written(200, "", "[]"))
        }
    }

    fn ordered(&self, state: &mut State, body: &str) -> Answer {
        let eid = body.split_once(r#""kind":"eid","id":""#).unwrap().1[..32].to_owned();
        let device = state.devices.entry(eid.clone()).or_default();
        if device.may_exist {
            state.doubled.push(format!("{eid}, after {}", state.last[&eid]));
        }
        device.posts += 1;
        let number: u64 = eid[16..].parse().unwrap();
        let mut rng =
            Rng::with_seed(self.seed.wrapping_add(number * 1_000 + u64::from(device.posts)));
        let id = format!("r-{number}-{}", device.posts);
        let mut answer = answer(&mut rng, &id);
        // An answer too many, which must not be taken for the answer to the next order on this
        // connection.
        if !answer.ends && rng.u8(..10) == 0 {
            answer.bytes.extend(written(400, "", &format!("{{{REFUSAL}}}")));
        }
        device.may_exist |= !answer.certainly_refused;
        device.given.clone_from(&answer.gives);
        state.last.insert(eid, String::from_utf8_lossy(&answer.bytes).chars().take(300).collect());
        answer
    }

    /// Returns the id that was sent for a device. Callers may get no other id.
    fn given(&self, n: usize) -> Option<String> {
        self.state.lock().unwrap().devices.get(&device(n).eid)?.given.clone()
    }
}

/// Orders one device repeatedly with the same key.
async fn order_often(mut client: Client, upstream: &Upstream, n: usize) {
    let mut told = None;
    for _ in 0..CALLS {
        match within("an order", client.download_profile(order(&format!("k{n}"), [n]))).await {
            Ok(answer) => {
                let id = answer.into_inner().request_id;
                assert_eq!(Some(&id), upstream.given(n).as_ref(), "device {n}");
                assert_eq!(*told.get_or_insert(id.clone()), id, "device {n}");
                let id = RequestId::parse(&id).unwrap();
                // Any answer will do.
                let _ =
                    get_status(&mut client, status_call(&id)).await.map_err(|status| kind(&status));
            }
            Err(status) => {
                assert!(told.is_none(), "device {n} was placed: {status:?}");
                assert!(!matches!(status.code(), Code::Internal | Code::Unknown), "{status:?}");
                kind(&status);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_answers_double_no_order_and_give_no_wrong_id() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = number("GENERATED_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let orders =
        number("GENERATED_ORDERS").map_or(ORDERS, |orders| usize::try_from(orders).unwrap());
    let (address, upstream) = Upstream::start(seed).await;

    let files = crate::harness::Upstream::manual().await;
    let mut config = files.quiet();
    config.thingspace.base_url = format!("http://{address}/api");
    (config.thingspace.breaker_failures, config.thingspace.breaker_max) =
        (100, config.thingspace.breaker_first);
    let gateway = Process::serve(&config, files.dir.path());
    let client = gateway.client().await;
    let calls = (0..orders).map(|n| order_often(client.clone(), &upstream, n));
    stream::iter(calls).buffer_unordered(AT_ONCE).collect::<()>().await;

    let status = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    gateway.terminate();
    let (exit, log) = gateway.wait().await;
    let state = upstream.state.lock().unwrap();
    let posts: u32 = state.devices.values().map(|device| device.posts).sum();
    eprintln!("GENERATED_SEED={seed}: {posts} POSTs, {} logins, {peak} KiB", state.logins);
    assert!(state.doubled.is_empty(), "GENERATED_SEED={seed}: {:#?}", state.doubled);
    assert!(
        state.devices.values().any(|device| device.posts > 1),
        "certain refusals free their keys"
    );
    assert!(exit.success());
    let panics: Vec<_> = log.iter().filter(|line| line.contains("panicked")).collect();
    assert!(panics.is_empty(), "{panics:#?}");
    assert!(peak < MAX_RESIDENT_KIB, "{peak} KiB");
}
