//! Connections that use up the file descriptors of the process.

use std::{
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{Process, Upstream, binary, place, within, write_config};

/// Opens idle connections, each from an address of its own.
async fn silent(to: SocketAddr, count: u8) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for n in 0..count {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 1, 1 + n], 0))).unwrap();
        held.push(within("a connection", socket.connect(to)).await.unwrap());
    }
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_to_all_listeners_leave_room_for_orders() {
    /// Long enough for several attempts to accept, each after a pause.
    const WATCHED: Duration = Duration::from_secs(1);
    let upstream = Upstream::manual().await;
    let config = write_config(&upstream.with_callbacks(), upstream.dir.path());
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -n 100; exec "$0" serve --config "$1""#]);
    command.arg(binary()).arg(config);
    let process = Process::spawn(&mut command);
    let mut client = process.client().await;
    let callbacks = process.callbacks.unwrap();
    let held = silent(callbacks, 150).await;
    place(&mut client, "k", [0]).await.unwrap();
    let callers = silent(process.address, 150).await;
    let more = silent(callbacks, 50).await;
    let began = Instant::now();
    while began.elapsed() < WATCHED {
        place(&mut client, "k", [0]).await.unwrap();
    }
    place(&mut process.client().await, "other", [1]).await.unwrap();
    drop((held, callers, more));
    process.terminate();
    let (_, lines) = process.wait().await;
    assert!(!lines.iter().any(|line| line.contains("cannot accept connections")), "{lines:?}");
}
