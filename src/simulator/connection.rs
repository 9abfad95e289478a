//! Connections that can be cut: no answer, no goodbye.
//!
//! Once its [`Cut`] is made, a connection's reads and writes fail, so that the server drops it
//! without writing another byte, whatever a handler still returns. Its peer reads an end (FIN), or
//! with [`Cut::reset`] an error (RST).

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use axum::{extract::connect_info::Connected, serve::IncomingStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The scissors for one connection.
#[derive(Debug, Clone)]
pub(super) struct Cut {
    made: CancellationToken,
    reset: Arc<AtomicBool>,
}

impl Cut {
    pub(super) fn make(&self) {
        self.made.cancel();
    }

    pub(super) fn reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
        self.make();
    }
}

impl Connected<IncomingStream<'_, Listener>> for Cut {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        stream.io().cut.clone()
    }
}

pub(super) struct Listener {
    tcp: TcpListener,
    stop: CancellationToken,
}

impl Listener {
    pub(super) fn new(tcp: TcpListener, stop: CancellationToken) -> Self {
        Self { tcp, stop }
    }
}

impl axum::serve::Listener for Listener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let (tcp, peer) = axum::serve::Listener::accept(&mut self.tcp).await;
        // Small answers would wait for the peer's delayed acknowledgement; without the option they
        // are only slower.
        let _ = tcp.set_nodelay(true);
        let cut = Cut { made: self.stop.child_token(), reset: Arc::default() };
        (Connection { tcp, when_cut: Box::pin(cut.made.clone().cancelled_owned()), cut }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

pub(super) struct Connection {
    tcp: TcpStream,
    cut: Cut,
    when_cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection {
    /// Fails once the cut is made.
    fn intact(&self) -> io::Result<()> {
        if self.cut.made.is_cancelled() {
            Err(io::ErrorKind::ConnectionAborted.into())
        } else {
            Ok(())
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Polled for the wake-up: an idle connection notices the cut as well.
        if self.when_cut.as_mut().poll(context).is_ready() {
            return Poll::Ready(self.intact());
        }
        Pin::new(&mut self.tcp).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.intact()?;
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.intact()?;
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.intact()?;
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.cut.reset.load(Ordering::Relaxed) {
            // What closes without lingering is reset. Where that fails, it is only cut.
            let _ = self.tcp.set_zero_linger();
        }
    }
}
