//! The line between a gateway and its ThingSpace, which can be cut in several ways.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::harness::within;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Connected,
    /// The port refuses connections.
    Refusing,
    /// A connection is never accepted.
    Hanging,
    /// A connection is closed at once.
    Resetting,
}

/// A port that leads to ThingSpace, or nowhere.
pub struct Line {
    /// Keeps the port from others. It does not listen, so no connection is accepted.
    socket: TcpSocket,
    upstream: SocketAddr,
    /// Connections since the last change, but for those that were refused.
    taken: Arc<AtomicU64>,
    serving: TaskTracker,
    running: Option<DropGuard>,
}

impl Line {
    pub async fn to(upstream: SocketAddr) -> Self {
        let socket = reusable();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let (taken, serving) = (Arc::default(), TaskTracker::new());
        let mut line = Self { socket, upstream, taken, serving, running: None };
        line.switch(State::Connected).await;
        line
    }

    pub fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Cuts every connection there is.
    pub async fn switch(&mut self, state: State) {
        self.running = None;
        self.serving.close();
        within("the line is cut", self.serving.wait()).await;
        self.serving = TaskTracker::new();
        self.taken = Arc::default();
        if state == State::Refusing {
            return;
        }
        let socket = reusable();
        socket.bind(self.address()).unwrap();
        let listener = socket.listen(1_024).unwrap();
        let stop = CancellationToken::new();
        let serve = serve(
            listener,
            state,
            self.upstream,
            Arc::clone(&self.taken),
            self.serving.clone(),
            stop.clone(),
        );
        let stopped = stop.clone();
        self.serving.spawn(async move {
            stopped.run_until_cancelled(serve).await;
        });
        self.running = Some(stop.drop_guard());
    }
}

async fn serve(
    listener: TcpListener,
    state: State,
    upstream: SocketAddr,
    taken: Arc<AtomicU64>,
    serving: TaskTracker,
    stop: CancellationToken,
) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        taken.fetch_add(1, Ordering::Relaxed);
        stream.set_zero_linger().unwrap();
        let stop = stop.clone();
        match state {
            State::Connected => serving.spawn(async move {
                let mut upstream = TcpStream::connect(upstream).await.unwrap();
                let _ =
                    stop.run_until_cancelled(copy_bidirectional(&mut stream, &mut upstream)).await;
            }),
            State::Hanging => serving.spawn(async move {
                stop.cancelled().await;
                drop(stream);
            }),
            State::Refusing | State::Resetting => serving.spawn(async move { drop(stream) }),
        };
    }
}

fn reusable() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket
}

/// The most attempts there can be in a time in which none succeeds: one that was under way, and
/// then one after each pause.
pub fn most_attempts(time: Duration, pause: Duration) -> u64 {
    2 + u64::try_from(time.as_millis() / pause.as_millis()).unwrap()
}
