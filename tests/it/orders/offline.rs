//! Orders while no host listens.

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

/// A simulator that can be stopped and restarted on the same port.
struct Outlet {
    /// Keeps the port from others. It does not listen, so no connection is accepted.
    socket: TcpSocket,
}

impl Outlet {
    fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        Self { socket }
    }

    /// A configuration for this simulator, with the usual secrets.
    fn config(&self, files: &Upstream) -> Config {
        let mut config = files.config();
        config.thingspace.base_url = format!("http://{}/api", self.socket.local_addr().unwrap());
        config
    }

    async fn power(&self) -> Powered {
        let listen = self.socket.local_addr().unwrap();
        let options = Options { listen, mode: Mode::Manual, ..Options::default() };
        let simulator = Simulator::bind(options).await.unwrap();
        let (sim, off) = (simulator.handle(), CancellationToken::new());
        Powered { sim, off: off.clone(), running: tokio::spawn(simulator.run(off)) }
    }
}

struct Powered {
    sim: Handle,
    off: CancellationToken,
    running: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Powered {
    async fn cut(self) {
        self.off.cancel();
        within("the simulator ends", self.running).await.unwrap().unwrap();
    }
}

/// A gateway that has both tokens but no connection, and a ThingSpace that was just stopped.
async fn cut_off(files: &Upstream, outlet: &Outlet, config: Config) -> Gateway {
    let gateway = Gateway::start(config).await;
    let client = gateway.client().await;
    let powered = outlet.power().await;
    let elsewhere = powered.sim.add_request(files.accounts[0].clone(), []);
    eventually("a status call is answered", || {
        let (mut client, status_call) = (client.clone(), status_call(&elsewhere));
        async move { get_status(&mut client, status_call).await.is_ok() }
    })
    .await;
    powered.cut().await;
    gateway
}

#[tokio::test]
async fn an_order_for_which_no_token_is_to_be_had_frees_its_key() {
    let (files, outlet) = (Upstream::manual().await, Outlet::new());
    let gateway = Gateway::start(outlet.config(&files)).await;
    let client = gateway.client().await;
    let status = refused(&mut client.clone(), order("k", [0])).await;
    assert_is(&status, Code::Unavailable, "UPSTREAM_UNAVAILABLE");
    assert!(!retry_delay(&status).is_zero());
    let powered = outlet.power().await;
    eventually("an order succeeds once ThingSpace is there", || {
        let mut client = client.clone();
        async move { send(&mut client, order("k", [1])).await.is_ok() }
    })
    .await;
    let ledger = powered.sim.ledger();
    assert_eq!((ledger.times_ordered(&eid(0)), ledger.times_ordered(&eid(1))), (0, 1));
}

#[tokio::test]
async fn an_order_that_never_left_frees_its_key() {
    let (files, outlet) = (Upstream::manual().await, Outlet::new());
    let gateway = cut_off(&files, &outlet, outlet.config(&files)).await;
    let mut client = gateway.client().await;
    let call = with_deadline(order("k", [0]), Duration::from_millis(1_500));
    let status = send(&mut client, call).await.unwrap_err();
    assert_is(&status, Code::Unavailable, "UPSTREAM_UNAVAILABLE");
    assert!(!retry_delay(&status).is_zero());

    // A corrected order, so the key is free.
    let powered = outlet.power().await;
    assert!(!send(&mut client, order("k", [1])).await.unwrap().replayed);
    let ledger = powered.sim.ledger();
    assert_eq!((ledger.times_ordered(&eid(0)), ledger.times_ordered(&eid(1))), (0, 1));
}

/// An order is retried for a short time only, even if its caller has more time.
#[tokio::test]
async fn an_order_that_cannot_leave_is_soon_its_caller_s_to_repeat() {
    let (files, outlet) = (Upstream::manual().await, Outlet::new());
    let mut config = outlet.config(&files);
    // Only the number of retries ends the attempts.
    config.thingspace.breaker_failures = 100;
    config.grpc.max_deadline = Duration::from_mins(10);
    let gateway = cut_off(&files, &outlet, config).await;
    let client = gateway.client().await;
    for _ in 0..2 {
        let status = waiting_order(client.clone()).await.unwrap_err();
        assert_is(&status, Code::Unavailable, "UPSTREAM_UNAVAILABLE");
        assert!(!retry_delay(&status).is_zero());
    }
    let powered = outlet.power().await;
    assert!(!waiting_order(client.clone()).await.unwrap().replayed);
    assert!(waiting_order(client).await.unwrap().replayed);
    assert_eq!(powered.sim.ledger().times_ordered(&eid(0)), 1);
}

/// ThingSpace refuses the order because of its token, and renewals return the same token. That it
/// was not executed is known only from ThingSpace, so the caller decides about another attempt.
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
async fn a_drain_does_not_wait_for_orders_that_cannot_leave() {
    let (files, outlet) = (Upstream::manual().await, Outlet::new());
    let mut config = outlet.config(&files);
    // Longer than this test waits.
    config.grpc.drain = Duration::from_mins(10);
    let gateway = cut_off(&files, &outlet, config).await;
    let client = gateway.client().await;
    let waiting = tokio::spawn(waiting_order(client.clone()));
    short_of_time(client).await;
    gateway.stop().await;
    let status = waiting.await.unwrap().unwrap_err();
    // Its two retries come at random times, so it may already have failed.
    let own = reason(&status) == "UPSTREAM_UNAVAILABLE";
    assert_is(&status, Code::Unavailable, if own { "UPSTREAM_UNAVAILABLE" } else { "DRAINING" });

    let gateway = Gateway::start(outlet.config(&files)).await;
    let _powered = outlet.power().await;
    assert!(!send(&mut gateway.client().await, order("waiting", [1])).await.unwrap().replayed);
}

async fn waiting_order(mut client: Client) -> Result<DownloadProfileResponse, Status> {
    send(&mut client, order("waiting", [0])).await
}

/// An order that fails after its retries. Until then, an order with a longer deadline was tried,
/// too.
async fn short_of_time(mut client: Client) {
    let call = with_deadline(order("short", [2]), Duration::from_millis(1_200));
    let status = send(&mut client, call).await.unwrap_err();
    assert_is(&status, Code::Unavailable, "UPSTREAM_UNAVAILABLE");
}
