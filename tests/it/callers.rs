//! Promise 8 of the README: a caller proves who it is, and may do only what the policy allows.

use std::{fmt::Write, process::Command};

use aws_lc_rs::digest::{SHA256, digest};
use thingspace_gateway::{
    config::{AllowConfig, Config},
    identity::RequestId,
};
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{control::told, harness::*};

pub(crate) const ORDERS: &str = "the token of the order service";
const READER: &str = "the token of a service that only reads";

pub(crate) fn line(name: &str, token: &str) -> String {
    let hash = digest(&SHA256, token.as_bytes());
    let mut line = format!("{name} ");
    for byte in hash.as_ref() {
        write!(line, "{byte:02x}").unwrap();
    }
    line + "\n"
}

pub(crate) fn entry(callers: &[&str], methods: &[&str], accounts: &[&str]) -> AllowConfig {
    let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    AllowConfig { callers: list(callers), methods: list(methods), accounts: list(accounts) }
}

/// `token:orders` may do everything for one account, `token:reader` may only read.
pub(crate) fn guarded(upstream: &Upstream) -> Config {
    let mut config = upstream.quiet();
    config.auth.tokens_file = upstream.dir.path().join("tokens");
    let tokens = line("orders", ORDERS) + &line("reader", READER);
    std::fs::write(&config.auth.tokens_file, tokens).unwrap();
    config.auth.allow = vec![
        entry(&["token:orders"], &["*"], &[ACCOUNT]),
        entry(&["token:read*"], &["GetRequestStatus", "WatchRequest"], &["*"]),
    ];
    config
}

pub(crate) fn with<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

#[track_caller]
fn assert_denied<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, reason: &str) {
    assert_eq!(kind(&outcome.unwrap_err()), (code, reason.to_owned()));
}

#[tokio::test]
async fn a_caller_needs_a_known_token_and_an_entry_of_the_policy() {
    let upstream = Upstream::manual().await;
    let gateway = Process::serve(&guarded(&upstream), upstream.dir.path());
    let mut client = gateway.client().await;
    let unauthenticated = |outcome| {
        assert_denied::<()>(outcome, Code::Unauthenticated, "CALLER_UNAUTHENTICATED");
    };
    unauthenticated(client.download_profile(order("k", [1])).await.map(drop));
    for token in ["unknown", "", &ORDERS[1..]] {
        let call = client.download_profile(with(order("k", [1]), token));
        unauthenticated(call.await.map(drop));
    }
    let not_allowed = |outcome| {
        assert_denied::<()>(outcome, Code::PermissionDenied, "CALLER_NOT_ALLOWED");
    };
    not_allowed(client.download_profile(with(order("k", [1]), READER)).await.map(drop));
    let mut other_account = order("k", [1]);
    other_account.account_name = "0000999999-00001".to_owned();
    not_allowed(client.download_profile(with(other_account, ORDERS)).await.map(drop));
    assert!(upstream.sim.ledger().orders.is_empty());

    let placed = client.download_profile(with(order("k", [1]), ORDERS)).await.unwrap();
    let id = RequestId::parse(&placed.into_inner().request_id).unwrap();
    let read = client.get_request_status(with(status_call(&id), READER)).await.unwrap();
    assert_eq!(read.into_inner().status.unwrap().devices.len(), 1);
    // Load balancers have no token.
    let channel = tonic::transport::Endpoint::new(format!("http://{}", gateway.address)).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    health.check(HealthCheckRequest::default()).await.unwrap();

    gateway.terminate();
    let (_, log) = gateway.wait().await;
    let audit: Vec<_> = log.iter().filter(|line| line.contains(r#""target":"audit""#)).collect();
    let denied = audit.iter().filter(|line| line.contains("a call was denied")).count();
    assert_eq!(denied, 6, "{audit:#?}");
    let ordered: Vec<_> = audit.iter().filter(|line| line.contains("token:orders")).collect();
    let hash = line("orders", ORDERS).split(' ').next_back().unwrap()[..8].to_owned();
    let is_placed = |line: &str| line.contains("placed") && line.contains(ACCOUNT);
    assert!(
        ordered
            .iter()
            .any(|line| { is_placed(line) && line.contains(&format!(r#""token":"{hash}""#)) })
    );
    for token in [ORDERS, READER] {
        assert!(!log.iter().any(|line| line.contains(token)));
    }
}

#[tokio::test]
async fn denied_calls_without_a_line_are_counted_at_the_end() {
    let upstream = Upstream::manual().await;
    let gateway = Process::serve(&guarded(&upstream), upstream.dir.path());
    let mut client = gateway.client().await;
    for _ in 0..103 {
        client.download_profile(order("k", [1])).await.unwrap_err();
    }
    drop(client);
    gateway.terminate();
    let (_, log) = gateway.wait().await;
    let denied = log.iter().filter(|line| line.contains("a call was denied")).count();
    // A minute may have ended meanwhile, and a line of its own may have reported the others.
    let further = log.iter().filter(|line| line.contains("further calls were denied"));
    let further: usize = further
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            usize::try_from(line["times"].as_u64().unwrap()).unwrap()
        })
        .sum();
    assert!(further > 0, "{log:#?}");
    assert_eq!(denied + further, 103, "{log:#?}");
}

#[tokio::test]
async fn a_new_file_of_tokens_is_used_and_a_wrong_one_is_not() {
    let upstream = Upstream::manual().await;
    let config = guarded(&upstream);
    let mut gateway = Process::serve(&config, upstream.dir.path());
    let client = gateway.client().await;
    let id = upstream.sim.add_request(upstream.accounts[0].clone(), [upstream_device(1)]);
    let read = async |token: &str| {
        let mut client = client.clone();
        client.get_request_status(with(status_call(&id), token)).await.map(drop)
    };
    std::fs::write(&config.auth.tokens_file, "reader no-hash\n").unwrap();
    gateway.wait_for_line("the last content stays in use");
    read(READER).await.unwrap();
    let shown = told(&upstream.dir.path().join("gateway.toml"), &["status"]).await;
    let row = shown.lines().find(|line| line.starts_with("auth.tokens_file")).unwrap();
    let expected = ["in use since ", "; the newest is not: ", "line 1: write NAME HASH"];
    assert!(expected.iter().all(|part| row.contains(part)), "{row}");
    assert!(shown.lines().any(|line| line.starts_with("open connections") && line.ends_with(" 1")));
    std::fs::write(&config.auth.tokens_file, line("reader", "a new token")).unwrap();
    eventually("the new token is known", async || read("a new token").await.is_ok()).await;
    assert_denied(read(READER).await, Code::Unauthenticated, "CALLER_UNAUTHENTICATED");
}

/// `serve` does not start, and `check` says the same.
#[tokio::test]
async fn all_problems_of_who_may_call_are_reported_at_once() {
    let upstream = Upstream::manual().await;
    let mut config = guarded(&upstream);
    config.grpc.listen = ([0, 0, 0, 0], 0).into();
    config.auth.allow.push(entry(&["jwt:orders"], &["Order"], &["0000999999-00001"]));
    let refused = |config: &Config, command: &str| {
        let file = write_config(config, upstream.dir.path());
        let output = Command::new(binary()).arg(command).arg("--config").arg(file).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for command in ["serve", "check"] {
        let problems = refused(&config, command);
        for problem in [
            "grpc.allow_plaintext = true",
            "auth.allow #3: callers: \"jwt:orders\" never calls",
            "auth.allow #3: methods: there is no method \"Order\"",
            "auth.allow #3: accounts: \"0000999999-00001\" is in no",
        ] {
            assert!(problems.contains(problem), "{problem} is not in {problems}");
        }
        assert!(!problems.contains("allow_unauthenticated_remote_callers"), "{problems}");
    }
    config.auth = Config::defaults().auth;
    for command in ["serve", "check"] {
        let problems = refused(&config, command);
        for option in ["allow_plaintext = true", "allow_unauthenticated_remote_callers = true"] {
            assert!(problems.contains(option), "{option} is not in {problems}");
        }
    }
}
