//! Every call to ThingSpace, with every failure, before and after its effect.
//!
//! Each case has a gateway and a ThingSpace of its own. The gateway has both tokens and an open
//! request. Then one kind of call fails, and a caller makes a call that needs it. The test checks
//! the caller's error, the calls to ThingSpace, the stored state, and that the same call succeeds
//! after the failure has ended.

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

/// The deadline of calls that hang or trickle.
const TIMEOUT: Duration = Duration::from_secs(4);

/// The order that fails, and its device.
const KEY: &str = "k";
const DEVICE: usize = 1;

#[derive(Debug, Clone, Copy)]
struct Case {
    endpoint: Endpoint,
    when: When,
    failure: Failure,
    /// The error that callers get.
    error: (Code, &'static str),
    calls: Calls,
}

/// The state of a case: the gateway has its tokens, and the failure is injected.
struct World {
    upstream: Upstream,
    client: Client,
    /// A request that was placed and queried before, and whose devices have finished since.
    open: RequestId,
    /// Opening it lets hanging calls continue.
    gate: Gate,
    before: Ledger,
    /// The error that callers get while ThingSpace fails.
    error: (Code, &'static str),
    _gateway: Gateway,
}

impl Case {
    async fn world(self) -> World {
        let upstream = Upstream::manual().await;
        let mut config = upstream.quiet();
        let soon = Duration::from_millis(500);
        (config.thingspace.login_backoff_first, config.thingspace.login_backoff_max) = (soon, soon);
        // Only the deadline ends a call that hangs or trickles.
        if matches!(self.failure, Failure::Hang | Failure::Trickle) {
            match self.endpoint {
                Endpoint::Download => config.thingspace.order_timeout = TIMEOUT,
                _ => config.thingspace.call_timeout = TIMEOUT,
            }
        }
        let gateway = Gateway::start(config).await;
        let mut client = gateway.client().await;
        let open = place(&mut client, "before", [0]).await.unwrap();
        get_status(&mut client, status_call(&open)).await.unwrap();
        upstream.sim.finish_all(&open, DeviceResult::Success);
        match self.endpoint {
            Endpoint::Token => upstream.sim.expire_bearer(),
            Endpoint::Login => upstream.sim.expire_sessions(),
            _ => {}
        }
        let (gate, before) = (Gate::default(), upstream.sim.ledger());
        upstream.sim.inject(Fault::always(self.endpoint, self.when, self.failure.what(&gate)));
        World { upstream, client, open, gate, before, error: self.error, _gateway: gateway }
    }

    #[track_caller]
    fn assert_answer(self, world: &World, status: &Status) {
        assert_eq!(kind(status), (self.error.0, self.error.1.to_owned()), "{status:?}");
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

    /// Places the order again until it succeeds or its error says not to repeat it.
    async fn order_repeatedly(&mut self) -> Result<DownloadProfileResponse, Status> {
        loop {
            match self.order().await {
                Err(status) if should_repeat(&status, self.error).await => {}
                outcome => return outcome,
            }
        }
    }

    async fn get_status_repeatedly(
        &mut self,
        status_call: &GetRequestStatusRequest,
    ) -> RequestStatus {
        loop {
            match get_status(&mut self.client, status_call.clone()).await {
                Err(status) if should_repeat(&status, self.error).await => {}
                outcome => return outcome.unwrap(),
            }
        }
    }

    fn times_ordered(&self) -> usize {
        self.upstream.sim.ledger().times_ordered(&device(DEVICE).eid)
    }

    /// Lets ThingSpace recover and carry out the calls that hang.
    async fn recover(&self) {
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

/// Returns whether docs/clients.md tells a client to repeat the call, and waits for `RetryInfo`
/// first. After the failure has ended, the gateway may return its error for a moment longer. So a
/// call with that error is repeated, too.
async fn should_repeat(status: &Status, error: (Code, &str)) -> bool {
    let (code, reason) = kind(status);
    let again = matches!(code, Code::Unavailable | Code::ResourceExhausted)
        || (code, reason.as_str()) == error && reason != "ORDER_OUTCOME_UNKNOWN";
    if again {
        let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
        tokio::time::sleep(delay.unwrap_or(Duration::from_millis(100))).await;
    }
    again
}

async fn check_order(case: Case, key: Key) {
    let mut world = case.world().await;
    let first = world.order().await.unwrap_err();
    case.assert_answer(&world, &first);
    let executed = match (case.endpoint, case.when) {
        (Endpoint::Download, When::AfterEffect) => case.calls.download,
        _ => 0,
    };
    assert_eq!(world.times_ordered() as u64, executed);

    world.recover().await;
    let again = within("an end", world.order_repeatedly()).await;
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
    // ThingSpace executes an order that hung before its effect after it has recovered.
    let late = case.endpoint == Endpoint::Download
        && case.when == When::BeforeEffect
        && case.failure == Failure::Hang;
    let times = executed + u64::from(key == Key::Free) + u64::from(late);
    assert_eq!(world.times_ordered() as u64, times);
    assert!(
        times <= 1 || executed > 0 && table::is_a_lie(case.endpoint, case.failure),
        "ordered twice"
    );
}

async fn check_status(case: Case) {
    let mut world = case.world().await;
    let call = status_call(&world.open);
    let first = get_status(&mut world.client, call.clone()).await.unwrap_err();
    case.assert_answer(&world, &first);

    // The stored state has not changed.
    let an_hour = prost_types::Duration { seconds: 3_600, nanos: 0 };
    let seen = get_status(
        &mut world.client,
        GetRequestStatusRequest { max_age: Some(an_hour), ..call.clone() },
    )
    .await;
    let seen = seen.unwrap();
    assert_eq!((seen.state(), seen.revision), (RequestState::Pending, 1));
    assert_eq!(world.calls(), case.calls, "no call was needed");

    world.recover().await;
    let again = within("an answer", world.get_status_repeatedly(&call)).await;
    assert_eq!((again.state(), again.revision), (RequestState::Succeeded, 2));
}

/// Runs the cases of an endpoint concurrently, and names those that fail.
async fn run<T: Copy + Send + 'static, F: Future<Output = ()> + Send + 'static>(
    endpoint: Endpoint,
    lines: &[table::Line<T>],
    check: impl Fn(Case, T) -> F,
) {
    let failures: Vec<_> = lines.iter().map(|&(failure, ..)| failure).collect();
    assert_eq!(failures, Failure::ALL, "no failure is missing");
    let cases = lines.iter().flat_map(|&(failure, error, calls, then)| {
        [When::BeforeEffect, When::AfterEffect]
            .map(|when| (Case { endpoint, when, failure, error, calls }, then))
    });
    let running = cases.map(|(case, then)| {
        let running: JoinHandle<()> = tokio::spawn(check(case, then));
        async move { (case, running.await) }
    });
    let outcomes = join_all(running.collect::<Vec<_>>()).await;
    let failed: Vec<_> = outcomes
        .into_iter()
        .filter_map(|(case, outcome)| outcome.err().map(|error| (case, error.into_panic())))
        .map(|(Case { endpoint, when, failure, .. }, panic)| {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("");
            format!("{endpoint:?}, {failure:?}, {when:?}: {message}")
        })
        .collect();
    assert!(failed.is_empty(), "{} cases:\n\n{}", failed.len(), failed.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_requests_fail() {
    run(Endpoint::Token, &TOKEN, check_order).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_fail() {
    run(Endpoint::Login, &LOGIN, check_order).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_fail() {
    run(Endpoint::Download, &DOWNLOAD, check_order).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_queries_fail() {
    run(Endpoint::Status, &STATUS, |case, ()| check_status(case)).await;
}
