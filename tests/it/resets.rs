//! Calls that their caller resets before they are complete, frame by frame.

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
/// END_STREAM of data, ACK of a ping.
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

/// Waits until the server has read everything that was sent before.
async fn ping(connection: &mut TcpStream) {
    connection.write_all(&frame(PING, 0, 0, b"12345678")).await.unwrap();
    loop {
        let mut head = [0; 9];
        connection.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        connection.read_exact(&mut payload).await.unwrap();
        if (head[3], head[4]) == (PING, FLAG) {
            return;
        }
    }
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
    let mut connection = TcpStream::connect(process.address).await.unwrap();
    connection.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    let mut streams = (1..).step_by(2);
    let mut begin = |flag| {
        let stream = streams.next().unwrap();
        let head = frame(HEADERS, END_HEADERS, stream, &headers());
        (stream, [head, frame(DATA, flag, stream, BEGIN)].concat())
    };
    for _ in 0..RESETS {
        let (stream, frames) = begin(0);
        connection.write_all(&frames).await.unwrap();
        within("a ping", ping(&mut connection)).await;
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
