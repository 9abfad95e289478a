//! Orders that ThingSpace does not execute, most of them because no connection is accepted.

use std::time::Duration;

use thingspace_gateway::{
    config::Config,
    proto::esim::DownloadProfileResponse,
    simulator::{Handle, Mode, Options, Simulator},
};
use tokio::net::TcpSocket;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::*;

/// Reserves a port, on which a simulator can be started and stopped.
struct SimulatorPort {
    /// Does not listen, so no connection is accepted while no simulator runs.
    socket: TcpSocket,
}

impl SimulatorPort {
    fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        Self { socket }
    }

    /// A configuration for the simulator on this port, with the usual secrets.
    fn config(&self, files: &Upstream) -> Config {
        let mut config = files.config();
        config.thingspace.base_url = format!("http://{}/api", self.socket.local_addr().unwrap());
        config
    }

    async fn start(&self) -> StartedSimulator {
        let listen = self.socket.local_addr().unwrap();
        let options = Options { listen, mode: Mode::Manual, ..Options::default() };
        let simulator = Simulator::bind(options).await.unwrap();
        let (sim, off) = (simulator.handle(), CancellationToken::new());
        StartedSimulator { sim, off: off.clone(), running: tokio::spawn(simulator.run(off)) }
    }
}

struct StartedSimulator {
    sim: Handle,
    off: CancellationToken,
    running: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl StartedSimulator {
    async fn stop(self) {
        self.off.cancel();
        within("the simulator ends", self.running).await.unwrap().unwrap();
    }
}

/// A gateway that has both tokens but no connection, and a ThingSpace that was just stopped.
async fn gateway_without_connection(
    files: &Upstream,
    port: &SimulatorPort,
    config: Config,
) -> Gateway {
    let gateway = Gateway::start(config).await;
    let client = gateway.client().await;
    let started = port.start().await;
    let external = started.sim.add_request(files.accounts[0].clone(), []);
    eventually("a status call is answered", || {
        let (mut client, status_call) = (client.clone(), status_call(&external));
        async move { get_status(&mut client, status_call).await.is_ok() }
    })
    .await;
    started.stop().await;
    gateway
}

#[tokio::test]
async fn an_order_without_a_token_frees_its_key() {
    let (files, port) = (Upstream::manual().await, SimulatorPort::new());
    let gateway = Gateway::start(port.config(&files)).await;
    let client = gateway.client().await;
    let status = refused(&mut client.clone(), order("k", [0])).await;
    assert_is(&status, Code::Unavailable, "UPSTREAM_UNAVAILABLE");
    assert!(!retry_delay(&status).is_zero());
    let started = port.start().await;
    eventually("an order succeeds once ThingSpace is there", || {
        let mut client = client.clone();
        async move { send(&mut client, order("k", [1])).await.is_ok() }
    })
    .await;
    let ledger = started.sim.ledger();
    assert_eq!((ledger.times_ordered(&eid(0)), ledger.times_ordered(&eid(1))), (0, 1));
}

#[tokio::test]
async fn an_order_that_was_never_sent_frees_its_key() {
    let (files, port) = (Upstream::manual().await, SimulatorPort::new());
    let gateway = gateway_without_connection(&files, &port, port.config(&files)).await;
    let mut client = gateway.client().await;
    let call = with_deadline(order("k", [0]), Duration::from_millis(1_500));
    let status = send(&mut client, call).await.unwrap_err();
    assert_is(&status, Code::Unavailable, "UPSTREAM_UNAVAILABLE");
    assert!(!retry_delay(&status).is_zero());

    // A corrected order, so the key is free.
    let started = port.start().await;
    assert!(!send(&mut client, order("k", [1])).await.unwrap().replayed);
    let ledger = started.sim.ledger();
    assert_eq!((ledger.times_ordered(&eid(0)), ledger.times_ordered(&eid(1))), (0, 1));
}

/// An order is retried for a short time only, even if its caller has more time.
#[tokio::test]
async fn an_order_that_cannot_be_sent_fails_after_a_few_retries() {
    let (files, port) = (Upstream::manual().await, SimulatorPort::new());
    let mut config = port.config(&files);
    // Only the number of retries ends the attempts.
    config.thingspace.breaker_failures = 100;
    config.grpc.max_deadline = Duration::from_mins(10);
    let gateway = gateway_without_connection(&files, &port, config).await;
    let client = gateway.client().await;
    for _ in 0..2 {
        let status = waiting_order(client.clone()).await.unwrap_err();
        assert_is(&status, Code::Unavailable, "UPSTREAM_UNAVAILABLE");
        assert!(!retry_delay(&status).is_zero());
    }
    let started = port.start().await;
    assert!(!waiting_order(client.clone()).await.unwrap().replayed);
    assert!(waiting_order(client).await.unwrap().replayed);
    assert_eq!(started.sim.ledger().times_ordered(&eid(0)), 1);
}

/// ThingSpace refuses the order because of its token, and renewals return the same token. Only
/// ThingSpace's answer says that the order was not executed, so only the caller may repeat it.
#[tokio::test]
async fn a_refused_order_is_not_retried() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    place(&mut client, "before", [1]).await.unwrap();
    let refusal = What::Status {
        status: axum::http::StatusCode::UNAUTHORIZED,
        content_type: "application/json",
        body: r#"{"fault":{"code":"900901"}}"#.to_owned(),
    };
    upstream.sim.inject(Fault::once(Endpoint::Download, When::BeforeEffect, refusal));
    let status = refused(&mut client, order("k", [0])).await;
    assert_is(&status, Code::Unavailable, "UPSTREAM_UNAVAILABLE");
    assert_eq!(orders_sent(&upstream.sim.ledger()), 2);
    place(&mut client, "k", [0]).await.unwrap();
    let ledger = upstream.sim.ledger();
    assert_eq!((orders_sent(&ledger), ledger.times_ordered(&eid(0))), (3, 1));
}

#[tokio::test]
async fn a_drain_does_not_wait_for_orders_that_cannot_be_sent() {
    let (files, port) = (Upstream::manual().await, SimulatorPort::new());
    let mut config = port.config(&files);
    // Longer than this test waits.
    config.grpc.drain = Duration::from_mins(10);
    let gateway = gateway_without_connection(&files, &port, config).await;
    let client = gateway.client().await;
    let waiting = tokio::spawn(waiting_order(client.clone()));
    order_with_short_deadline_fails(client).await;
    gateway.stop().await;
    let status = waiting.await.unwrap().unwrap_err();
    // Its two retries come at random times, so it may have failed before the drain.
    let failed_before = reason(&status) == "UPSTREAM_UNAVAILABLE";
    let expected = if failed_before { "UPSTREAM_UNAVAILABLE" } else { "DRAINING" };
    assert_is(&status, Code::Unavailable, expected);

    let gateway = Gateway::start(port.config(&files)).await;
    let _started = port.start().await;
    assert!(!send(&mut gateway.client().await, order("waiting", [1])).await.unwrap().replayed);
}

async fn waiting_order(mut client: Client) -> Result<DownloadProfileResponse, Status> {
    send(&mut client, order("waiting", [0])).await
}

/// Sends an order with a short deadline, and waits until it has failed. By then an earlier order
/// with a longer deadline has been attempted, too.
async fn order_with_short_deadline_fails(mut client: Client) {
    let call = with_deadline(order("short", [2]), Duration::from_millis(1_200));
    let status = send(&mut client, call).await.unwrap_err();
    assert_is(&status, Code::Unavailable, "UPSTREAM_UNAVAILABLE");
}
