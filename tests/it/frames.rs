//! What callers see of HTTP/2, frame by frame: calls that are reset, and the drain.

use crate::{harness::*, http2::*};

/// A call that its caller resets is no failure of the gateway. A request that ends early is one.
#[tokio::test]
async fn a_call_that_is_reset_is_no_failure() {
    const RESETS: usize = 20;
    let upstream = Upstream::manual().await;
    let mut command = serve_command(&upstream.quiet(), upstream.dir.path());
    command.env("RUST_LOG", "info,thingspace_gateway::telemetry=debug");
    let mut process = Process::spawn(&mut command);
    let mut peer = Peer::connect(process.address).await;
    let call = call(GET_STATUS, "");
    let mut streams = (1..).step_by(2);
    for stream in streams.by_ref().take(RESETS) {
        let begun = [begin(stream, &call), frame(DATA, 0, stream, HALF_MESSAGE)].concat();
        peer.send(&begun).await.unwrap();
        peer.ping().await;
        peer.send(&reset(stream, CANCEL)).await.unwrap();
    }
    peer.send(&unary(streams.next().unwrap(), &call, HALF_MESSAGE)).await.unwrap();
    process.wait_for_line("MALFORMED_CALL");
    process.terminate();
    // Open calls end with their connection.
    drop(peer);
    let (_, log) = within("the end", process.wait()).await;
    let of_call = log.iter().filter(|line| line.contains("GetRequestStatus"));
    let (failed, ended): (Vec<_>, Vec<_>) = of_call.partition(|line| line.contains("call failed"));
    assert_eq!(failed.len(), 1, "{failed:#?}");
    assert!(failed[0].contains("MALFORMED_CALL"), "{failed:#?}");
    assert_eq!(
        ended.iter().filter(|line| line.contains("CANCELLED")).count(),
        RESETS,
        "{ended:#?}"
    );
}

/// A drain first announces that the connection will end. A call that begins before its caller has
/// read the announcement is answered. Only streams after the caller's ACK are not processed, and
/// the second GOAWAY says so.
#[tokio::test]
async fn a_call_that_crosses_the_beginning_of_a_drain_is_answered() {
    let upstream = Upstream::manual().await;
    let mut process = Process::serve(&upstream.quiet(), upstream.dir.path());
    // Keeps the drain from ending.
    let held = HeldOrder::begin(&upstream, &process.client().await, "k", 0..1).await;
    let mut peer = Peer::connect(process.address).await;
    peer.ping().await;
    process.terminate();

    let announced = peer.next_of(GOAWAY).await.payload;
    assert_eq!(announced, [0x7fff_ffff_u32.to_be_bytes(), NO_ERROR.to_be_bytes()].concat());
    let probe = peer.next_of(PING).await;
    peer.send(&unary(1, &call(GET_STATUS, ""), EMPTY_MESSAGE)).await.unwrap();
    let answer = peer.next_of(HEADERS).await;
    assert_eq!((answer.stream, answer.flags), (1, END_HEADERS | END_STREAM));
    process.wait_for_line("DRAINING");

    peer.send(&frame(PING, ACK, 0, &probe.payload)).await.unwrap();
    let refused = peer.next_of(GOAWAY).await.payload;
    assert_eq!(refused, [1_u32.to_be_bytes(), NO_ERROR.to_be_bytes()].concat());
    let rest = within("the end of the connection", peer.rest()).await;
    assert!(!held.is_answered() && rest.is_empty(), "{rest:?}");
    held.answer().await.unwrap();
    assert!(within("the end", process.wait()).await.0.success());
}
