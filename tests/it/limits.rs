//! Promise 9 of the README: what one caller does cannot make another's calls fail.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, future::join_all, stream};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2::{SendRequest, handshake},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use thingspace_gateway::{
    config::Config,
    identity::RequestId,
    proto::esim::{DownloadProfileRequest, WatchRequestRequest},
    simulator::DeviceResult,
};
use tokio::{net::TcpStream, task::JoinSet};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    callers::{entry, line, with},
    harness::*,
};

const ORDER: &str = "/thingspace.esim.v1.EsimService/DownloadProfile";
const GET_STATUS: &str = "/thingspace.esim.v1.EsimService/GetRequestStatus";

/// Two callers, of whom each may do everything.
const GREEDY: &str = "the token of a greedy caller";
const MODEST: &str = "the token of a modest caller";

fn two_callers(upstream: &Upstream) -> Config {
    let mut config = upstream.quiet();
    config.auth.tokens_file = upstream.dir.path().join("tokens");
    let tokens = line("greedy", GREEDY) + &line("modest", MODEST);
    std::fs::write(&config.auth.tokens_file, tokens).unwrap();
    config.auth.allow = vec![entry(&["token:*"], &["*"], &["*"])];
    config
}

/// The limit that an error names. It is a refusal that tells clients when to repeat the call.
#[track_caller]
fn limit(status: &Status) -> String {
    assert_eq!(kind(status), (Code::ResourceExhausted, "OVERLOADED".to_owned()), "{status:?}");
    let details = status.get_error_details();
    let retry = details.retry_info().unwrap().retry_delay.unwrap().as_millis();
    let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap();
    assert_eq!(pushback.to_str().unwrap(), retry.to_string());
    details.error_info().unwrap().metadata["limit"].clone()
}

type Call = Request<BoxBody<Bytes, Infallible>>;
type Peer = SendRequest<BoxBody<Bytes, Infallible>>;

/// An HTTP/2 client whose requests need not be gRPC calls.
async fn peer(address: SocketAddr) -> Peer {
    let socket = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (peer, connection) = handshake(TokioExecutor::new(), socket).await.unwrap();
    tokio::spawn(connection);
    peer
}

fn call(path: &str, token: &str, pieces: &[&[u8]], ends: bool) -> Call {
    let pieces: Vec<_> =
        pieces.iter().map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
    let rest = if ends { stream::empty().left_stream() } else { stream::pending().right_stream() };
    let body = StreamBody::new(stream::iter(pieces).chain(rest));
    Request::post(format!("http://gateway{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {token}"))
        .body(BodyExt::boxed(body))
        .unwrap()
}

fn prefixed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0][..], &length, message].concat()
}

fn encoded(order: &DownloadProfileRequest) -> Vec<u8> {
    prefixed(&order.encode_to_vec())
}

/// The status with which a call ends, in its headers or trailers.
async fn status(response: Response<Incoming>) -> Status {
    let (head, body) = response.into_parts();
    let read = async {
        let collected = body.collect().await.unwrap();
        collected.trailers().cloned().unwrap_or_default()
    };
    let in_headers = |headers: &HeaderMap| headers.contains_key("grpc-status");
    let headers = if in_headers(&head.headers) { head.headers } else { read.await };
    Status::from_header_map(&headers).unwrap()
}

/// Each denied call is a line in the audit log.
#[tokio::test]
async fn denied_calls_count_towards_the_rate_of_their_caller() {
    let upstream = Upstream::manual().await;
    let mut config = two_callers(&upstream);
    config.limits.caller_calls_per_second = 1;
    config.auth.allow = vec![entry(&["token:greedy"], &["GetRequestStatus"], &["*"])];
    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    let mut denied = 0;
    let refused = loop {
        let order = with(order("key", 1..2), GREEDY);
        let status = client.download_profile(order).await.unwrap_err();
        if status.code() != Code::PermissionDenied {
            break status;
        }
        denied += 1;
    };
    assert_eq!(limit(&refused), "limits.caller_calls_per_second");
    assert!(denied > 0);
}

#[tokio::test]
async fn a_caller_above_its_rate_leaves_others_their_calls() {
    let upstream = Upstream::manual().await;
    let mut config = two_callers(&upstream);
    config.limits.caller_calls_per_second = 5;
    let gateway = Gateway::start(config).await;
    let (greedy, modest) = (gateway.client().await, gateway.client().await);
    let id = upstream.sim.add_request(upstream.accounts[0].clone(), [upstream_device(1)]);
    let ask = async |client: &Client, token| {
        client.clone().get_request_status(with(status_call(&id), token)).await.map(drop)
    };
    let flood = join_all((0..300).map(|_| ask(&greedy, GREEDY)));
    let calls = async {
        for _ in 0..30 {
            ask(&modest, MODEST).await.unwrap();
        }
    };
    let (outcomes, ()) = within("all calls", async { tokio::join!(flood, calls) }).await;
    let (answered, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    // 50 calls are saved up, and 5 are added in a second.
    assert!((50..200).contains(&answered.len()), "{}", answered.len());
    for refusal in refused {
        assert_eq!(limit(&refusal.unwrap_err()), "limits.caller_calls_per_second");
    }
    gateway.stop().await;
}

/// A quarter of a caller's calls is only for status calls.
#[tokio::test]
async fn status_calls_are_answered_when_orders_are_refused() {
    let upstream = Upstream::manual().await;
    let mut config = two_callers(&upstream);
    config.limits.caller_calls_per_second = 1;
    let gateway = Gateway::start(config).await;
    let client = gateway.client().await;
    let id = upstream.sim.add_request(upstream.accounts[0].clone(), [upstream_device(1)]);
    let orders = join_all((0..50).map(|_| {
        let order = DownloadProfileRequest { validate_only: true, ..order("k", [1]) };
        let mut client = client.clone();
        async move { client.download_profile(with(order, GREEDY)).await }
    }));
    let refused = orders.await.into_iter().filter_map(Result::err).inspect(|refusal| {
        assert_eq!(limit(refusal), "limits.caller_calls_per_second");
    });
    assert!(refused.count() > 25);
    client.clone().get_request_status(with(status_call(&id), GREEDY)).await.unwrap();
    gateway.stop().await;
}

#[tokio::test]
async fn half_sent_messages_are_bounded_and_end() {
    const STREAMS: usize = 1_000;
    const PIECE: usize = 16 << 10;
    let upstream = Upstream::manual().await;
    let mut config = two_callers(&upstream);
    config.grpc.max_request_bytes = 16 << 20;
    config.grpc.receive_timeout = Duration::from_secs(8);
    let gateway = Gateway::start(config).await;
    let attacker = peer(gateway.address).await;
    let begin = [&[0][..], &(4_u32 << 20).to_be_bytes(), &[7; PIECE]].concat();
    let mut calls = JoinSet::new();
    for _ in 0..STREAMS {
        let answer = attacker.clone().send_request(call(ORDER, GREEDY, &[&begin], false));
        calls.spawn(async move { status(answer.await.unwrap()).await });
    }
    // The caller may hold a quarter of the 16 MiB, and the rest is refused at once.
    let share = (4 << 20) / PIECE;
    let mut refused = 0;
    while refused < STREAMS - share {
        let refusal = within("a refusal", calls.join_next()).await.unwrap().unwrap();
        assert_eq!(limit(&refusal), "grpc.max_request_bytes");
        refused += 1;
    }
    // The others still wait for their messages.
    let mut modest = gateway.client().await;
    within("an order", modest.download_profile(with(order("k", [1]), MODEST))).await.unwrap();
    assert!(!calls.is_empty());
    while let Some(ended) = within("the end of a call", calls.join_next()).await {
        let ended = ended.unwrap();
        if ended.code() == Code::ResourceExhausted {
            assert_eq!(limit(&ended), "grpc.max_request_bytes");
        } else {
            assert_eq!(kind(&ended), (Code::DeadlineExceeded, "DEADLINE".to_owned()));
            assert!(ended.message().contains("grpc.receive_timeout"), "{ended:?}");
        }
    }
    // Nothing is held any more.
    let large = prefixed(&vec![0; 3 << 20]);
    let answer = attacker.clone().send_request(call(ORDER, GREEDY, &[&large], true)).await;
    assert_ne!(status(answer.unwrap()).await.code(), Code::ResourceExhausted);
    gateway.stop().await;
}

#[tokio::test]
async fn permits_of_watches_come_back() {
    let upstream = Upstream::manual().await;
    let mut config = two_callers(&upstream);
    config.limits.caller_watches = 2;
    let gateway = Gateway::start(config).await;
    let account = upstream.accounts[0].clone();
    let id = upstream.sim.add_request(account.clone(), [upstream_device(1)]);
    let watch = async |client: &Client, token| {
        let message = WatchRequestRequest {
            account_name: ACCOUNT.to_owned(),
            request_id: id.to_string(),
            ..WatchRequestRequest::default()
        };
        let stream = client.clone().watch_request(with(message, token)).await?.into_inner();
        Ok::<_, Status>(stream)
    };
    let client = gateway.client().await;
    let other_connection = gateway.client().await;
    let first = watch(&client, GREEDY).await.unwrap();
    let _second = watch(&other_connection, GREEDY).await.unwrap();
    let refusal = watch(&client, GREEDY).await.unwrap_err();
    assert_eq!(limit(&refusal), "limits.caller_watches");
    watch(&client, MODEST).await.unwrap();
    // The caller resets a watch.
    drop(first);
    let reset =
        eventually_ok("a permit after a reset", async || watch(&client, GREEDY).await).await;
    watch(&client, GREEDY).await.unwrap_err();
    // A connection ends with its watch.
    drop((reset, client));
    let client = gateway.client().await;
    let again = eventually_ok("a permit after the end of a connection", async || {
        watch(&client, GREEDY).await
    });
    let mut again = again.await;
    // A watch ends with its request.
    upstream.sim.finish_all(&id, DeviceResult::Success);
    client.clone().get_request_status(with(status_call(&id), GREEDY)).await.unwrap();
    within("the end of a watch", async { while again.next().await.is_some() {} }).await;
    eventually_ok("a permit after the end of a watch", async || watch(&client, GREEDY).await).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_request_has_exactly_one_message() {
    let upstream = Upstream::manual().await;
    let config = two_callers(&upstream);
    let gateway = Gateway::start(config).await;
    let peer = peer(gateway.address).await;
    let ends = async |path, pieces: &[&[u8]], ends| {
        let answer = peer.clone().send_request(call(path, GREEDY, pieces, ends));
        let ended = status(within("an answer", answer).await.unwrap()).await;
        kind(&ended)
    };
    let malformed = (Code::Internal, "MALFORMED_CALL".to_owned());
    let too_large = (Code::OutOfRange, "MESSAGE_TOO_LARGE".to_owned());
    let whole = encoded(&order("k", [1]));
    assert_eq!(ends(ORDER, &[], true).await, malformed);
    assert_eq!(ends(ORDER, &[&whole[..whole.len() - 1]], true).await, malformed);
    assert_eq!(ends(ORDER, &[&whole, &whole], true).await, malformed);
    // Refused before the request ends.
    assert_eq!(ends(ORDER, &[&whole, &[0]], false).await, malformed);
    assert_eq!(ends(ORDER, &[&[0, 0, 64, 0, 1]], false).await, too_large);
    assert_eq!(ends(GET_STATUS, &[&[0, 0, 1, 0, 1]], false).await, too_large);
    // Devices of two bytes each, which would take 200 MB.
    let empty_devices = prefixed(&[0x12, 0].repeat(2 << 20));
    let invalid = (Code::InvalidArgument, "INVALID_FIELD".to_owned());
    assert_eq!(ends(ORDER, &[&empty_devices], true).await, invalid);
    assert!(upstream.sim.ledger().orders.is_empty());
    // A message in pieces is received.
    let pieces: Vec<_> = whole.chunks(7).collect();
    let answer = peer.clone().send_request(call(ORDER, GREEDY, &pieces, true)).await.unwrap();
    assert_eq!(status(answer).await.code(), Code::Ok);
    gateway.stop().await;
}

#[tokio::test]
async fn only_grpc_is_answered() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(two_callers(&upstream)).await;
    let peer = peer(gateway.address).await;
    let whole = encoded(&order("k", [1]));
    let answer = async |change: &dyn Fn(&mut Call)| {
        let mut request = call(ORDER, GREEDY, &[&whole], true);
        change(&mut request);
        within("an answer", peer.clone().send_request(request)).await.unwrap()
    };
    let content_type = async |value: &'static str| {
        answer(&|request| {
            request.headers_mut().insert("content-type", value.parse().unwrap());
        })
        .await
    };
    for refused in ["text/plain", "application/json", "application/grpc-web", "application/grpcx"] {
        assert_eq!(content_type(refused).await.status(), 415, "{refused}");
    }
    for method in [Method::GET, Method::PUT, Method::OPTIONS] {
        let answer = answer(&|request| *request.method_mut() = method.clone()).await;
        assert_eq!(answer.status(), 405, "{method}");
    }
    assert!(upstream.sim.ledger().orders.is_empty());
    let large = answer(&|request| {
        request.headers_mut().insert("x-large", "v".repeat(20_000).parse().unwrap());
    });
    let large = large.await;
    assert_eq!(large.status(), 200);
    let refused = (Code::OutOfRange, "MESSAGE_TOO_LARGE".to_owned());
    assert_eq!(kind(&status(large).await), refused);
    let accepted = content_type("application/grpc+proto; a=b").await;
    assert_eq!(status(accepted).await.code(), Code::Ok);
    gateway.stop().await;
}

/// The devices count for the caller that ordered them, also after a restart.
#[tokio::test]
async fn the_open_devices_of_a_caller_are_limited() {
    let upstream = Upstream::manual().await;
    let mut config = two_callers(&upstream);
    config.limits.caller_open_devices = 3;
    let mut gateway = Gateway::start(config.clone()).await;
    let mut client = gateway.client().await;
    let first = client.download_profile(with(order("first", [1, 2]), GREEDY)).await.unwrap();
    let first = RequestId::parse(&first.into_inner().request_id).unwrap();
    for restart in [false, true] {
        if restart {
            gateway.stop().await;
            gateway = Gateway::start(config.clone()).await;
            client = gateway.client().await;
        }
        let refusal = client.download_profile(with(order("next", [3, 4]), GREEDY)).await;
        assert_eq!(limit(&refusal.unwrap_err()), "limits.caller_open_devices");
        assert_eq!(upstream.sim.ledger().orders.len(), 1);
        // A repeated call orders nothing.
        client.download_profile(with(order("first", [1, 2]), GREEDY)).await.unwrap();
    }
    // No repetition helps an order that is above the limit by itself.
    let large = client.download_profile(with(order("large", 3..7), MODEST)).await.unwrap_err();
    assert_eq!(kind(&large), (Code::InvalidArgument, "INVALID_FIELD".to_owned()));
    assert!(large.message().contains("at most 3 devices"), "{large:?}");
    client.download_profile(with(order("other", [5, 6]), MODEST)).await.unwrap();
    client.download_profile(with(order("small", [7]), GREEDY)).await.unwrap();
    upstream.sim.finish_all(&first, DeviceResult::Success);
    client.get_request_status(with(status_call(&first), GREEDY)).await.unwrap();
    client.download_profile(with(order("next", [3, 4]), GREEDY)).await.unwrap();
    gateway.stop().await;
}
