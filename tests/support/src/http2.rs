//! A client of HTTP/2 that sends any bytes, also wrong ones, and shows each frame that it receives.
//!
//! Functions make frames and header blocks as bytes, so that a test can join, cut and damage them.
//! Numbers and rules are those of RFC 9113, header blocks those of RFC 7541.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::harness::within;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Types of frames.
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

// Flags. ACK is one of settings and pings.
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const WITH_PRIORITY: u8 = 0x20;

// Codes of GOAWAY and RST_STREAM.
pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

// Settings.
pub const ENABLE_PUSH: u16 = 2;
pub const MAX_CONCURRENT_STREAMS: u16 = 3;
pub const INITIAL_WINDOW_SIZE: u16 = 4;
pub const MAX_FRAME_SIZE: u16 = 5;

/// The first bytes of a gRPC message of 100 bytes.
pub const HALF_MESSAGE: &[u8] = &[0, 0, 0, 0, 100, 1];
/// A gRPC message of 0 bytes.
pub const EMPTY_MESSAGE: &[u8] = &[0; 5];

pub const HEALTH: &str = "/grpc.health.v1.Health/Check";
pub const GET_STATUS: &str = "/thingspace.esim.v1.EsimService/GetRequestStatus";

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let value = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &values.iter().flat_map(value).collect::<Vec<_>>())
}

pub fn ping(payload: [u8; 8]) -> Vec<u8> {
    frame(PING, 0, 0, &payload)
}

pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

pub fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

/// A header block of literal fields that enter no table.
pub fn block<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    fields.into_iter().flat_map(|(name, value)| literal(0, name, value)).collect()
}

/// A literal field. 0x40 as `first` adds it to the dynamic table, 0 does not.
pub fn literal(first: u8, name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [integer(0, 7, text.len()), text.as_bytes().to_vec()].concat();
    [vec![first], text(name), text(value)].concat()
}

/// An integer with a prefix of some bits, after the other bits of its first byte.
pub fn integer(first: u8, prefix: u32, value: usize) -> Vec<u8> {
    let most = (1 << prefix) - 1;
    if value < most {
        return vec![first | u8::try_from(value).unwrap()];
    }
    let (mut bytes, mut rest) = (vec![first | u8::try_from(most).unwrap()], value - most);
    while rest >= 0x80 {
        bytes.push(u8::try_from(rest % 0x80).unwrap() | 0x80);
        rest /= 0x80;
    }
    bytes.push(u8::try_from(rest).unwrap());
    bytes
}

/// The fields of a gRPC call.
pub fn fields(path: &str) -> [(&str, &str); 6] {
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "gateway"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
}

/// The header block of a gRPC call, with a bearer token unless that is empty.
pub fn call(path: &str, token: &str) -> Vec<u8> {
    let authorization = format!("Bearer {token}");
    let more = (!token.is_empty()).then_some(("authorization", authorization.as_str()));
    block(fields(path).into_iter().chain(more))
}

/// HEADERS that begin a call whose messages follow.
pub fn begin(stream: u32, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, block)
}

/// A whole call with one message.
pub fn unary(stream: u32, block: &[u8], message: &[u8]) -> Vec<u8> {
    [begin(stream, block), frame(DATA, END_STREAM, stream, message)].concat()
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The code of RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        let begin = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[begin..begin + 4].try_into().unwrap())
    }
}

/// What carries the bytes: TCP, or TLS over it.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// One side of a connection. It does nothing by itself: it acknowledges no settings and no pings,
/// and opens no window.
pub struct Peer(BufReader<Box<dyn Transport>>);

impl Peer {
    /// Connects, and sends the preface and empty settings.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::connect_with(address, &[]).await
    }

    /// Connects, and sends the preface and settings.
    pub async fn connect_with(address: SocketAddr, values: &[(u16, u32)]) -> Self {
        let mut peer =
            Self::over(within("a connection", TcpStream::connect(address)).await.unwrap());
        peer.send(&[PREFACE, &settings(values)].concat()).await.unwrap();
        peer
    }

    /// Uses a connection on which nothing was sent.
    pub fn over(transport: impl Transport + 'static) -> Self {
        Self(BufReader::new(Box::new(transport)))
    }

    /// Sends bytes. An error means that the other side has closed the connection.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }

    /// The next frame; `None` once the other side has closed the connection.
    pub async fn next(&mut self) -> Option<Frame> {
        within("a frame", async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            Some(Frame { kind: head[3], flags: head[4], stream, payload })
        })
        .await
    }

    /// Reads until a frame of this type.
    pub async fn next_of(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.expect("the connection goes on");
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// Waits until the other side has read everything that was sent before.
    pub async fn ping(&mut self) {
        self.send(&ping(*b"12345678")).await.unwrap();
        while self.next_of(PING).await.flags != ACK {}
    }

    /// Reads until the other side has closed the connection. Returns the rest.
    pub async fn rest(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }

    /// Sends bytes again and again, and reads at the same time, so that the other side is never
    /// blocked. Ends after a time, or when the other side closes the connection. Returns how often
    /// the bytes were sent.
    pub async fn flood(&mut self, time: Duration, mut bytes: impl FnMut() -> Vec<u8>) -> u64 {
        let (mut reader, mut writer) = tokio::io::split(&mut self.0);
        let mut sent = 0;
        let writing = async {
            while writer.write_all(&bytes()).await.is_ok() {
                sent += 1;
                tokio::task::yield_now().await;
            }
        };
        let reading = async {
            let mut unused = vec![0; 16 << 10];
            while reader.read(&mut unused).await.is_ok_and(|length| length > 0) {}
        };
        let ended = async {
            tokio::select! {
                () = writing => {}
                () = reading => {}
            }
        };
        let _ = timeout(time, ended).await;
        sent
    }
}

/// Connects from an address of this machine.
pub async fn connect_from(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    socket.connect(to).await
}
