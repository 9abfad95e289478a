//! Upstream trouble stays upstream: every call of ThingSpace's, failing in every way, before it has
//! its effect and after.
//!
//! Each cell has a gateway and a ThingSpace of its own. The gateway holds both tokens and has a
//! request open; then one kind of call fails, and a caller meets it. Checked are what the caller
//! reads, what that cost upstream, what is stored, and that the same call ends right once the
//! trouble is over.

mod table;

use std::time::Duration;

use futures_util::future::join_all;
use thingspace_gateway::{
    identity::RequestId,
    proto::esim::{DownloadProfileResponse, GetRequestStatusRequest, RequestState, RequestStatus},
    simulator::{DeviceResult, Endpoint, Fault, Gate, Ledger, When},
};
use tokio::task::JoinHandle;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::*;

use table::{Calls, DOWNLOAD, Key, LOGIN, STATUS, TOKEN};
use test_support::failure::Failure;

/// For the answer to a call, where only time ends it.
const TIMEOUT: Duration = Duration::from_secs(4);

/// The order that meets the failure, and its device.
const KEY: &str = "k";
const DEVICE: usize = 1;

#[derive(Debug, Clone, Copy)]
struct Cell {
    endpoint: Endpoint,
    when: When,
    failure: Failure,
    reads: (Code, &'static str),
    calls: Calls,
}

/// A cell's world: the gateway is warm, and the failure is there.
struct World {
    upstream: Upstream,
    client: Client,
    /// A request that was placed and asked about before, and whose devices have finished since.
    open: RequestId,
    /// Opened, it lets calls go on that hang.
    gate: Gate,
    before: Ledger,
    /// What it makes callers read.
    trouble: (Code, &'static str),
    _gateway: Gateway,
}

impl Cell {
    async fn world(self) -> World {
        let upstream = Upstream::manual().await;
        let mut config = upstream.quiet();
        let soon = Duration::from_millis(500);
        (config.thingspace.login_backoff_first, config.thingspace.login_backoff_max) = (soon, soon);
        // Only time ends such a call.
        if matches!(self.failure, Failure::Hang | Failure::Trickle) {
            match self.endpoint {
                Endpoint::Download => config.thingspace.order_timeout = TIMEOUT,
                _ => config.thingspace.call_timeout = TIMEOUT,
            }
        }
        let gateway = Gateway::start(config).await;
        let mut client = gateway.client().await;
        let open = place(&mut client, "before", [0]).await.unwrap();
        ask(&mut client, question(&open)).await.unwrap();
        upstream.sim.finish_all(&open, DeviceResult::Success);
        match self.endpoint {
            Endpoint::Token => upstream.sim.expire_bearer(),
            Endpoint::Login => upstream.sim.expire_sessions(),
            _ => {}
        }
        let (gate, before) = (Gate::default(), upstream.sim.ledger());
        upstream.sim.inject(Fault::always(self.endpoint, self.when, self.failure.what(&gate)));
        World { upstream, client, open, gate, before, trouble: self.reads, _gateway: gateway }
    }

    #[track_caller]
    fn assert_answer(self, world: &World, status: &Status) {
        assert_eq!(kind(status), (self.reads.0, self.reads.1.to_owned()), "{status:?}");
        assert_eq!(world.calls(), self.calls);
    }
}

impl World {
    fn calls(&self) -> Calls {
        let now = self.upstream.sim.ledger();
        let since = |endpoint| now.calls(endpoint) - self.before.calls(endpoint);
        Calls {
            token: since(Endpoint::Token),
            login: since(Endpoint::Login),
            download: since(Endpoint::Download),
            status: since(Endpoint::Status),
        }
    }

    async fn order(&mut self) -> Result<DownloadProfileResponse, Status> {
        let answer = within("an order", self.client.download_profile(order(KEY, [DEVICE]))).await?;
        Ok(answer.into_inner())
    }

    /// The order, until the answer is not to come back.
    async fn persevere(&mut self) -> Result<DownloadProfileResponse, Status> {
        loop {
            match self.order().await {
                Err(status) if asks_to_come_back(&status, self.trouble).await => {}
                outcome => return outcome,
            }
        }
    }

    async fn persevere_asking(&mut self, question: &GetRequestStatusRequest) -> RequestStatus {
        loop {
            match ask(&mut self.client, question.clone()).await {
                Err(status) if asks_to_come_back(&status, self.trouble).await => {}
                outcome => return outcome.unwrap(),
            }
        }
    }

    fn times_ordered(&self) -> usize {
        self.upstream.sim.ledger().times_ordered(&device(DEVICE).eid)
    }

    /// ThingSpace has recovered, and carries out what still hung.
    async fn over(&self) {
        self.upstream.sim.clear_faults();
        self.gate.open();
        let idle = |ledger: &Ledger| {
            [Endpoint::Token, Endpoint::Login, Endpoint::Download, Endpoint::Status]
                .iter()
                .all(|endpoint| ledger.in_flight(*endpoint) == 0)
        };
        let ledger = self.upstream.sim.wait_until(DEADLINE, idle).await;
        assert!(
            !ledger.locked && ledger.logins_rejected == 0,
            "the credentials are good: {ledger:?}"
        );
    }
}

/// Whether to come back, as the documentation for clients says; waits for as long as the answer
/// says. What the trouble made callers read they may read for a moment longer, so a caller may come
/// back for that, too.
async fn asks_to_come_back(status: &Status, trouble: (Code, &str)) -> bool {
    let (code, why) = kind(status);
    let again = matches!(code, Code::Unavailable | Code::ResourceExhausted)
        || (code, why.as_str()) == trouble && why != "ORDER_OUTCOME_UNKNOWN";
    if again {
        let told = status.get_details_retry_info().and_then(|info| info.retry_delay);
        tokio::time::sleep(told.unwrap_or(Duration::from_millis(100))).await;
    }
    again
}

async fn order_cell(cell: Cell, key: Key) {
    let mut world = cell.world().await;
    let first = world.order().await.unwrap_err();
    cell.assert_answer(&world, &first);
    let executed = match (cell.endpoint, cell.when) {
        (Endpoint::Download, When::AfterEffect) => cell.calls.download,
        _ => 0,
    };
    assert_eq!(world.times_ordered() as u64, executed);

    world.over().await;
    let again = within("an end", world.persevere()).await;
    match key {
        Key::Free => assert!(!again.unwrap().replayed, "the key was free"),
        Key::Unknown => {
            let metadata = |status: &Status| status.get_details_error_info().unwrap().metadata;
            let again = again.unwrap_err();
            assert_eq!(kind(&again), kind(&first), "{again:?}");
            assert_eq!(metadata(&again), metadata(&first));
            assert!(metadata(&first).contains_key("orderId"), "{first:?}");
        }
    }
    if key == Key::Free {
        assert!(world.order().await.unwrap().replayed, "it is placed");
    }
    let late = cell.endpoint == Endpoint::Download
        && cell.when == When::BeforeEffect
        && cell.failure == Failure::Hang;
    let times = executed + u64::from(key == Key::Free) + u64::from(late);
    assert_eq!(world.times_ordered() as u64, times);
    assert!(
        times <= 1 || executed > 0 && table::is_a_lie(cell.endpoint, cell.failure),
        "ordered twice"
    );
}

async fn status_cell(cell: Cell) {
    let mut world = cell.world().await;
    let now = question(&world.open);
    let first = ask(&mut world.client, now.clone()).await.unwrap_err();
    cell.assert_answer(&world, &first);

    // What was seen before is still what is stored.
    let an_hour = prost_types::Duration { seconds: 3_600, nanos: 0 };
    let seen =
        ask(&mut world.client, GetRequestStatusRequest { max_age: Some(an_hour), ..now.clone() })
            .await;
    let seen = seen.unwrap();
    assert_eq!((seen.state(), seen.revision), (RequestState::Pending, 1));
    assert_eq!(world.calls(), cell.calls, "nobody had to be asked");

    world.over().await;
    let again = within("an answer", world.persevere_asking(&now)).await;
    assert_eq!((again.state(), again.revision), (RequestState::Succeeded, 2));
}

/// Runs cells side by side, and names those that fail.
async fn run<T: Copy + Send + 'static, F: Future<Output = ()> + Send + 'static>(
    endpoint: Endpoint,
    lines: &[table::Line<T>],
    check: impl Fn(Cell, T) -> F,
) {
    let failures: Vec<_> = lines.iter().map(|&(failure, ..)| failure).collect();
    assert_eq!(failures, Failure::ALL, "no cell is missing");
    let cells = lines.iter().flat_map(|&(failure, reads, calls, then)| {
        [When::BeforeEffect, When::AfterEffect]
            .map(|when| (Cell { endpoint, when, failure, reads, calls }, then))
    });
    let running = cells.map(|(cell, then)| {
        let running: JoinHandle<()> = tokio::spawn(check(cell, then));
        async move { (cell, running.await) }
    });
    let outcomes = join_all(running.collect::<Vec<_>>()).await;
    let failed: Vec<_> = outcomes
        .into_iter()
        .filter_map(|(cell, outcome)| outcome.err().map(|error| (cell, error.into_panic())))
        .map(|(Cell { endpoint, when, failure, .. }, panic)| {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("");
            format!("{endpoint:?}, {failure:?}, {when:?}: {said}")
        })
        .collect();
    assert!(failed.is_empty(), "{} cells:\n\n{}", failed.len(), failed.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_requests_fail() {
    run(Endpoint::Token, &TOKEN, order_cell).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_fail() {
    run(Endpoint::Login, &LOGIN, order_cell).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_fail() {
    run(Endpoint::Download, &DOWNLOAD, order_cell).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_fail() {
    run(Endpoint::Status, &STATUS, |cell, ()| status_cell(cell)).await;
}
