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
async fn idle_connections_leave_room_for_orders_and_are_logged_once_if_they_do_not() {
    /// Long enough for a flood of log lines, once ten a second.
    const WATCHED: Duration = Duration::from_secs(2);
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
    // The connections of callers are not bounded yet.
    let callers = silent(process.address, 150).await;
    let more = silent(callbacks, 50).await;
    let began = Instant::now();
    while began.elapsed() < WATCHED {
        let _ = place(&mut client, "k", [0]).await;
    }
    drop((held, callers, more));
    process.terminate();
    let (_, lines) = process.wait().await;
    let failed = lines.iter().filter(|line| line.contains("cannot accept connections")).count();
    assert_eq!(failed, 1, "{lines:?}");
}
