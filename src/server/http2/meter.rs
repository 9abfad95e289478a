//! The byte stream of a connection: limits the rate of frames that cost the server work but carry
//! no call, and closes gently.
//!
//! A peer may send SETTINGS, PING, RST_STREAM and similar frames without end, or begin calls only
//! to reset them. A connection with too many of them is read more slowly; it is not closed. So a
//! peer pays for what it sends in a flood, and not for what gathered while the gateway stood still.
//!
//! A write waits until the tasks that are ready have run. So the messages of many watches, which
//! become ready at the same moment, are sent in one write.
//!
//! After the last byte was sent, the stream reads until the peer closes, for at most
//! [`LINGER_TIMEOUT`]. The system would otherwise answer bytes that were not read with a reset, and
//! the peer might lose the last frames.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// The length of the connection preface and of a frame's header, in bytes (RFC 9113 §3.4, §4.1).
const PREFACE: usize = 24;
const HEADER: usize = 9;

/// The types of frames (RFC 9113 §6).
const DATA: u8 = 0;
const RST_STREAM: u8 = 3;
const WINDOW_UPDATE: u8 = 8;

/// DATA frames with at least this many bytes cost nothing more: flow control limits them.
const SMALL_DATA: usize = 256;

/// The cost of a frame. The beginning of a call counts, because the server may have to reset it. A
/// reset by the peer has the cost of the call that it ends.
const CONTROL_COST: u32 = 4;
const RESET_COST: u32 = 20;
const SMALL_COST: u32 = 1;

/// The cost that a connection may save up, and what it gets back. This allows 20,000 PINGs, 16,000
/// calls or 3,300 calls that are reset per second, and 25,000, 20,000 or 4,100 at once.
const MAX_SAVED: u32 = 100_000;
const PER_MILLISECOND: u32 = 80;

/// Reading yields to other connections after this number of bytes, which may begin some hundreds of
/// calls.
const YIELD_BYTES: usize = 8 << 10;

/// How long a closed connection waits for its peer to close.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct Meter<S> {
    stream: S,
    frames: Frames,
    saved: u32,
    refilled: Instant,
    /// The bytes that were read since the last yield.
    unyielded: usize,
    /// Whether the next write has waited for the tasks that are ready.
    waited: bool,
    /// Reading pauses until then.
    pause: Option<Pin<Box<Sleep>>>,
    /// `Some` after the last byte was sent.
    linger: Option<Pin<Box<Sleep>>>,
}

impl<S> Meter<S> {
    pub(super) fn new(stream: S) -> Self {
        let (refilled, saved) = (Instant::now(), MAX_SAVED);
        let frames = Frames::default();
        Self {
            stream,
            frames,
            saved,
            refilled,
            unyielded: 0,
            waited: false,
            pause: None,
            linger: None,
        }
    }

    /// Takes the cost of frames that were read. Reading pauses if too little is saved.
    fn spend(&mut self, cost: u32) {
        if let Some(left) = self.saved.checked_sub(cost) {
            self.saved = left;
            return;
        }
        let now = Instant::now();
        let passed = now.saturating_duration_since(self.refilled).as_millis();
        self.refilled = now;
        let refill = u32::try_from(passed).unwrap_or(u32::MAX).saturating_mul(PER_MILLISECOND);
        let saved = self.saved.saturating_add(refill).min(MAX_SAVED);
        self.saved = saved.saturating_sub(cost);
        if let Some(missing) = cost.checked_sub(saved) {
            let wait = missing.div_ceil(PER_MILLISECOND);
            self.pause = Some(Box::pin(sleep(Duration::from_millis(wait.into()))));
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Meter<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(context));
            this.pause = None;
        }
        if this.unyielded >= YIELD_BYTES {
            this.unyielded = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        let bytes = &buffer.filled()[before..];
        this.unyielded += bytes.len();
        let cost = this.frames.cost(bytes);
        this.spend(cost);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Meter<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !std::mem::replace(&mut self.waited, true) {
            // A task that wakes itself runs after all tasks that are ready.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.waited = false;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
        }
        let linger = this.linger.get_or_insert_with(|| Box::pin(sleep(LINGER_TIMEOUT)));
        let mut discarded = [0; 1024];
        while linger.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut discarded);
            let read = ready!(Pin::new(&mut this.stream).poll_read(context, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Without vectored writes, h2 copies frames of up to 1,024 bytes into one buffer. A write of
    /// its own for each frame would cost more.
    fn is_write_vectored(&self) -> bool {
        false
    }
}

/// Finds the frames in the bytes of a connection.
struct Frames {
    /// Bytes to skip until the next frame's header.
    skip: usize,
    header: [u8; HEADER],
    /// The bytes of the header that have arrived.
    arrived: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Self { skip: PREFACE, header: [0; HEADER], arrived: 0 }
    }
}

impl Frames {
    /// Returns the cost of the frames whose headers end in these bytes.
    fn cost(&mut self, mut bytes: &[u8]) -> u32 {
        let mut cost = 0;
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEADER - self.arrived).min(bytes.len());
            if self.skip > 0 || taken == 0 {
                continue;
            }
            self.header[self.arrived..self.arrived + taken].copy_from_slice(&bytes[..taken]);
            self.arrived += taken;
            bytes = &bytes[taken..];
            if self.arrived == HEADER {
                let [a, b, c, kind, ..] = self.header;
                self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
                self.arrived = 0;
                cost += frame_cost(kind, self.skip);
            }
        }
        cost
    }
}

fn frame_cost(kind: u8, length: usize) -> u32 {
    match kind {
        DATA if length >= SMALL_DATA => 0,
        DATA | WINDOW_UPDATE => SMALL_COST,
        RST_STREAM => RESET_COST,
        _ => CONTROL_COST,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const HEADERS: u8 = 1;
    const PING: u8 = 6;

    fn frame(kind: u8, length: u8) -> Vec<u8> {
        [&[0, 0, length, kind, 0, 0, 0, 0, 1][..], &vec![PING; length.into()]].concat()
    }

    #[test]
    fn frames_are_found_in_any_pieces() {
        let mut bytes = vec![RST_STREAM; PREFACE];
        for (kind, length) in [(HEADERS, 30), (PING, 8), (DATA, 255), (RST_STREAM, 4), (4, 0)] {
            bytes.extend(frame(kind, length));
        }
        let expected = SMALL_COST + RESET_COST + 3 * CONTROL_COST;
        for size in 1..bytes.len() {
            let mut frames = Frames::default();
            let cost: u32 = bytes.chunks(size).map(|piece| frames.cost(piece)).sum();
            assert_eq!(cost, expected, "pieces of {size}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_read_at_its_rate_and_a_burst_at_once() {
        let (mut peer, stream) = duplex(1 << 20);
        let mut meter = Meter::new(stream);
        let pings = |number| frame(PING, 8).repeat(number);
        let burst = usize::try_from(MAX_SAVED / CONTROL_COST).unwrap();
        // The last frame waits for the pause after the others.
        let sent = [vec![0; PREFACE], pings(burst + 40_000), pings(1)].concat();
        let sent_bytes = sent.len();
        let mut received = vec![0; sent_bytes];
        let start = Instant::now();
        tokio::spawn(async move {
            peer.write_all(&sent).await.unwrap();
            // The connection stays open.
            std::future::pending::<()>().await;
        });
        let at_once = PREFACE + 17 * burst;
        meter.read_exact(&mut received[..at_once]).await.unwrap();
        assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
        let last = sent_bytes - pings(1).len();
        meter.read_exact(&mut received[at_once..last]).await.unwrap();
        meter.read_exact(&mut received[last..]).await.unwrap();
        let took = start.elapsed();
        assert!(took > Duration::from_millis(1_500) && took < Duration::from_secs(3), "{took:?}");
    }
}
