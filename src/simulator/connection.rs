//! Connections that can be cut without an answer.
//!
//! After [`ConnectionCut::cut`] the reads and writes of a connection fail. So the server drops it
//! without another byte. The peer sees that the connection was closed (FIN), or after
//! [`ConnectionCut::reset`] that it was reset (RST).

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

/// Cuts one connection.
#[derive(Debug, Clone)]
pub(super) struct ConnectionCut {
    done: CancellationToken,
    reset: Arc<AtomicBool>,
}

impl ConnectionCut {
    pub(super) fn cut(&self) {
        self.done.cancel();
    }

    pub(super) fn reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
        self.cut();
    }
}

impl Connected<IncomingStream<'_, Listener>> for ConnectionCut {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        stream.io().cut.clone()
    }
}

pub(super) struct Listener {
    pub(super) tcp: TcpListener,
    pub(super) stop: CancellationToken,
}

impl axum::serve::Listener for Listener {
    type Io = CuttableConnection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (CuttableConnection, SocketAddr) {
        let (tcp, peer) = axum::serve::Listener::accept(&mut self.tcp).await;
        // Without the option answers are only slower.
        let _ = tcp.set_nodelay(true);
        let cut = ConnectionCut { done: self.stop.child_token(), reset: Arc::default() };
        let when_cut = Box::pin(cut.done.clone().cancelled_owned());
        (CuttableConnection { tcp, cut, when_cut }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

pub(super) struct CuttableConnection {
    tcp: TcpStream,
    cut: ConnectionCut,
    when_cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl CuttableConnection {
    /// Fails after the cut.
    fn check_intact(&self) -> io::Result<()> {
        if self.cut.done.is_cancelled() {
            Err(io::ErrorKind::ConnectionAborted.into())
        } else {
            Ok(())
        }
    }
}

impl AsyncRead for CuttableConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Registers the waker, so that the cut also wakes an idle connection.
        if self.when_cut.as_mut().poll(context).is_ready() {
            return Poll::Ready(self.check_intact());
        }
        Pin::new(&mut self.tcp).poll_read(context, buffer)
    }
}

impl AsyncWrite for CuttableConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_intact()?;
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_intact()?;
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_intact()?;
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

impl Drop for CuttableConnection {
    fn drop(&mut self) {
        if self.cut.reset.load(Ordering::Relaxed) {
            // Closing without lingering resets the connection. If this fails, it is only cut.
            let _ = self.tcp.set_zero_linger();
        }
    }
}
