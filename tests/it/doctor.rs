//! `doctor`: what it finds on a machine where a gateway can work, and on others.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use thingspace_gateway::simulator::{CallbackOptions, Endpoint, Fault, What, When};

use crate::{
    harness::*,
    nats_server::NatsServer,
    process::{run, text},
};

async fn doctor(config: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.arg("doctor").args(arguments).arg("--config").arg(config);
    run(command).await
}

/// The exit code, and each finding as "LEVEL CHECK SUBJECT".
pub async fn findings(config: &Path) -> (Option<i32>, Vec<String>) {
    let output = doctor(config, &["--json"]).await;
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let word = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let findings = report["findings"].as_array().unwrap().iter().map(|finding| {
        ["level", "check", "subject"].map(|key| word(finding, key)).join(" ").trim_end().to_owned()
    });
    (output.status.code(), findings.collect())
}

pub fn has(findings: &[String], wanted: &str) -> bool {
    findings.iter().any(|finding| finding.starts_with(wanted))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_finds_nothing_wrong_with_a_gateway_that_works() {
    let upstream = Upstream::calling(CallbackOptions::default()).await;
    let mut config = upstream.called();
    let gateway = Gateway::start(config.clone()).await;
    // The gateway has a free port, and a file must name one that ThingSpace calls. Nothing listens
    // on it.
    config.callbacks.public_url = "http://127.0.0.1:28200/callbacks".into();
    let file = write_config(&config, upstream.dir.path());
    place(&mut gateway.client().await, "key", [0]).await.unwrap();
    eventually("callbacks are registered", async || {
        findings(&file)
            .await
            .1
            .iter()
            .any(|finding| finding == &format!("ok registration {ACCOUNT}"))
    })
    .await;
    let before = upstream.sim.ledger().logins();
    let (code, found) = findings(&file).await;
    for wanted in [
        "ok configuration",
        "ok policy",
        "ok gateway ready",
        "ok gateway unknown orders",
        "ok logins test",
        "ok store size",
        "ok store in use",
        "ok dns",
        "ok thingspace",
        "ok clock",
        &format!("ok callbacks leads here, {ACCOUNT}"),
    ] {
        assert!(has(&found, wanted), "{wanted}: {found:#?}");
    }
    assert!(has(&found, "warning callbacks 127.0.0.1:28200"), "{found:#?}");
    assert!(code == Some(1) && !has(&found, "failure"), "{code:?} {found:#?}");
    assert_eq!(upstream.sim.ledger().logins(), before, "it logged in");

    let mut command = Command::new(binary());
    command.args(["check", "--online", "--json", "--config"]).arg(&file);
    let shown = run(command).await;
    assert_eq!(shown.status.code(), code);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["worst"], "warning", "{shown}");
    let shown = doctor(&file, &[]).await;
    assert!(text(&shown.stdout).contains("ok       clock"), "{}", text(&shown.stdout));
    let metrics = doctor(&file, &["--format", "prometheus"]).await;
    let metrics = text(&metrics.stdout);
    assert!(metrics.contains("thingspace_gateway_doctor_check{check=\"clock\",subject=\"\"} 0\n"));
    assert!(metrics.contains("\nthingspace_gateway_doctor_run_timestamp_seconds "), "{metrics}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_gateway_it_checks_the_rest_and_does_not_log_in() {
    let upstream = Upstream::manual().await;
    let file = write_config(&upstream.quiet(), upstream.dir.path());
    let secret = upstream.dir.path().join("password");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    let (code, found) = findings(&file).await;
    assert_eq!(code, Some(1), "{found:#?}");
    let secrets = format!("warning secrets {}", secret.display());
    for wanted in ["skipped gateway", "skipped logins", "warning store", &secrets, "ok thingspace"]
    {
        assert!(has(&found, wanted), "{wanted}: {found:#?}");
    }
    assert_eq!(upstream.sim.ledger().logins(), 0);

    // The host does not answer, and a key is wrong.
    upstream.cut();
    let spoiled = fs::read_to_string(&file).unwrap() + "\n[pooling]\nmax = 5\n";
    fs::write(&file, spoiled).unwrap();
    let (code, found) = findings(&file).await;
    assert_eq!(code, Some(2), "{found:#?}");
    assert!(
        has(&found, "failure configuration") && has(&found, "failure thingspace"),
        "{found:#?}"
    );
    assert!(has(&found, "skipped clock"), "{found:#?}");

    let (code, found) = findings(&upstream.dir.path().join("nowhere.toml")).await;
    assert_eq!((code, found.len()), (Some(2), 1), "{found:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_shows_stopped_logins_and_unknown_orders() {
    let upstream = Upstream::manual().await;
    let process = Process::serve(&upstream.quiet(), upstream.dir.path());
    let file = upstream.dir.path().join("gateway.toml");
    let mut client = process.client().await;
    upstream.sim.inject(Fault::once(Endpoint::Download, When::AfterEffect, What::Drop));
    place(&mut client, "lost", [0]).await.unwrap_err();
    upstream.sim.set_password("changed elsewhere");
    upstream.sim.expire_sessions();
    place(&mut client, "refused", [1]).await.unwrap_err();
    let before = upstream.sim.ledger().logins();
    let (code, found) = findings(&file).await;
    assert_eq!(code, Some(2), "{found:#?}");
    assert!(has(&found, "failure logins test"), "{found:#?}");
    assert!(has(&found, "warning gateway unknown orders"), "{found:#?}");
    assert_eq!(found.iter().filter(|found| found.contains("logins test")).count(), 1, "{found:#?}");
    assert_eq!(upstream.sim.ledger().logins(), before, "it logged in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_reaches_nats_and_makes_nothing_there() {
    let (upstream, mut nats) = (Upstream::manual().await, NatsServer::start().await);
    let config = upstream.replica(&upstream.quiet(), &nats.url(), 1, 0);
    let file = write_config(&config, upstream.dir.path());
    let (_, found) = findings(&file).await;
    assert!(has(&found, "ok nats") && has(&found, "skipped store size"), "{found:#?}");
    let process = Process::serve(&config, upstream.dir.path());
    process.client().await;
    let (_, found) = findings(&file).await;
    assert!(has(&found, "ok nats") && has(&found, "ok store size"), "{found:#?}");
    nats.kill();
    let (code, found) = findings(&file).await;
    assert!(code == Some(2) && has(&found, "failure nats"), "{found:#?}");
}
