//! Promise 1 of the README: one owner of the tokens. No call waits twice for one, and no expiry
//! is an error for a caller.

use std::{path::Path, time::Duration};

use axum::http::StatusCode;
use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::future::join_all;
use thingspace_gateway::simulator::{Endpoint, Fault, Gate, What, When};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::*;

const JSON: &str = "application/json; charset=UTF-8";

/// Orders for one device each, all at once.
async fn place_all(
    client: &Client,
    key: &str,
    devices: std::ops::Range<usize>,
) -> Vec<Result<(), Status>> {
    join_all(devices.map(|n| {
        let (mut client, key) = (client.clone(), format!("{key} {n}"));
        async move { place(&mut client, &key, [n]).await.map(drop) }
    }))
    .await
}

fn write_secret(dir: &Path, name: &str, value: &str) {
    let draft = dir.join("draft");
    std::fs::write(&draft, value).unwrap();
    std::fs::rename(draft, dir.join(name)).unwrap();
}

#[track_caller]
fn assert_rejected(status: &Status) {
    assert_eq!(
        kind(status),
        (Code::FailedPrecondition, "UPSTREAM_CREDENTIALS_REJECTED".to_owned())
    );
}

#[tokio::test]
async fn a_thousand_calls_on_a_cold_gateway_cost_one_token_and_one_login() {
    let upstream = Upstream::manual().await;
    let elsewhere = upstream.sim.add_request(upstream.accounts[0].clone(), []);
    let gateway = upstream.gateway().await;
    let client = gateway.client().await;
    let gate = Gate::default();
    upstream.sim.inject(Fault::once(Endpoint::Token, When::BeforeEffect, What::Hold(gate.clone())));
    // Half of the calls are orders, half are status calls.
    let calls = tokio::spawn(async move {
        let status_calls = (0..500).map(|_| {
            let (mut client, status_call) = (client.clone(), status_call(&elsewhere));
            async move { get_status(&mut client, status_call).await.map(drop) }
        });
        tokio::join!(place_all(&client, "k", 0..500), join_all(status_calls))
    });
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.in_flight(Endpoint::Token) == 1).await;
    gate.open();
    let (orders, status_calls) = within("all answers", calls).await.unwrap();
    for answer in orders.into_iter().chain(status_calls) {
        answer.unwrap();
    }
    let ledger = upstream.sim.ledger();
    assert_eq!((ledger.token_requests(), ledger.logins()), (1, 1));
    assert_eq!((ledger.peak(Endpoint::Token), ledger.peak(Endpoint::Login)), (1, 1));
    assert_eq!(ledger.orders.len(), 500);
}

#[tokio::test]
async fn two_hundred_calls_meet_an_expiry_and_none_fails() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let client = gateway.client().await;
    for answer in place_all(&client, "k", 0..200).await {
        answer.unwrap();
    }
    let ids: Vec<_> =
        upstream.sim.ledger().orders.iter().map(|order| order.request_id.clone()).collect();
    // The tokens that expire: bearer, session or both; and the number of renewals in total.
    for (bearer, session, tokens, logins) in
        [(true, false, 2, 1), (false, true, 2, 2), (true, true, 3, 3)]
    {
        if bearer {
            upstream.sim.expire_bearer();
        }
        if session {
            upstream.sim.expire_sessions();
        }
        let before = upstream.sim.ledger().polls();
        let status_calls = ids.iter().map(|id| {
            let mut client = client.clone();
            async move { get_status(&mut client, status_call(id)).await }
        });
        for answer in join_all(status_calls).await {
            answer.unwrap();
        }
        let ledger = upstream.sim.ledger();
        assert_eq!(
            (ledger.token_requests(), ledger.logins()),
            (tokens, logins),
            "{bearer} {session}"
        );
        assert_eq!((ledger.peak(Endpoint::Token), ledger.peak(Endpoint::Login)), (1, 1));
        assert!(ledger.polls() - before > 200, "the expiry was met");
    }
}

#[tokio::test]
async fn an_expiry_in_the_middle_of_a_burst_fails_no_call() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let client = gateway.client().await;
    let calls = tokio::spawn(async move { place_all(&client, "k", 0..200).await });
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.orders.len() >= 20).await;
    upstream.sim.expire_bearer();
    upstream.sim.expire_sessions();
    for answer in within("all orders", calls).await.unwrap() {
        answer.unwrap();
    }
    let ledger = upstream.sim.ledger();
    assert_eq!((ledger.token_requests(), ledger.logins(), ledger.orders.len()), (2, 2, 200));
}

/// Callers that waited for the attempt learn that it was rejected. Later callers learn that logins
/// are stopped.
#[track_caller]
fn assert_rejected_then_blocked(answers: Vec<Result<(), Status>>) {
    let reasons: Vec<_> = answers
        .into_iter()
        .map(|answer| {
            let (code, reason) = kind(&answer.unwrap_err());
            assert_eq!(code, Code::FailedPrecondition);
            reason
        })
        .collect();
    let rejected =
        reasons.iter().filter(|reason| *reason == "UPSTREAM_CREDENTIALS_REJECTED").count();
    let blocked = reasons.iter().filter(|reason| *reason == "UPSTREAM_LOGIN_BLOCKED").count();
    assert!(rejected > 0 && rejected + blocked == reasons.len(), "{reasons:?}");
}

#[tokio::test]
async fn a_wrong_password_is_tried_once_whoever_calls() {
    let upstream = Upstream::manual().await;
    write_secret(upstream.dir.path(), "password", "wrong");
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    assert_rejected_then_blocked(place_all(&client, "k", 0..200).await);
    for n in 0..20 {
        let blocked = place(&mut client, "more", [n]).await.unwrap_err();
        assert_eq!(kind(&blocked), (Code::FailedPrecondition, "UPSTREAM_LOGIN_BLOCKED".to_owned()));
    }
    let ledger = upstream.sim.ledger();
    assert_eq!((ledger.logins(), ledger.logins_rejected, ledger.token_requests()), (1, 1, 1));
    assert_eq!(ledger.calls(Endpoint::Download), 0);

    write_secret(upstream.dir.path(), "password", "simulator-password");
    eventually("the new password is used", || {
        let mut client = client.clone();
        async move { place(&mut client, "more", [0]).await.is_ok() }
    })
    .await;
    let ledger = upstream.sim.ledger();
    assert_eq!((ledger.logins(), ledger.logins_accepted, ledger.rejected_in_a_row), (2, 1, 0));
}

#[tokio::test]
async fn a_wrong_secret_is_tried_twice_and_no_login_is_made() {
    let upstream = Upstream::manual().await;
    write_secret(upstream.dir.path(), "secret", "wrong");
    let gateway = upstream.gateway().await;
    let client = gateway.client().await;
    assert_rejected_then_blocked(place_all(&client, "k", 0..50).await);
    let ledger = upstream.sim.ledger();
    // The first rejection may be ThingSpace's error.
    assert_eq!((ledger.token_requests(), ledger.logins()), (2, 0));
}

#[tokio::test]
async fn while_no_token_is_to_be_had_calls_say_when_to_come_back() {
    let faults = [
        What::Status {
            status: StatusCode::SERVICE_UNAVAILABLE,
            content_type: JSON,
            body: String::new(),
        },
        What::Drop,
    ];
    for what in faults {
        // It gets a store of its own, because the store keeps the tokens.
        let upstream = Upstream::manual().await;
        upstream.sim.inject(Fault::always(Endpoint::Token, When::BeforeEffect, what));
        // The token of the previous gateway is in the store.
        upstream.sim.expire_bearer();
        let gateway = upstream.gateway().await;
        let client = gateway.client().await;
        for answer in place_all(&client, "k", 0..100).await {
            let status = answer.unwrap_err();
            assert_eq!(kind(&status), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".to_owned()));
            let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
            assert!(delay.is_some_and(|delay| delay <= Duration::from_mins(1)), "{delay:?}");
        }
        upstream.sim.clear_faults();
        eventually("an order succeeds again", || {
            let mut client = client.clone();
            async move { place(&mut client, "k 0", [0]).await.is_ok() }
        })
        .await;
        let ledger = upstream.sim.ledger();
        assert_eq!((ledger.orders.len(), ledger.peak(Endpoint::Token)), (1, 1));
        gateway.stop().await;
    }
}

/// Logs with every line enabled contain no secret and no device's
/// identity.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_log_line_holds_a_secret() {
    let upstream = Upstream::manual().await;
    let answers = |endpoint, body: serde_json::Value| {
        let (status, body) = (StatusCode::OK, body.to_string());
        Fault::once(endpoint, When::BeforeEffect, What::Status { status, content_type: JSON, body })
    };
    // Invalid tokens, which are renewed. The test knows their values.
    upstream.sim.inject(answers(
        Endpoint::Token,
        serde_json::json!({
            "access_token": "bearer-in-the-open",
            "token_type": "Bearer",
            "expires_in": 3600
        }),
    ));
    upstream.sim.inject(answers(
        Endpoint::Login,
        serde_json::json!({"sessionToken": "session-in-the-open"}),
    ));
    let process = Process::spawn(
        serve_command(&upstream.config(), upstream.dir.path()).env("RUST_LOG", "trace"),
    );
    let mut client = process.client().await;
    let id = place(&mut client, "k", 0..2).await.unwrap();
    get_status(&mut client, status_call(&id)).await.unwrap();
    upstream.sim.inject(Fault::once(Endpoint::Download, When::AfterEffect, What::CutBody));
    place(&mut client, "unknown", 2..3).await.unwrap_err();
    process.terminate();
    let (status, mut lines) = process.wait().await;
    assert!(status.success());

    for file in ["store.redb", "store.redb.record"] {
        std::fs::remove_file(upstream.dir.path().join(file)).unwrap();
    }
    write_secret(upstream.dir.path(), "password", "wrong-password");
    let process = Process::spawn(
        serve_command(&upstream.config(), upstream.dir.path()).env("RUST_LOG", "trace"),
    );
    assert_rejected(&place(&mut process.client().await, "k", 0..2).await.unwrap_err());
    process.terminate();
    lines.extend(process.wait().await.1);

    let has = |text: &str| lines.iter().find(|line| line.contains(text));
    assert!(has("\"TRACE\"").is_some() && has("h2").is_some(), "everything is logged");
    assert!(
        has("order accepted").is_some() && has(id.as_str()).is_some() && has("rejected").is_some()
    );
    let secrets = [
        "simulator-secret",
        "simulator-password",
        "wrong-password",
        "bearer-in-the-open",
        "session-in-the-open",
        &BASE64_STANDARD.encode("simulator-key:simulator-secret"),
    ];
    let identities = (0..3).map(device).flat_map(|device| [device.eid, device.iccid, device.imei]);
    for secret in secrets.into_iter().map(str::to_owned).chain(identities) {
        assert_eq!(has(&secret), None, "{secret} is in the log");
    }
}
