//! Promise 3: no download is ever ordered twice.

use std::{future::Future, time::Duration};

use axum::http::StatusCode;
use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use thingspace_gateway::{
    config::Config,
    identity::AccountName,
    proto::esim::{DownloadProfileRequest, DownloadProfileResponse},
    simulator::{
        Endpoint, Fault, Gate, Handle, Ledger, Mode, Options, Outcome, SessionRefusal, Simulator, What, When,
    },
};
use tokio::net::TcpSocket;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::harness::*;

const JSON: &str = "application/json; charset=UTF-8";
const HTML: &str = "text/html;charset=UTF-8";

async fn send(
    client: &mut Client,
    order: impl tonic::IntoRequest<DownloadProfileRequest>,
) -> Result<DownloadProfileResponse, Status> {
    Ok(within("an order", client.download_profile(order)).await?.into_inner())
}

async fn refused(client: &mut Client, order: DownloadProfileRequest) -> Status {
    send(client, order).await.unwrap_err()
}

fn with_deadline(order: DownloadProfileRequest, deadline: Duration) -> Request<DownloadProfileRequest> {
    let mut request = Request::new(order);
    request.set_timeout(deadline);
    request
}

#[track_caller]
fn assert_is(status: &Status, code: Code, why: &str) {
    assert_eq!((status.code(), reason(status).as_str()), (code, why), "{status:?}");
}

/// What the status of an order of unknown fate says of it.
#[track_caller]
fn unknown_order(status: &Status) -> (String, String) {
    assert_is(status, Code::FailedPrecondition, "ORDER_OUTCOME_UNKNOWN");
    let mut said = status.get_details_error_info().unwrap().metadata;
    assert!(status.get_details_retry_info().is_none(), "nothing says that it may be repeated");
    let mut take = |name: &str| said.remove(name).unwrap_or_else(|| panic!("no {name}: {status:?}"));
    (take("orderId"), take("sentTime"))
}

fn retry_delay(status: &Status) -> Duration {
    status.get_details_retry_info().and_then(|info| info.retry_delay).expect("it says when to repeat")
}

fn eid(n: usize) -> String {
    device(n).eid
}

fn orders_sent(ledger: &Ledger) -> u64 {
    ledger.calls(Endpoint::Download)
}

fn answer(status: u16, content_type: &'static str, body: &str) -> What {
    What::Status { status: StatusCode::from_u16(status).unwrap(), content_type, body: body.to_owned() }
}

fn error_code(status: u16, code: &str) -> What {
    answer(status, JSON, &serde_json::json!({"errorCode": code, "errorMessage": "no"}).to_string())
}

fn api_fault(status: u16, code: u32) -> What {
    answer(status, JSON, &serde_json::json!({"fault": {"code": code, "message": "no"}}).to_string())
}

#[tokio::test]
async fn an_order_goes_from_snapshot_to_final_state() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..2).await.unwrap();
    let watching = watch(&mut client, &id, "").await.unwrap();
    upstream.sim.finish_all(&id, Outcome::Success);
    let messages = watching.rest().await;
    assert!(messages.len() >= 2);
    gateway.stop().await;
}

#[tokio::test]
async fn the_same_key_is_the_same_order_on_its_account() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let first = send(&mut client, order("k", 0..2)).await.unwrap();
    assert!(!first.replayed);
    let again = send(&mut client, order("k", 0..2)).await.unwrap();
    assert_eq!((again.request_id.as_str(), again.replayed), (first.request_id.as_str(), true));

    let other_orders = [
        order("k", 0..1),
        order("k", 0..3),
        order("k", [1, 0]),
        DownloadProfileRequest { service_plan: "plan 2".to_owned(), ..order("k", 0..2) },
        DownloadProfileRequest { service_plan: String::new(), ..order("k", 0..2) },
    ];
    for other in other_orders {
        let status = refused(&mut client, other).await;
        assert_is(&status, Code::InvalidArgument, "IDEMPOTENCY_KEY_REUSED");
    }
    assert_eq!(upstream.sim.ledger().orders.len(), 1);

    let elsewhere =
        DownloadProfileRequest { account_name: upstream.accounts[1].to_string(), ..order("k", 0..2) };
    let elsewhere = send(&mut client, elsewhere).await.unwrap();
    assert!(!elsewhere.replayed);
    assert_ne!(elsewhere.request_id, first.request_id);
    let placed: Vec<_> = upstream.sim.ledger().orders.iter().map(|order| order.account.clone()).collect();
    assert_eq!(placed, upstream.accounts);
}

#[tokio::test]
async fn a_check_orders_nothing_and_leaves_the_key_alone() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let check = DownloadProfileRequest { validate_only: true, ..order("k", 0..2) };
    assert_eq!(send(&mut client, check).await.unwrap(), DownloadProfileResponse::default());
    assert_eq!(upstream.sim.ledger().token_requests(), 0);
    place(&mut client, "k", 5..6).await.unwrap();
}

#[tokio::test]
async fn fifty_calls_at_once_with_one_key_place_one_order() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let client = gateway.client().await;
    let calls = (0..50).map(|_| {
        let mut client = client.clone();
        async move { send(&mut client, order("k", 0..2)).await.unwrap() }
    });
    let answers = join_all(calls).await;
    assert!(answers.iter().all(|answer| answer.request_id == answers[0].request_id));
    assert_eq!(answers.iter().filter(|answer| !answer.replayed).count(), 1);
    let ledger = upstream.sim.ledger();
    assert_eq!((ledger.orders.len(), orders_sent(&ledger)), (1, 1));
}

/// Whatever token has run out, the caller sees an answer and nothing else.
#[tokio::test]
async fn a_token_that_runs_out_costs_no_caller_an_error() {
    let refusals = [
        SessionRefusal::Coded(StatusCode::BAD_REQUEST),
        SessionRefusal::Coded(StatusCode::UNAUTHORIZED),
        SessionRefusal::Coded(StatusCode::FORBIDDEN),
        SessionRefusal::Bare(StatusCode::UNAUTHORIZED),
    ];
    for session_refusal in refusals {
        let options = Options { mode: Mode::Manual, session_refusal, ..Options::default() };
        let upstream = Upstream::start(options).await;
        // Quiet: no poll renews a token in between.
        let gateway = Gateway::start(upstream.quiet()).await;
        let mut client = gateway.client().await;
        place(&mut client, "none", [0]).await.unwrap();
        upstream.sim.expire_bearer();
        place(&mut client, "bearer", [1]).await.unwrap();
        upstream.sim.expire_sessions();
        place(&mut client, "session", [2]).await.unwrap();
        upstream.sim.expire_bearer();
        upstream.sim.expire_sessions();
        place(&mut client, "both", [3]).await.unwrap();
        let ledger = upstream.sim.ledger();
        assert_eq!(ledger.orders.len(), 4, "{session_refusal:?}");
        for n in 0..4 {
            assert_eq!(ledger.times_ordered(&eid(n)), 1, "{session_refusal:?}");
        }
        // One repeat for each kind of token that was refused. A bare 401 does not say which.
        if let SessionRefusal::Coded(_) = session_refusal {
            assert_eq!(orders_sent(&ledger), 8, "{session_refusal:?}");
        }
    }
}

#[tokio::test]
async fn a_session_that_is_refused_right_after_its_login_is_the_credentials_fault() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let refuses = error_code(400, "UnifiedWebService.REQUEST_FAILED.SessionToken.Expired");
    upstream.sim.inject(Fault::always(Endpoint::Download, When::BeforeEffect, refuses));
    let status = refused(&mut client, order("k", 0..2)).await;
    assert_is(&status, Code::FailedPrecondition, "UPSTREAM_CREDENTIALS_REJECTED");
    let ledger = upstream.sim.ledger();
    assert_eq!((orders_sent(&ledger), ledger.logins(), ledger.orders.len()), (2, 2, 0));
    upstream.sim.clear_faults();
    let corrected = send(&mut client, order("k", 2..4)).await.unwrap();
    assert!(!corrected.replayed);
}

#[tokio::test]
async fn a_throttled_order_frees_its_key() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let seven = Duration::from_secs(7);
    let throttles = [
        (What::Throttle { retry_after: Some(7) }, Some(seven)),
        (What::Throttle { retry_after: None }, None),
        (answer(429, HTML, "<html>slow down</html>"), None),
        (api_fault(503, 900_800), None),
        (api_fault(403, 900_807), None),
    ];
    for (n, (what, told)) in throttles.into_iter().enumerate() {
        let key = format!("k{n}");
        upstream.sim.inject(Fault::once(Endpoint::Download, When::BeforeEffect, what));
        let status = refused(&mut client, order(&key, [n])).await;
        assert_is(&status, Code::ResourceExhausted, "UPSTREAM_THROTTLED");
        let delay = retry_delay(&status);
        assert!(!delay.is_zero());
        assert_eq!(delay, told.unwrap_or(delay));
        assert_eq!(upstream.sim.ledger().times_ordered(&eid(n)), 0);
        assert!(!send(&mut client, order(&key, [n])).await.unwrap().replayed);
        assert_eq!(upstream.sim.ledger().times_ordered(&eid(n)), 1);
    }
}

#[tokio::test]
async fn a_refusal_has_its_reason_and_frees_its_key() {
    use Code::{FailedPrecondition, InvalidArgument, NotFound, PermissionDenied};
    let uws = |code: &str| error_code(400, &format!("UnifiedWebService.{code}"));
    let refusals = [
        (uws("INPUT_INVALID.Device.Identifier.Invalid"), InvalidArgument, "UPSTREAM_INVALID_INPUT"),
        (uws("INPUT_INVALID.Request.InvalidCharacter"), InvalidArgument, "UPSTREAM_INVALID_INPUT"),
        (uws("INPUT_INVALID.MaxRequestsExceeded"), InvalidArgument, "UPSTREAM_INVALID_INPUT"),
        (error_code(400, "400"), InvalidArgument, "UPSTREAM_INVALID_INPUT"),
        (error_code(422, "422"), InvalidArgument, "UPSTREAM_INVALID_INPUT"),
        (uws("REQUEST_FAILED.AccountNotFound"), NotFound, "UPSTREAM_ACCOUNT_NOT_FOUND"),
        (uws("REQUEST_FAILED.NoAccounts"), PermissionDenied, "UPSTREAM_ACCOUNT_FORBIDDEN"),
        (uws("REQUEST_FAILED.ServicePlanNotFound"), NotFound, "UPSTREAM_PLAN_NOT_FOUND"),
        (uws("REQUEST_FAILED.DeviceNotFound"), NotFound, "UPSTREAM_DEVICE_NOT_FOUND"),
        (uws("INPUT_INVALID.DeviceState.Invalid"), FailedPrecondition, "UPSTREAM_DEVICE_STATE"),
        (uws("REQUEST_FAILED.DeviceAlreadyActive"), FailedPrecondition, "UPSTREAM_DEVICE_STATE"),
        (uws("REQUEST_FAILED.UnexpectedError"), FailedPrecondition, "UPSTREAM_REFUSED"),
        (uws("REQUEST_CANCELLED.CreditDenied"), FailedPrecondition, "UPSTREAM_REFUSED"),
        (error_code(403, "403"), FailedPrecondition, "UPSTREAM_REFUSED"),
        (error_code(404, "404"), FailedPrecondition, "UPSTREAM_REFUSED"),
        (api_fault(400, 900_906), FailedPrecondition, "UPSTREAM_REFUSED"),
        (answer(400, JSON, r#"{"error":"invalid_request"}"#), FailedPrecondition, "UPSTREAM_REFUSED"),
    ];
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    for (n, (what, code, why)) in refusals.into_iter().enumerate() {
        let (key, other) = (format!("k{n}"), 1_000 + n);
        upstream.sim.inject(Fault::once(Endpoint::Download, When::BeforeEffect, what.clone()));
        let status = refused(&mut client, order(&key, [n])).await;
        assert_is(&status, code, why);
        let said = status.get_details_error_info().unwrap().metadata;
        assert!(said.contains_key("upstreamCode") && said.contains_key("upstreamStatus"), "{what:?}");
        let corrected = send(&mut client, order(&key, [other])).await.unwrap();
        assert!(!corrected.replayed, "{what:?}");
        let ledger = upstream.sim.ledger();
        assert_eq!((ledger.times_ordered(&eid(n)), ledger.times_ordered(&eid(other))), (0, 1), "{what:?}");
    }
}

/// The same, by the simulator's own rules.
#[tokio::test]
async fn thingspace_itself_refuses_accounts_and_plans() {
    let plans = vec!["plan 1".to_owned()];
    let options = Options { mode: Mode::Manual, service_plans: plans, ..Options::default() };
    let foreign = options.foreign_accounts[0].clone();
    let nobodys = AccountName::parse("0000777777-00001").unwrap();
    let upstream = Upstream::start(options).await;
    let mut config = upstream.config();
    config.credentials[0].accounts.extend([foreign.clone(), nobodys.clone()]);
    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    let on = |account: &str| DownloadProfileRequest { account_name: account.to_owned(), ..order("k", 0..2) };

    let status = refused(&mut client, on(foreign.as_str())).await;
    assert_is(&status, Code::PermissionDenied, "UPSTREAM_ACCOUNT_FORBIDDEN");
    let status = refused(&mut client, on(nobodys.as_str())).await;
    assert_is(&status, Code::NotFound, "UPSTREAM_ACCOUNT_NOT_FOUND");
    let status = refused(&mut client, on("0000555555-00001")).await;
    assert_is(&status, Code::NotFound, "ACCOUNT_NOT_CONFIGURED");
    let other_plan = DownloadProfileRequest { service_plan: "plan 2".to_owned(), ..order("k", 0..2) };
    let status = refused(&mut client, other_plan).await;
    assert_is(&status, Code::NotFound, "UPSTREAM_PLAN_NOT_FOUND");
    assert_eq!(upstream.sim.ledger().orders.len(), 0);
    assert!(!send(&mut client, order("k", 0..2)).await.unwrap().replayed);
}

/// A simulator whose power can be cut, and which comes back on the same port.
struct Outlet {
    /// Keeps the port from others. It does not listen, so nobody is connected by it.
    socket: TcpSocket,
}

impl Outlet {
    fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        Self { socket }
    }

    /// A configuration for the ThingSpace there, with the usual secrets.
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

/// A gateway that has both tokens and no connection for an order, and a ThingSpace that has just gone away.
async fn cut_off(files: &Upstream, outlet: &Outlet, config: Config) -> Gateway {
    let gateway = Gateway::start(config).await;
    let client = gateway.client().await;
    let powered = outlet.power().await;
    let elsewhere = powered.sim.add_request(files.accounts[0].clone(), []);
    eventually("a question is answered", || {
        let (mut client, question) = (client.clone(), question(&elsewhere));
        async move { ask(&mut client, question).await.is_ok() }
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

#[tokio::test]
async fn an_order_leaves_as_soon_as_it_can_within_its_deadline() {
    let (files, outlet) = (Upstream::manual().await, Outlet::new());
    let gateway = cut_off(&files, &outlet, outlet.config(&files)).await;
    let client = gateway.client().await;
    let waiting = tokio::spawn(waiting_order(client.clone()));
    short_of_time(client).await;
    let powered = outlet.power().await;
    assert!(!waiting.await.unwrap().unwrap().replayed);
    assert_eq!(powered.sim.ledger().times_ordered(&eid(0)), 1);
}

#[tokio::test]
async fn a_drain_does_not_wait_for_orders_that_cannot_leave() {
    let (files, outlet) = (Upstream::manual().await, Outlet::new());
    let mut config = outlet.config(&files);
    // Longer than anybody here waits.
    config.grpc.drain = Duration::from_mins(10);
    let gateway = cut_off(&files, &outlet, config).await;
    let client = gateway.client().await;
    let waiting = tokio::spawn(waiting_order(client.clone()));
    short_of_time(client).await;
    gateway.stop().await;
    let status = waiting.await.unwrap().unwrap_err();
    assert_is(&status, Code::Unavailable, "UPSTREAM_UNAVAILABLE");

    let gateway = Gateway::start(outlet.config(&files)).await;
    let _powered = outlet.power().await;
    assert!(!send(&mut gateway.client().await, order("waiting", [1])).await.unwrap().replayed);
}

async fn waiting_order(mut client: Client) -> Result<DownloadProfileResponse, Status> {
    send(&mut client, order("waiting", [0])).await
}

/// An order that gives up after having been tried again: by then one with more time has been tried, too.
async fn short_of_time(mut client: Client) {
    let call = with_deadline(order("short", [2]), Duration::from_millis(1_200));
    let status = send(&mut client, call).await.unwrap_err();
    assert_is(&status, Code::Unavailable, "UPSTREAM_UNAVAILABLE");
}

#[tokio::test]
async fn an_order_of_unknown_fate_is_never_sent_again() {
    use When::{AfterEffect, BeforeEffect};
    let faults = [
        (BeforeEffect, answer(408, HTML, "")),
        (BeforeEffect, error_code(408, "UnifiedWebService.REQUEST_FAILED.Timeout")),
        (BeforeEffect, error_code(500, "UnifiedWebService.REQUEST_FAILED.UnexpectedError")),
        (AfterEffect, answer(502, HTML, "<html>bad gateway</html>")),
        (BeforeEffect, answer(503, HTML, "")),
        (AfterEffect, answer(504, JSON, "{}")),
        (BeforeEffect, What::Redirect { location: "/api/m2m/v1/elsewhere".to_owned() }),
        (BeforeEffect, answer(302, HTML, "")),
        (AfterEffect, answer(200, JSON, "{}")),
        (AfterEffect, answer(200, JSON, r#"{"requestId":""}"#)),
        (AfterEffect, answer(200, JSON, r#"{"requestId":"../../login"}"#)),
        (AfterEffect, answer(200, HTML, "<html>welcome</html>")),
        (AfterEffect, answer(204, JSON, "")),
        (BeforeEffect, answer(400, HTML, "<html>bad request</html>")),
        (BeforeEffect, error_code(400, "UnifiedWebService.REQUEST_ONHOLD.CreditApproval")),
        (AfterEffect, What::CutBody),
        (BeforeEffect, What::Drop),
        (AfterEffect, What::Drop),
    ];
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let mut unknown = Vec::new();
    for (n, (when, what)) in faults.into_iter().enumerate() {
        let key = format!("k{n}");
        upstream.sim.inject(Fault::once(Endpoint::Download, when, what.clone()));
        let first = unknown_order(&refused(&mut client, order(&key, [n])).await);
        let placed = usize::from(when == AfterEffect);
        for _ in 0..3 {
            let again = unknown_order(&refused(&mut client, order(&key, [n])).await);
            assert_eq!(again, first, "{when:?} {what:?}");
        }
        let other = refused(&mut client, order(&key, [1_000 + n])).await;
        assert_is(&other, Code::InvalidArgument, "IDEMPOTENCY_KEY_REUSED");
        let ledger = upstream.sim.ledger();
        assert_eq!(ledger.times_ordered(&eid(n)), placed, "{when:?} {what:?}");
        assert_eq!(orders_sent(&ledger), n as u64 + 1, "{when:?} {what:?}");
        unknown.push((key, first));
    }
    let sent = orders_sent(&upstream.sim.ledger());
    gateway.stop().await;

    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    for (n, (key, first)) in unknown.iter().enumerate() {
        assert_eq!(unknown_order(&refused(&mut client, order(key, [n])).await), *first);
    }
    assert_eq!(orders_sent(&upstream.sim.ledger()), sent);
    // Only their keys are burnt.
    place(&mut client, "another", [2_000]).await.unwrap();
}

#[tokio::test]
async fn an_order_without_an_answer_in_time_is_of_unknown_fate() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.config();
    config.thingspace.order_timeout = Duration::from_millis(200);
    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    let gate = Gate::default();
    upstream.sim.inject(Fault::once(Endpoint::Download, When::BeforeEffect, What::Hold(gate.clone())));
    let first = unknown_order(&refused(&mut client, order("k", [0])).await);
    gate.open();
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.orders.len() == 1).await;
    assert_eq!(unknown_order(&refused(&mut client, order("k", [0])).await), first);
    assert_eq!(orders_sent(&upstream.sim.ledger()), 1);
}

/// Runs a call against a gateway whose order is held upstream.
async fn held<F: Future<Output = ()>>(test: impl FnOnce(Upstream, Client, Gate) -> F) {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let client = gateway.client().await;
    // Nothing but the order itself takes its time.
    place(&mut client.clone(), "before", [1_000]).await.unwrap();
    let gate = Gate::default();
    upstream.sim.inject(Fault::once(Endpoint::Download, When::BeforeEffect, What::Hold(gate.clone())));
    test(upstream, client, gate).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_deadline_ends_the_waiting_and_not_the_order() {
    held(async |upstream: Upstream, mut client: Client, gate: Gate| {
        let call = with_deadline(order("k", [0]), Duration::from_secs(1));
        let status = send(&mut client, call).await.unwrap_err();
        assert_is(&status, Code::DeadlineExceeded, "DEADLINE");
        assert_eq!(upstream.sim.ledger().in_flight(Endpoint::Download), 1);
        gate.open();
        let answer = send(&mut client, order("k", [0])).await.unwrap();
        assert!(answer.replayed);
        let ledger = upstream.sim.ledger();
        assert_eq!(ledger.times_ordered(&eid(0)), 1);
        assert_eq!(ledger.orders.last().unwrap().request_id.as_str(), answer.request_id);
        assert_eq!(orders_sent(&ledger), 2);
    })
    .await;
}

#[tokio::test]
async fn a_second_call_waits_for_the_first_within_its_own_deadline() {
    held(async |upstream: Upstream, mut client: Client, gate: Gate| {
        let first = tokio::spawn({
            let mut client = client.clone();
            async move { send(&mut client, order("k", [0])).await }
        });
        upstream.sim.wait_until(DEADLINE, |ledger| ledger.in_flight(Endpoint::Download) == 1).await;
        let call = with_deadline(order("k", [0]), Duration::from_secs(1));
        let status = send(&mut client, call).await.unwrap_err();
        assert_is(&status, Code::Unavailable, "ORDER_IN_PROGRESS");
        assert!(!retry_delay(&status).is_zero());
        let third = tokio::spawn(async move { send(&mut client, order("k", [0])).await });
        gate.open();
        let first = first.await.unwrap().unwrap();
        let third = third.await.unwrap().unwrap();
        assert_eq!(first.request_id, third.request_id);
        assert_eq!((first.replayed, third.replayed), (false, true));
        assert_eq!(upstream.sim.ledger().times_ordered(&eid(0)), 1);
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_hangs_up_does_not_end_its_order() {
    held(async |upstream: Upstream, mut client: Client, gate: Gate| {
        let call = tokio::spawn({
            let mut client = client.clone();
            async move { send(&mut client, order("k", [0])).await }
        });
        upstream.sim.wait_until(DEADLINE, |ledger| ledger.in_flight(Endpoint::Download) == 1).await;
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        gate.open();
        upstream.sim.wait_until(DEADLINE, |ledger| ledger.times_ordered(&eid(0)) == 1).await;
        let answer = send(&mut client, order("k", [0])).await.unwrap();
        assert!(answer.replayed);
        assert_eq!(orders_sent(&upstream.sim.ledger()), 2);
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_hangs_up_before_its_order_leaves_costs_nothing() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let gate = Gate::default();
    upstream.sim.inject(Fault::once(Endpoint::Login, When::BeforeEffect, What::Hold(gate.clone())));
    let call = tokio::spawn({
        let mut client = client.clone();
        async move { send(&mut client, order("k", [0])).await }
    });
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.in_flight(Endpoint::Login) == 1).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    gate.open();
    // Another order: the first call has let go of its key.
    let answer = send(&mut client, order("k", [1])).await.unwrap();
    assert!(!answer.replayed);
    let ledger = upstream.sim.ledger();
    assert_eq!((ledger.times_ordered(&eid(0)), ledger.times_ordered(&eid(1))), (0, 1));
    assert_eq!((ledger.logins(), ledger.token_requests()), (1, 1));
}

#[tokio::test]
async fn above_the_limit_of_open_devices_nothing_is_sent() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.config();
    config.limits.open_devices = 3;
    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "a", 0..2).await.unwrap();
    let status = refused(&mut client, order("b", 2..4)).await;
    assert_is(&status, Code::ResourceExhausted, "OVERLOADED");
    assert!(!retry_delay(&status).is_zero());
    assert_eq!(orders_sent(&upstream.sim.ledger()), 1);
    place(&mut client, "c", 4..5).await.unwrap();
    // What is placed already needs no room.
    assert_eq!(place(&mut client, "a", 0..2).await.unwrap(), id);

    upstream.sim.finish_all(&id, Outcome::Success);
    watch(&mut client, &id, "").await.unwrap().rest().await;
    place(&mut client, "b", 2..4).await.unwrap();
    assert_eq!(orders_sent(&upstream.sim.ledger()), 3);
}

#[tokio::test]
async fn orders_under_way_count_as_open_devices() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.config();
    config.limits.open_devices = 3;
    let gateway = Gateway::start(config).await;
    let client = gateway.client().await;
    // Until it is opened, no order gets further than to its place in the queue.
    let gate = Gate::default();
    upstream.sim.inject(Fault::once(Endpoint::Login, When::BeforeEffect, What::Hold(gate.clone())));
    let mut calls: FuturesUnordered<_> = (0..20)
        .map(|n| {
            let mut client = client.clone();
            async move { send(&mut client, order(&format!("k{n}"), [n])).await }
        })
        .collect();
    for _ in 0..17 {
        let status = within("a refusal", calls.next()).await.unwrap().unwrap_err();
        assert_is(&status, Code::ResourceExhausted, "OVERLOADED");
    }
    gate.open();
    while let Some(answer) = calls.next().await {
        answer.unwrap();
    }
    assert_eq!(orders_sent(&upstream.sim.ledger()), 3);
}
