//! Probes: whether the gateway is alive, and whether it can answer calls.

use std::{net::SocketAddr, process::Command};

use reqwest::Method;
use thingspace_gateway::{
    app::App,
    shutdown::Stop,
    simulator::{Endpoint, Fault, Gate, What, When},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    harness::*,
    process::{run, text},
};

/// More connections than the listener allows.
const CROWD: usize = 200;

async fn send(method: Method, address: SocketAddr, path: &str) -> reqwest::Response {
    // Probes open a connection for each request.
    let http = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    within("an answer", http.request(method, format!("http://{address}{path}")).send())
        .await
        .unwrap()
}

async fn probe(address: SocketAddr, path: &str) -> (u16, String) {
    let answer = send(Method::GET, address, path).await;
    (answer.status().as_u16(), answer.text().await.unwrap())
}

fn said(status: u16, text: &str) -> (u16, String) {
    (status, format!("{text}\n"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_ready_from_reading_the_store_to_the_drain() {
    let upstream = Upstream::manual().await;
    let app = App::bind(upstream.config()).await.unwrap();
    let (address, admin, requests) = (app.address, app.admin.address(), app.requests.clone());
    assert_eq!(probe(admin, "/livez").await, said(200, "alive"));
    let (status, why) = probe(admin, "/readyz").await;
    assert!(status == 503 && why.starts_with("starting"), "{status} {why}");

    let stop = Stop::default();
    let running = tokio::spawn(app.run(stop.clone()));
    within("the gateway is ready", requests.ready()).await;
    assert_eq!(probe(admin, "/readyz").await, said(200, "ready"));

    let gate = Gate::default();
    upstream.sim.inject(Fault::once(
        Endpoint::Download,
        When::BeforeEffect,
        What::Hold(gate.clone()),
    ));
    let mut client = connect(address).await;
    let order = tokio::spawn(async move { place(&mut client, "key", 0..1).await });
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.in_flight(Endpoint::Download) == 1).await;
    stop.soft.cancel();
    eventually("it is not ready while it drains", || async {
        probe(admin, "/readyz").await == said(503, "draining")
    })
    .await;
    assert_eq!(probe(admin, "/livez").await, said(200, "alive"));
    gate.open();
    order.await.unwrap().unwrap();
    within("the gateway drains", running).await.unwrap().unwrap();
    TcpStream::connect(admin).await.unwrap_err();
}

#[tokio::test]
async fn probes_do_not_depend_on_thingspace() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.config()).await;
    upstream.cut();
    place(&mut gateway.client().await, "key", 0..1).await.unwrap_err();
    assert_eq!(probe(gateway.admin, "/livez").await, said(200, "alive"));
    assert_eq!(probe(gateway.admin, "/readyz").await, said(200, "ready"));
    gateway.stop().await;
}

#[tokio::test]
async fn there_is_nothing_else() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.config()).await;
    let cases = [
        (Method::HEAD, "/readyz", 200),
        (Method::GET, "/readyz?verbose", 200),
        (Method::POST, "/readyz", 405),
        (Method::DELETE, "/livez", 405),
        (Method::GET, "/", 404),
        (Method::GET, "/readyz/", 404),
        (Method::POST, "/status", 405),
        (Method::GET, "/status/", 404),
        (Method::POST, "/thingspace.esim.v1.EsimService/DownloadProfile", 404),
    ];
    for (method, path, status) in cases {
        let answer = send(method.clone(), gateway.admin, path).await;
        assert_eq!(answer.status().as_u16(), status, "{method} {path}");
        assert_eq!(answer.headers().contains_key("allow"), status == 405, "{method} {path}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn held_connections_do_not_keep_probes_out() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.config()).await;
    let mut held = Vec::new();
    for n in 0..CROWD {
        let mut tcp = within("a connection", TcpStream::connect(gateway.admin)).await.unwrap();
        if n % 2 == 0 {
            // Fails on a connection that was already evicted.
            let _ = tcp.write_all(b"GET /livez HTTP/1.1\r\nHost:").await;
        }
        held.push(tcp);
    }
    assert_eq!(probe(gateway.admin, "/livez").await, said(200, "alive"));
    drop(held);
    gateway.stop().await;
}

/// The exit code and the output of `health`.
async fn health(address: &str) -> (Option<i32>, String) {
    let mut command = Command::new(binary());
    command.args(["health", "--address", address]);
    let output = run(command).await;
    (output.status.code(), format!("{}{}", text(&output.stdout), text(&output.stderr)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_health_reports_the_health() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.config()).await;
    let address = format!("localhost:{}", gateway.address.port());
    assert_eq!(health(&address).await, (Some(0), format!("{address} is ready\n")));
    // Another service listens here.
    let (code, why) = health(&gateway.admin.to_string()).await;
    assert!(code == Some(1) && why.starts_with("cannot ask"), "{code:?} {why}");
    gateway.stop().await;
    let (code, why) = health(&address).await;
    assert!(code == Some(1) && why.contains("connect"), "{code:?} {why}");
}
