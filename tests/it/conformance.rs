//! RFC 9113 and RFC 7541, rule by rule: what a server must ignore, what ends a stream and what ends
//! the connection. After everything that does not end the connection, a call on it is answered.

use std::{collections::BTreeSet, net::SocketAddr};

use futures_util::future::join_all;

use crate::{harness::*, http2::*};

/// The stream of the call that shows that the connection goes on.
const LAST: u32 = 1_001;

/// What a peer sees of a rule. The code of a connection error is not compared: h2 uses
/// PROTOCOL_ERROR also where the RFC has a code for the size of frames or for header blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Ignored,
    /// The stream ends with this code. A server may end the connection instead (§5.4.2).
    Stream(u32),
    /// GOAWAY with an error, and the end of the connection.
    Connection,
    /// The end of the connection without GOAWAY.
    Closed,
}

use Effect::{Closed, Connection, Ignored, Stream};

struct Rule {
    section: &'static str,
    what: &'static str,
    sent: Vec<u8>,
    effect: Effect,
}

/// Sends bytes after the preface, then a call on another stream, and returns what happens.
async fn effect(address: SocketAddr, sent: &[u8]) -> Effect {
    let mut peer = Peer::connect(address).await;
    // The connection may end while this is sent.
    let _ = peer.send(sent).await;
    let _ = peer.send(&unary(LAST, &call(HEALTH, ""), EMPTY_MESSAGE)).await;
    let mut seen = Ignored;
    while let Some(frame) = peer.next().await {
        match frame.kind {
            GOAWAY => {
                assert_ne!(frame.code(), NO_ERROR);
                peer.rest().await;
                return Connection;
            }
            // A server that has answered before the end of a request may end it with NO_ERROR.
            RST_STREAM if frame.code() != NO_ERROR => {
                assert_ne!(frame.stream, LAST, "the last call is valid");
                seen = Stream(frame.code());
            }
            HEADERS if frame.stream == LAST && frame.flags & END_STREAM != 0 => {
                peer.ping().await;
                return seen;
            }
            _ => {}
        }
    }
    Closed
}

/// Runs all rules at once, and shows every difference.
async fn check(rules: Vec<Rule>) {
    let upstream = Upstream::manual().await;
    let gateway = Process::serve(&upstream.quiet(), upstream.dir.path());
    let seen = join_all(rules.iter().map(|rule| effect(gateway.address, &rule.sent))).await;
    let differs = |(rule, seen): (&Rule, &Effect)| {
        let Rule { section, what, effect, .. } = rule;
        let same = *seen == *effect || matches!((effect, seen), (Stream(_), Connection));
        (!same).then(|| format!("{section} {what}: {seen:?} instead of {effect:?}"))
    };
    let differences: BTreeSet<_> = rules.iter().zip(&seen).filter_map(differs).collect();
    assert!(differences.is_empty(), "{differences:#?}");
    gateway.terminate();
    assert!(gateway.wait().await.0.success());
}

fn rule(section: &'static str, what: &'static str, effect: Effect, sent: Vec<u8>) -> Rule {
    Rule { section, what, sent, effect }
}

/// A call on stream 1 whose message does not follow.
fn open() -> Vec<u8> {
    begin(1, &status())
}

/// The header block of a call.
fn status() -> Vec<u8> {
    call(GET_STATUS, "")
}

/// A whole call on stream 1 with these bytes after its header fields.
fn with_block(more: &[u8]) -> Vec<u8> {
    unary(1, &[&status(), more].concat(), EMPTY_MESSAGE)
}

/// A whole call on stream 1 with one more header field.
fn with_field(name: &str, value: &str) -> Vec<u8> {
    with_block(&literal(0, name, value))
}

/// A whole call on stream 1 without one of its header fields.
fn without(name: &str) -> Vec<u8> {
    let rest = fields(GET_STATUS).into_iter().filter(|field| field.0 != name);
    unary(1, &block(rest), EMPTY_MESSAGE)
}

/// A call whose header block is cut in two, with other bytes between the halves.
fn interrupted(between: &[u8]) -> Vec<u8> {
    let block = status();
    let (left, right) = block.split_at(20);
    let left = frame(HEADERS, END_STREAM, 1, left);
    [&left, between, &frame(CONTINUATION, END_HEADERS, 1, right)].concat()
}

fn priority(stream: u32, on: u32) -> Vec<u8> {
    frame(PRIORITY, 0, stream, &[&on.to_be_bytes()[..], &[16]].concat())
}

/// Bytes after the beginning of a call on stream 1.
fn opened(more: &[u8]) -> Vec<u8> {
    [&open(), more].concat()
}

#[tokio::test]
async fn frames_and_streams() {
    let ended = |more: &[u8]| [&unary(1, &status(), EMPTY_MESSAGE), more].concat();
    let was_reset = |more: &[u8]| [&opened(&reset(1, CANCEL)), more].concat();
    let reserved = {
        let mut reserved = ping(*b"reserved");
        reserved[5] |= 0x80;
        reserved
    };
    let trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block([("a", "b")]));
    let continued = frame(CONTINUATION, END_HEADERS, 1, &[]);
    let large = vec![0; (16 << 10) + 1];
    check(vec![
        rule("4.1", "unknown type", Ignored, frame(0xbe, 0xff, 0, b"unknown")),
        rule("4.1", "unknown type, on a stream", Ignored, opened(&frame(0xbe, 0, 1, b"unknown"))),
        rule("4.1", "unknown flags", Ignored, frame(PING, 0xfe, 0, b"12345678")),
        rule("4.1", "reserved bit of the stream", Ignored, reserved),
        rule("4.2", "DATA of 16 KiB", Ignored, opened(&frame(DATA, 0, 1, &large[1..]))),
        rule("4.2", "DATA too large", Connection, opened(&frame(DATA, 0, 1, &large))),
        rule("4.2", "HEADERS too large", Connection, begin(1, &large)),
        rule("4.2", "SETTINGS too large", Connection, frame(SETTINGS, 0, 0, &large)),
        rule("4.2", "unknown type, too large", Connection, frame(0xbe, 0, 0, &large)),
        rule("4.3", "PRIORITY in a header block", Connection, interrupted(&priority(1, 0))),
        rule("4.3", "DATA in a header block", Connection, interrupted(&frame(DATA, 0, 1, b"1"))),
        rule("4.3", "PING in a header block", Connection, interrupted(&ping([0; 8]))),
        rule("4.3", "other HEADERS in a block", Connection, interrupted(&begin(3, &status()))),
        rule("5.1", "idle: DATA", Connection, frame(DATA, 0, 1, b"1")),
        rule("5.1", "idle: RST_STREAM", Connection, reset(1, CANCEL)),
        rule("5.1", "idle: WINDOW_UPDATE", Connection, window_update(1, 100)),
        rule("5.1", "idle: CONTINUATION", Connection, frame(CONTINUATION, 4, 1, &status())),
        rule("5.1", "half closed: DATA", Stream(STREAM_CLOSED), ended(&frame(DATA, 0, 1, b"1"))),
        rule("5.1", "half closed: HEADERS", Stream(STREAM_CLOSED), ended(&trailers)),
        rule("5.1", "half closed: CONTINUATION", Connection, ended(&continued)),
        rule("5.1", "half closed: WINDOW_UPDATE", Ignored, ended(&window_update(1, 1))),
        rule("5.1", "half closed: PRIORITY", Ignored, ended(&priority(1, 0))),
        rule("5.1", "reset: DATA", Stream(STREAM_CLOSED), was_reset(&frame(DATA, 0, 1, b"1"))),
        rule("5.1", "reset: HEADERS", Stream(STREAM_CLOSED), was_reset(&trailers)),
        rule("5.1", "reset: CONTINUATION", Connection, was_reset(&continued)),
        rule("5.1", "reset: RST_STREAM", Ignored, was_reset(&reset(1, CANCEL))),
        rule("5.1", "reset: WINDOW_UPDATE", Ignored, was_reset(&window_update(1, 1))),
        rule("5.1", "reset: PRIORITY", Ignored, was_reset(&priority(1, 0))),
        rule("5.1.1", "even stream", Connection, unary(2, &status(), EMPTY_MESSAGE)),
        rule(
            "5.1.1",
            "lower stream",
            Connection,
            [begin(5, &status()), begin(3, &status())].concat(),
        ),
        rule("5.5", "unknown type in a block", Connection, interrupted(&frame(0xbe, 0, 1, b"1"))),
    ])
    .await;
}

#[tokio::test]
async fn types_of_frames() {
    let continued = frame(CONTINUATION, END_HEADERS, 1, &[]);
    check(vec![
        rule("6.1", "DATA on stream 0", Connection, frame(DATA, 0, 0, b"1")),
        rule("6.1", "padding as long as DATA", Connection, opened(&frame(DATA, PADDED, 1, &[1]))),
        rule("6.1", "padded DATA", Ignored, opened(&frame(DATA, PADDED, 1, &[2, 0, 0, 0]))),
        rule("6.2", "HEADERS on stream 0", Connection, begin(0, &status())),
        rule("6.2", "padding too long", Connection, frame(HEADERS, 4 | PADDED, 1, &[9, 0])),
        rule(
            "6.2",
            "HEADERS with padding and priority",
            Ignored,
            frame(
                HEADERS,
                END_HEADERS | PADDED | WITH_PRIORITY,
                1,
                &[&[1, 0, 0, 0, 0, 16], &status()[..], &[0]].concat(),
            ),
        ),
        rule("6.3", "PRIORITY", Ignored, priority(1, 0)),
        rule("6.3", "PRIORITY on stream 0", Connection, priority(0, 1)),
        rule(
            "6.3",
            "PRIORITY too short",
            Stream(FRAME_SIZE_ERROR),
            opened(&frame(PRIORITY, 0, 1, &[0; 4])),
        ),
        rule("6.4", "RST_STREAM on stream 0", Connection, reset(0, CANCEL)),
        rule("6.4", "RST_STREAM too short", Connection, opened(&frame(RST_STREAM, 0, 1, &[0; 3]))),
        rule("6.4", "RST_STREAM with an unknown code", Ignored, opened(&reset(1, 0xff))),
        rule("6.5", "ACK with a payload", Connection, frame(SETTINGS, ACK, 0, &[0; 6])),
        rule("6.5", "SETTINGS on a stream", Connection, frame(SETTINGS, 0, 1, &[])),
        rule("6.5", "SETTINGS of 3 bytes", Connection, frame(SETTINGS, 0, 0, &[0; 3])),
        rule("6.5.2", "unknown setting", Ignored, settings(&[(0xff, 1)])),
        rule("6.5.2", "ENABLE_PUSH of 2", Connection, settings(&[(ENABLE_PUSH, 2)])),
        rule("6.5.2", "large window", Connection, settings(&[(INITIAL_WINDOW_SIZE, 1 << 31)])),
        rule("6.5.2", "small frames", Connection, settings(&[(MAX_FRAME_SIZE, 16_383)])),
        rule("6.5.2", "large frames", Connection, settings(&[(MAX_FRAME_SIZE, 1 << 24)])),
        rule("6.6", "PUSH_PROMISE", Connection, frame(PUSH_PROMISE, 4, 1, &[0, 0, 0, 2])),
        rule("6.7", "unexpected ACK of a ping", Ignored, frame(PING, ACK, 0, &[1; 8])),
        rule("6.7", "PING on a stream", Connection, frame(PING, 0, 1, &[0; 8])),
        rule("6.7", "PING of 6 bytes", Connection, frame(PING, 0, 0, &[0; 6])),
        rule("6.8", "GOAWAY on a stream", Connection, frame(GOAWAY, 0, 1, &[0; 8])),
        rule("6.9", "increment 0", Connection, window_update(0, 0)),
        rule("6.9", "increment 0 on a stream", Stream(1), opened(&window_update(1, 0))),
        rule("6.9", "WINDOW_UPDATE of 3 bytes", Connection, frame(WINDOW_UPDATE, 0, 0, &[0; 3])),
        rule("6.9.1", "window above 2^31-1", Connection, window_update(0, (1 << 31) - 1)),
        rule(
            "6.9.1",
            "window of a stream above 2^31-1",
            Stream(FLOW_CONTROL_ERROR),
            opened(&window_update(1, (1 << 31) - 1)),
        ),
        rule("6.10", "CONTINUATION", Ignored, interrupted(&[])),
        rule("6.10", "CONTINUATION on stream 0", Connection, frame(CONTINUATION, 4, 0, &[])),
        rule("6.10", "CONTINUATION after END_HEADERS", Connection, opened(&continued)),
        rule(
            "6.10",
            "CONTINUATION of another stream",
            Connection,
            interrupted(&frame(CONTINUATION, END_HEADERS, 3, &[])),
        ),
    ])
    .await;
}

#[tokio::test]
async fn header_blocks() {
    let malformed = Stream(PROTOCOL_ERROR);
    let trailers = |flags, fields: [(&str, &str); 1]| {
        [open(), frame(HEADERS, END_HEADERS | flags, 1, &block(fields))].concat()
    };
    let with_length = |length| {
        let block = [status(), literal(0, "content-length", length)].concat();
        unary(1, &block, EMPTY_MESSAGE)
    };
    let pseudo_last = {
        let mut fields = fields(GET_STATUS);
        fields.rotate_left(1);
        unary(1, &block(fields), EMPTY_MESSAGE)
    };
    let no_path = {
        let mut fields = fields(GET_STATUS);
        fields[2].1 = "";
        unary(1, &block(fields), EMPTY_MESSAGE)
    };
    let resized = |size| unary(1, &[integer(0x20, 5, size), status()].concat(), EMPTY_MESSAGE);
    check(vec![
        rule("8.1", "second HEADERS without the end", malformed, trailers(0, [("a", "b")])),
        rule("8.1", "trailers", Ignored, trailers(END_STREAM, [("a", "b")])),
        // Malformed by the RFC. h2 accepts it, and nothing reads the trailers of a request.
        rule("8.1", "pseudo-header in trailers", Ignored, trailers(1, [(":method", "POST")])),
        rule("8.1.1", "content-length too long", malformed, with_length("6")),
        rule("8.1.1", "content-length too short", malformed, with_length("4")),
        rule("8.1.1", "content-length of words", malformed, with_length("five")),
        rule("8.1.1", "correct content-length", Ignored, with_length("5")),
        rule("8.2.1", "upper-case name", malformed, with_field("Name", "value")),
        rule("8.2.1", "space in a name", malformed, with_field("a name", "value")),
        rule("8.2.1", "empty name", malformed, with_field("", "value")),
        rule("8.2.1", "line break in a value", malformed, with_field("name", "a\r\nb: c")),
        rule("8.2.1", "zero in a value", malformed, with_field("name", "a\0b")),
        rule("8.2.2", "connection", malformed, with_field("connection", "keep-alive")),
        rule("8.2.2", "transfer-encoding", malformed, with_field("transfer-encoding", "chunked")),
        rule("8.2.2", "te", malformed, with_field("te", "gzip")),
        rule("8.3", "unknown pseudo-header", malformed, with_field(":unknown", "1")),
        rule("8.3", "pseudo-header of a response", malformed, with_field(":status", "200")),
        rule("8.3", "pseudo-header after others", malformed, pseudo_last),
        rule("8.3.1", "no :method", malformed, without(":method")),
        rule("8.3.1", "no :scheme", malformed, without(":scheme")),
        rule("8.3.1", "no :path", malformed, without(":path")),
        rule("8.3.1", "empty :path", malformed, no_path),
        rule("8.3.1", "second :method", malformed, with_field(":method", "POST")),
        rule("8.3.1", "second :path", malformed, with_field(":path", "/")),
        rule("HPACK 2.3.3", "unknown index", Connection, with_block(&[0xff, 0x7f])),
        rule("HPACK 4.2", "new size after fields", Connection, with_block(&[0x20])),
        rule("HPACK 5.1", "endless integer", Connection, with_block(&[0xff; 12])),
        rule("HPACK 5.2", "string past the end", Connection, with_block(&[0, 10, b'a'])),
        rule("HPACK 5.2", "padding of 8 bits", Connection, with_block(&[0, 0x82, 0x1f, 0xff, 0])),
        rule("HPACK 5.2", "padding of zeros", Connection, with_block(&[0, 0x81, 0x18, 0])),
        rule("HPACK 6.1", "index 0", Connection, with_block(&[0x80])),
        rule("HPACK 6.3", "size of 0", Ignored, resized(0)),
        rule("HPACK 6.3", "size above the setting", Connection, resized(4_097)),
    ])
    .await;
}

/// §3.4: without the preface nothing is answered, and the connection ends.
#[tokio::test]
async fn prefaces() {
    let upstream = Upstream::manual().await;
    let gateway = Process::serve(&upstream.quiet(), upstream.dir.path());
    let health = unary(1, &call(HEALTH, ""), EMPTY_MESSAGE);
    let wrong = [
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nhost: gateway\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
    ];
    for first in wrong {
        let tcp = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
        let mut peer = Peer::over(tcp);
        let _ = peer.send(&[&first[..], &health].concat()).await;
        let frames = peer.rest().await;
        let answered = frames.iter().any(|frame| frame.kind == HEADERS);
        assert!(!answered, "{:?}", String::from_utf8_lossy(&first));
    }
}

/// §6.9: a server sends as many bytes as the windows allow, also after they have become negative.
#[tokio::test]
async fn windows() {
    let upstream = Upstream::manual().await;
    let gateway = Process::serve(&upstream.quiet(), upstream.dir.path());
    let health = unary(1, &call(HEALTH, ""), EMPTY_MESSAGE);

    let mut peer = Peer::connect_with(gateway.address, &[(INITIAL_WINDOW_SIZE, 1)]).await;
    peer.send(&health).await.unwrap();
    let mut message = peer.next_of(DATA).await.payload;
    assert_eq!(message.len(), 1);
    // One byte was sent: the window is now -1, and opens with the second of these updates.
    let smaller = [settings(&[(INITIAL_WINDOW_SIZE, 0)]), window_update(1, 1)].concat();
    peer.send(&smaller).await.unwrap();
    peer.ping().await;
    for _ in 0..2 {
        peer.send(&window_update(1, 1)).await.unwrap();
        let data = peer.next_of(DATA).await;
        assert_eq!(data.payload.len(), 1);
        message.extend(data.payload);
    }
    // Several values of one setting count in their order.
    let larger = settings(&[(INITIAL_WINDOW_SIZE, 0), (INITIAL_WINDOW_SIZE, 100)]);
    peer.send(&larger).await.unwrap();
    message.extend(peer.next_of(DATA).await.payload);
    assert_eq!(message, [0, 0, 0, 0, 2, 8, 1], "the health is SERVING");
    assert_eq!(peer.next_of(HEADERS).await.flags & END_STREAM, END_STREAM);
}

/// §5.1.2: a stream above the limit is refused, and may be repeated.
#[tokio::test]
async fn too_many_streams_are_refused() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    config.grpc.max_concurrent_streams = 10;
    let gateway = Process::serve(&config, upstream.dir.path());
    let mut peer = Peer::connect(gateway.address).await;
    let first = peer.next_of(SETTINGS).await.payload;
    let limit =
        first.chunks(6).find(|setting| setting[..2] == MAX_CONCURRENT_STREAMS.to_be_bytes());
    assert_eq!(limit.unwrap()[2..], 10_u32.to_be_bytes());
    // A peer that has acknowledged the settings knows the limit.
    let opened = (0..11).flat_map(|n| begin(2 * n + 1, &status()));
    let sent: Vec<u8> = frame(SETTINGS, ACK, 0, &[]).into_iter().chain(opened).collect();
    peer.send(&sent).await.unwrap();
    let refused = peer.next_of(RST_STREAM).await;
    assert_eq!((refused.stream, refused.code()), (21, REFUSED_STREAM));
    peer.send(&reset(1, CANCEL)).await.unwrap();
    peer.send(&unary(23, &call(HEALTH, ""), EMPTY_MESSAGE)).await.unwrap();
    assert_eq!(peer.next_of(HEADERS).await.stream, 23);
}
