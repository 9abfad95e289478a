//! Connections that are opened and not used.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
};

use futures_util::{StreamExt as _, stream};

use super::{DESCRIPTORS_AT_REST, Scene, lazily, usage};
use crate::{harness::*, http2::*};

/// The addresses of an attack. The neighbour has another one.
const ADDRESSES: u8 = 10;

/// The limit of connections.
const MOST: usize = 1_000;

/// Opens connections, of which each sends one of these beginnings.
async fn open(address: SocketAddr, number: usize, beginnings: &[&[u8]]) -> Vec<Peer> {
    let one = async |n: usize| {
        let last = 2 + u8::try_from(n % usize::from(ADDRESSES)).unwrap();
        let from = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
        let connected = within("a connection", connect_from(from, address)).await;
        let mut peer = Peer::over(connected.unwrap());
        // A full gateway may close it at once.
        let _ = peer.send(beginnings[n % beginnings.len()]).await;
        peer
    };
    stream::iter(0..number).map(one).buffer_unordered(200).collect().await
}

/// Neither of these is the beginning of HTTP/2, and the connections end although the peers do
/// nothing.
const UNFINISHED: [&[u8]; 3] = [b"", PREFACE.split_at(10).0, b"\x16\x03\x01\x02\x00\x01"];

/// Opens twice as many connections as the limit allows.
async fn silent_connections(scene: &Scene, most: usize) {
    let silent = open(scene.address(), 2 * most, &UNFINISHED).await;
    scene.neighbour.goes_on().await;
    eventually("silent connections end", async || {
        let now = usage(&scene.gateway).descriptors;
        now <= scene.idle.descriptors + DESCRIPTORS_AT_REST
    })
    .await;
    drop(silent);
    let settings = settings(&[]);
    let idle = open(scene.address(), 2 * most, &[&[PREFACE, &settings].concat(), PREFACE]).await;
    scene.neighbour.goes_on().await;
    let now = usage(&scene.gateway).descriptors;
    eprintln!("{now} descriptors of the gateway");
    assert!(now <= scene.idle.descriptors + most + DESCRIPTORS_AT_REST, "{now}");
    drop(idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_silent_connections_than_the_limit() {
    let scene =
        Scene::start_with(|config| config.grpc.max_connections = MOST, |same| same, lazily).await;
    silent_connections(&scene, MOST).await;
    scene.end("silent connections").await;
}

/// Orders and the store need descriptors, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_silent_connections_than_descriptors() {
    const DESCRIPTORS: usize = 256;
    let scene = Scene::start_with(
        |_| (),
        |command| {
            let mut limited = Command::new("sh");
            let script = format!("ulimit -n {DESCRIPTORS} && exec \"$@\"");
            limited.args(["-c", &script, "sh"]).arg(command.get_program()).args(command.get_args());
            limited
        },
        lazily,
    )
    .await;
    silent_connections(&scene, DESCRIPTORS).await;
    scene.end("few descriptors").await;
}
