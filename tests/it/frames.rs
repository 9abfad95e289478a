//! What callers see of HTTP/2, frame by frame: calls that are reset, and the drain.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::harness::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
/// END_STREAM of headers and data, ACK of a ping.
const FLAG: u8 = 1;
const END_HEADERS: u8 = 4;
const CANCEL: [u8; 4] = [0, 0, 0, 8];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Header fields as HPACK literals without an index.
fn headers() -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let field = |(name, value)| [vec![0], text(name), text(value)].concat();
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/thingspace.esim.v1.EsimService/GetRequestStatus"),
        (":authority", "gateway"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    fields.map(field).concat()
}

struct Frame {
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// Connects, and sends the preface and empty settings.
async fn connect_raw(process: &Process) -> TcpStream {
    let mut connection = TcpStream::connect(process.address).await.unwrap();
    connection.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    connection
}

/// Reads until a frame of this kind.
async fn next(connection: &mut TcpStream, kind: u8) -> Frame {
    within("a frame", async {
        loop {
            let mut head = [0; 9];
            connection.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            connection.read_exact(&mut payload).await.unwrap();
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            if head[3] == kind {
                return Frame { flags: head[4], stream, payload };
            }
        }
    })
    .await
}

/// Waits until the server has read everything that was sent before.
async fn ping(connection: &mut TcpStream) {
    connection.write_all(&frame(PING, 0, 0, b"12345678")).await.unwrap();
    while next(connection, PING).await.flags != FLAG {}
}

/// A call that its caller resets is no failure of the gateway. A request that ends early is one.
#[tokio::test]
async fn a_call_that_is_reset_is_no_failure() {
    const RESETS: usize = 20;
    /// The prefix of a message that claims to have 100 bytes.
    const BEGIN: &[u8] = &[0, 0, 0, 0, 100, 1];
    let upstream = Upstream::manual().await;
    let mut command = serve_command(&upstream.quiet(), upstream.dir.path());
    command.env("RUST_LOG", "info,thingspace_gateway::telemetry=debug");
    let mut process = Process::spawn(&mut command);
    let mut connection = connect_raw(&process).await;
    let mut streams = (1..).step_by(2);
    let mut begin = |flag| {
        let stream = streams.next().unwrap();
        let head = frame(HEADERS, END_HEADERS, stream, &headers());
        (stream, [head, frame(DATA, flag, stream, BEGIN)].concat())
    };
    for _ in 0..RESETS {
        let (stream, frames) = begin(0);
        connection.write_all(&frames).await.unwrap();
        ping(&mut connection).await;
        connection.write_all(&frame(RST_STREAM, 0, stream, &CANCEL)).await.unwrap();
    }
    connection.write_all(&begin(FLAG).1).await.unwrap();
    process.wait_for_line("MALFORMED_CALL");
    process.terminate();
    // Open calls end with their connection.
    drop(connection);
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
    const NO_ERROR: [u8; 4] = [0; 4];
    const EMPTY_MESSAGE: [u8; 5] = [0; 5];
    let upstream = Upstream::manual().await;
    let mut process = Process::serve(&upstream.quiet(), upstream.dir.path());
    // Keeps the drain from ending.
    let held = HeldOrder::begin(&upstream, &process.client().await, "k", 0..1).await;
    let mut connection = connect_raw(&process).await;
    ping(&mut connection).await;
    process.terminate();

    let announced = next(&mut connection, GOAWAY).await.payload;
    assert_eq!(announced, [0x7fff_ffff_u32.to_be_bytes(), NO_ERROR].concat());
    let probe = next(&mut connection, PING).await;
    let head = frame(HEADERS, END_HEADERS, 1, &headers());
    let call = [head, frame(DATA, FLAG, 1, &EMPTY_MESSAGE)].concat();
    connection.write_all(&call).await.unwrap();
    let answer = next(&mut connection, HEADERS).await;
    assert_eq!((answer.stream, answer.flags), (1, END_HEADERS | FLAG));
    process.wait_for_line("DRAINING");

    connection.write_all(&frame(PING, FLAG, 0, &probe.payload)).await.unwrap();
    let refused = next(&mut connection, GOAWAY).await.payload;
    assert_eq!(refused, [1_u32.to_be_bytes(), NO_ERROR].concat());
    let mut rest = Vec::new();
    within("the end of the connection", connection.read_to_end(&mut rest)).await.unwrap();
    assert!(!held.is_answered() && rest.is_empty(), "{rest:?}");
    held.answer().await.unwrap();
    assert!(within("the end", process.wait()).await.0.success());
}
