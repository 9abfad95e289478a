//! Each outcome of a POST, as its caller sees it, and what the same key does next.

use std::time::Duration;

use axum::http::StatusCode;
use thingspace_gateway::{
    identity::AccountName,
    proto::esim::DownloadProfileRequest,
    simulator::{Endpoint, Fault, Gate, Mode, Options, SessionRefusal, What, When},
};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::*;

const JSON: &str = "application/json; charset=UTF-8";
const REFUSED: &str = r#""errorCode":"UnifiedWebService.REQUEST_FAILED.DeviceNotFound""#;
const HTML: &str = "text/html;charset=UTF-8";

/// Returns the order's id and the time that the error of an unknown order has.
#[track_caller]
fn unknown_order(status: &Status) -> (String, String) {
    assert_is(status, Code::FailedPrecondition, "ORDER_OUTCOME_UNKNOWN");
    let mut said = status.get_details_error_info().unwrap().metadata;
    assert!(status.get_details_retry_info().is_none(), "nothing says that it may be repeated");
    let mut take =
        |name: &str| said.remove(name).unwrap_or_else(|| panic!("no {name}: {status:?}"));
    (take("orderId"), take("sentTime"))
}

fn answer(status: u16, content_type: &'static str, body: &str) -> What {
    What::Status {
        status: StatusCode::from_u16(status).unwrap(),
        content_type,
        body: body.to_owned(),
    }
}

fn error_code(status: u16, code: &str) -> What {
    answer(status, JSON, &serde_json::json!({"errorCode": code, "errorMessage": "no"}).to_string())
}

fn api_fault(status: u16, code: u32) -> What {
    answer(status, JSON, &serde_json::json!({"fault": {"code": code, "message": "no"}}).to_string())
}

/// An expired token of either kind is renewed, and the caller gets an answer.
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
        (
            answer(400, JSON, r#"{"error":"invalid_request"}"#),
            FailedPrecondition,
            "UPSTREAM_REFUSED",
        ),
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
        assert!(
            said.contains_key("upstreamCode") && said.contains_key("upstreamStatus"),
            "{what:?}"
        );
        let corrected = send(&mut client, order(&key, [other])).await.unwrap();
        assert!(!corrected.replayed, "{what:?}");
        let ledger = upstream.sim.ledger();
        assert_eq!(
            (ledger.times_ordered(&eid(n)), ledger.times_ordered(&eid(other))),
            (0, 1),
            "{what:?}"
        );
    }
}

/// A caller that repeats a refused order in a loop costs neither ThingSpace nor the store anything.
#[tokio::test]
async fn a_refused_order_is_repeated_from_memory() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let refusal = error_code(400, "UnifiedWebService.REQUEST_FAILED.DeviceNotFound");
    upstream.sim.inject(Fault::once(Endpoint::Download, When::BeforeEffect, refusal));
    let first = refused(&mut client, order("k", [1])).await;
    let stored = std::fs::read(upstream.config().store.path).unwrap();
    for _ in 0..20 {
        let again = refused(&mut client, order("k", [1])).await;
        assert_eq!((kind(&again), again.message()), (kind(&first), first.message()));
    }
    assert_eq!(orders_sent(&upstream.sim.ledger()), 1);
    assert!(std::fs::read(upstream.config().store.path).unwrap() == stored, "something was stored");
    assert!(!send(&mut client, order("k2", [1])).await.unwrap().replayed);
    gateway.stop().await;
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
    let on = |account: &str| DownloadProfileRequest {
        account_name: account.to_owned(),
        ..order("k", 0..2)
    };

    let status = refused(&mut client, on(foreign.as_str())).await;
    assert_is(&status, Code::PermissionDenied, "UPSTREAM_ACCOUNT_FORBIDDEN");
    let status = refused(&mut client, on(nobodys.as_str())).await;
    assert_is(&status, Code::NotFound, "UPSTREAM_ACCOUNT_NOT_FOUND");
    let status = refused(&mut client, on("0000555555-00001")).await;
    assert_is(&status, Code::NotFound, "ACCOUNT_NOT_CONFIGURED");
    let other_plan =
        DownloadProfileRequest { service_plan: "plan 2".to_owned(), ..order("k", 0..2) };
    let status = refused(&mut client, other_plan).await;
    assert_is(&status, Code::NotFound, "UPSTREAM_PLAN_NOT_FOUND");
    assert_eq!(upstream.sim.ledger().orders.len(), 0);
    assert!(!send(&mut client, order("k", 0..2)).await.unwrap().replayed);
}

#[tokio::test]
async fn an_unknown_order_is_never_sent_again() {
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
        (AfterEffect, What::two_envelopes()),
        (
            AfterEffect,
            answer(
                400,
                JSON,
                &format!(
                    "{{{REFUSED},\"faultResponse\":{{\"faultcode\":\"X.REQUEST_ONHOLD.y\"}}}}"
                ),
            ),
        ),
        (AfterEffect, answer(401, JSON, r#"{"fault":{"code":900901},"data":{"requestId":"r-1"}}"#)),
        (AfterEffect, answer(429, JSON, r#"{"fault":{"code":900800},"requestId":["r-1"]}"#)),
    ];
    let ids =
        ["requestId", "requestid", "REQUESTID", "Request-Id", "id"].map(What::refused_with_id);
    let ids = ids.into_iter().chain(
        ["100000000000000000001", "true", "0", "-1", r#""null""#, r#""undefined""#, r#"["r-1"]"#]
            .map(What::request_id),
    );
    let faults = faults.into_iter().chain(ids.map(|what| (AfterEffect, what)));
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let mut unknown = Vec::new();
    for (n, (when, what)) in faults.enumerate() {
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
    // Only their keys cannot be used again.
    place(&mut client, "another", [2_000]).await.unwrap();
}

#[tokio::test]
async fn an_order_without_an_answer_in_time_is_unknown() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.config();
    config.thingspace.order_timeout = Duration::from_millis(200);
    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    let gate = Gate::default();
    upstream.sim.inject(Fault::once(
        Endpoint::Download,
        When::BeforeEffect,
        What::Hold(gate.clone()),
    ));
    let first = unknown_order(&refused(&mut client, order("k", [0])).await);
    gate.open();
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.orders.len() == 1).await;
    assert_eq!(unknown_order(&refused(&mut client, order("k", [0])).await), first);
    assert_eq!(orders_sent(&upstream.sim.ledger()), 1);
}
