//! The real binary: its commands, exit codes, and its end by signals and by `kill -9`.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use futures_util::future::try_join_all;
use thingspace_gateway::{
    identity::RequestId,
    proto::esim::{RequestState, RequestStatus, watch_request_response::Event},
    simulator::{DeviceResult, Endpoint, Fault, Gate, What, When},
};
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt;

use crate::harness::*;

/// sysexits.h
const USAGE: i32 = 64;
const CONFIGURATION: i32 = 78;

/// Runs a command until it ends.
pub async fn run(command: Command) -> Output {
    let mut command = tokio::process::Command::from(command);
    command.env_remove("RUST_LOG").stdin(Stdio::null()).kill_on_drop(true);
    within("the command ends", command.output()).await.unwrap()
}

async fn run_with(arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(arguments);
    run(command).await
}

fn check_command(file: &Path) -> Command {
    let mut command = Command::new(binary());
    command.arg("check").arg("--config").arg(file);
    command
}

pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn every_command_explains_itself() {
    let commands: [&[&str]; 6] =
        [&[], &["serve"], &["dev"], &["simulate"], &["check"], &["health"]];
    for command in commands {
        let output = run_with(&[command, &["--help"]].concat()).await;
        let help = text(&output.stdout);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""), "{command:?}");
        assert!(help.contains("Usage:") && help.contains("Example"), "{command:?}: {help}");
    }
    let version = run_with(&["--version"]).await;
    assert!(version.status.success());
    assert!(text(&version.stdout).contains(env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn wrong_usage_is_64() {
    let wrong: [&[&str]; 8] = [
        &[],
        &["serve"],
        &["check"],
        &["health"],
        &["order"],
        &["dev", "--lisen", "127.0.0.1:0"],
        &["dev", "--listen", "0.0.0.0:0"],
        &["simulate", "--listen", "here"],
    ];
    for arguments in wrong {
        let output = run_with(arguments).await;
        assert_eq!(
            (output.status.code(), text(&output.stdout)),
            (Some(USAGE), ""),
            "{arguments:?}"
        );
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

#[tokio::test]
async fn all_problems_of_a_configuration_are_reported_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gateway.toml");
    let broken = r#"
[grpc]
listen = "0.0.0.0:50051"
heartbeet = "1s"
drain = "0s"

[thingspace]
base_url = "ftp://thingspace"
order_timeout = 5

[[credentials]]
name = "main"
accounts = ["0000123456-00001", 'wrong/account']
key_file = "KEY"
secret_file = "SECRET"
username_file = "USERNAME"
password_file = "PASSWORD"
"#;
    std::fs::write(&file, broken).unwrap();
    let problems = [
        "grpc.listen",
        "allow_unauthenticated_remote_callers",
        "grpc.heartbeet",
        "grpc.drain",
        "thingspace.base_url",
        "thingspace.order_timeout",
        "credentials #1: accounts",
        "key_file",
        "secret_file",
        "username_file",
        "password_file",
        "store.path",
    ];
    for command in ["check", "serve"] {
        let output = run_with(&[command, "--config", file.to_str().unwrap()]).await;
        let told = text(&output.stderr);
        assert_eq!(
            (output.status.code(), text(&output.stdout)),
            (Some(CONFIGURATION), ""),
            "{told}"
        );
        let missing: Vec<_> = problems.iter().filter(|problem| !told.contains(**problem)).collect();
        assert!(missing.is_empty(), "{command} does not tell of {missing:?}:\n{told}");
    }

    let nowhere = run_with(&["serve", "--config", dir.path().join("none").to_str().unwrap()]).await;
    assert_eq!(nowhere.status.code(), Some(CONFIGURATION));
}

#[tokio::test]
async fn remote_callers_are_not_allowed_by_default() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.config();
    config.grpc.listen = ([0, 0, 0, 0], 0).into();
    let refused = run(serve_command(&config, upstream.dir.path())).await;
    assert_eq!(refused.status.code(), Some(CONFIGURATION), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("grpc.listen"));

    config.grpc.allow_unauthenticated_remote_callers = true;
    config.grpc.allow_plaintext = true;
    let process = Process::serve(&config, upstream.dir.path());
    process.terminate();
    assert!(process.wait().await.0.success());
}

#[tokio::test]
async fn what_is_taken_is_1() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.config();
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    config.grpc.listen = taken.local_addr().unwrap();
    let output = run(serve_command(&config, upstream.dir.path())).await;
    assert_eq!(output.status.code(), Some(1));
    let cause = format!("because of a failure: cannot listen on {}", config.grpc.listen);
    assert!(text(&output.stderr).lines().last().unwrap().contains(&cause), "{output:?}");
    // No filter hides why the process ends.
    config.telemetry.log_filter = "off".to_owned();
    let output = run(serve_command(&config, upstream.dir.path())).await;
    assert!(text(&output.stderr).contains(&cause), "{output:?}");

    let config = upstream.config();
    let process = Process::serve(&config, upstream.dir.path());
    let output = run(serve_command(&config, upstream.dir.path())).await;
    assert_eq!(output.status.code(), Some(1));
    let store = config.store.path.to_str().unwrap();
    assert!(text(&output.stderr).contains(store), "{}", text(&output.stderr));
    place(&mut process.client().await, "k", 0..1).await.unwrap();
    process.terminate();
    assert!(process.wait().await.0.success());
}

#[tokio::test]
async fn check_prints_the_configuration_in_use_and_no_secret() {
    let upstream = Upstream::manual().await;
    let file = write_config(&upstream.config(), upstream.dir.path());
    let mut command = check_command(&file);
    command.env("THINGSPACE_GATEWAY__GRPC__HEARTBEAT", "7s").env("RUST_LOG", "warn");
    command.env("THINGSPACE_GATEWAY__GRPC__DRAIN", "5s");
    let output = tokio::process::Command::from(command).output().await.unwrap();
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(shown.contains("heartbeat = \"7s\""), "{shown}");
    assert!(shown.contains("log_filter = \"warn\""), "{shown}");
    assert!(shown.contains("password_file"), "{shown}");
    for secret in ["simulator-key", "simulator-secret", "simulator-user", "simulator-password"] {
        assert!(!shown.contains(secret), "{secret} is printed:\n{shown}");
    }
    assert_eq!(upstream.sim.ledger().token_requests(), 0);
    assert!(text(&output.stderr).starts_with("warning: grpc.drain: "), "{}", text(&output.stderr));

    // The output is a valid configuration.
    let again = upstream.dir.path().join("again.toml");
    std::fs::write(&again, shown).unwrap();
    assert_eq!(text(&run(check_command(&again)).await.stdout), shown);

    let mut command = check_command(&file);
    command
        .env("THINGSPACE_GATEWAY__GRPC__HEARTBEET", "7s")
        .env("THINGSPACE_GATEWAY__GRPC__DRAIN", "soon");
    command.env("THINGSPACE_GATEWAY_GRPC_LISTEN", "127.0.0.1:1");
    let output = run(command).await;
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(CONFIGURATION));
    assert!(told.contains("HEARTBEET") && told.contains("grpc.drain"), "{told}");
    assert!(told.contains("write THINGSPACE_GATEWAY__GRPC__LISTEN"), "{told}");
}

fn hold_an_order(upstream: &Upstream) -> Gate {
    let gate = Gate::default();
    upstream.sim.inject(Fault::once(
        Endpoint::Download,
        When::BeforeEffect,
        What::Hold(gate.clone()),
    ));
    gate
}

async fn refuses_connections(address: SocketAddr) {
    eventually(
        "new connections are refused",
        || async move { TcpStream::connect(address).is_err() },
    )
    .await;
}

fn resume_token(status: &Status) -> String {
    let mut info = status.get_details_error_info().expect("every error has one");
    info.metadata.remove("resumeToken").expect("a watch that breaks off tells where")
}

/// Starts a long poll for a change that does not come.
async fn long_poll(
    mut client: Client,
    id: RequestId,
    revision: i64,
) -> Result<RequestStatus, Status> {
    let mut status_call = status_call(&id);
    status_call.wait = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    status_call.after_revision = revision;
    get_status(&mut client, status_call).await
}

#[tokio::test]
async fn a_drain_does_not_wait_for_a_backlog_of_polls() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.config();
    // Longer than the test waits.
    config.grpc.drain = Duration::from_mins(10);
    let gateway = Gateway::start(config).await;
    // After a poll, the next one waits for ten times as long as the poll took, and 64 polls run at
    // once. So with more than 704 requests some polls always wait.
    let slow = What::Delay(Duration::from_millis(100));
    upstream.sim.inject(Fault::always(Endpoint::Status, When::BeforeEffect, slow));
    let client = gateway.client().await;
    let orders = (0..900).map(|n| {
        let mut client = client.clone();
        async move { place(&mut client, &format!("key {n}"), [n]).await }
    });
    try_join_all(orders).await.unwrap();
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls() >= 2_000).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_drains() {
    let upstream = Upstream::manual().await;
    let process = Process::serve(&upstream.config(), upstream.dir.path());
    let mut client = process.client().await;
    let id = place(&mut client, "a", 0..2).await.unwrap();

    let mut watching = watch(&mut client, &id, "").await.unwrap();
    let (snapshot, token) = watching.event().await;
    let Event::Snapshot(snapshot) = snapshot else { panic!("{snapshot:?}") };
    let long_poll = tokio::spawn(long_poll(client.clone(), id.clone(), snapshot.revision));
    let mut health = HealthClient::new(channel(process.address).await);
    let mut health = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let serving = within("a health", health.message()).await.unwrap().unwrap();
    assert_eq!(serving.status(), ServingStatus::Serving);
    let silent = TcpStream::connect(process.address).unwrap();
    let gate = hold_an_order(&upstream);
    let order = tokio::spawn({
        let mut client = client.clone();
        async move { place(&mut client, "b", 2..4).await }
    });
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.in_flight(Endpoint::Download) == 1).await;

    process.terminate();
    let ended = loop {
        match watching.next().await {
            Ok(message) => assert!(message.is_some(), "a pending request has no end"),
            Err(status) => break status,
        }
    };
    assert_eq!(kind(&ended), (Code::Unavailable, "DRAINING".to_owned()));
    assert_eq!(resume_token(&ended), token);
    let polled = long_poll.await.unwrap().unwrap();
    assert_eq!((polled.state(), polled.revision), (RequestState::Pending, snapshot.revision));
    let stopping = within("a health", health.message()).await.unwrap().unwrap();
    assert_eq!(stopping.status(), ServingStatus::NotServing);
    refuses_connections(process.address).await;
    place(&mut client, "c", 4..5).await.unwrap_err();
    assert!(!order.is_finished());
    gate.open();
    let b = order.await.unwrap().unwrap();
    let (status, log) = process.wait().await;
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert!(log.iter().any(|line| line.contains("\"drained\"")), "{log:#?}");
    drop(silent);

    // The drain has lost nothing.
    let process = Process::serve(&upstream.config(), upstream.dir.path());
    let mut client = process.client().await;
    assert_eq!(place(&mut client, "b", 2..4).await.unwrap(), b);
    let watching = watch(&mut client, &id, &token).await.unwrap();
    upstream.sim.finish_all(&id, DeviceResult::Success);
    assert!(!watching.rest().await.is_empty());
    assert_eq!(upstream.sim.ledger().orders.len(), 2);
}

/// A terminal sends SIGHUP when it closes. Without a handler this signal ends a process at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_drains_and_status_says_so() {
    let upstream = Upstream::manual().await;
    let config = upstream.config();
    let process = Process::serve(&config, upstream.dir.path());
    let gate = hold_an_order(&upstream);
    let mut client = process.client().await;
    let order = tokio::spawn(async move { place(&mut client, "k", 0..1).await });
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.in_flight(Endpoint::Download) == 1).await;
    process.hang_up();
    refuses_connections(process.address).await;

    let socket = config.control_socket();
    let output = run_with(&["status", "--json", "--socket", socket.to_str().unwrap()]).await;
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&status["ready"], &status["waits_for"]),
        (&false.into(), &"draining".into()),
        "{status}"
    );
    let output = run_with(&["status", "--socket", socket.to_str().unwrap()]).await;
    assert!(text(&output.stdout).contains("no: draining"), "{}", text(&output.stdout));

    gate.open();
    order.await.unwrap().unwrap();
    let (status, log) = process.wait().await;
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert!(log.iter().any(|line| line.contains("\"drained\"")), "{log:#?}");
}

/// The log and `status` identify the gateway.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_and_status_say_which_gateway_this_is_and_what_failed() {
    let upstream = Upstream::manual().await;
    let config = upstream.quiet();
    let process = Process::serve(&config, upstream.dir.path());
    let mut client = process.client().await;
    let id = place(&mut client, "k", 0..1).await.unwrap();
    let file = upstream.dir.path().join("gateway.toml");
    let output = run_with(&["status", "--json", "--config", file.to_str().unwrap()]).await;
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let store = config.store.path.to_str().unwrap();
    assert_eq!(
        (&status["version"], &status["config"], &status["store"]),
        (&version.into(), &file.to_str().into(), &store.into())
    );

    upstream.cut();
    get_status(&mut client, status_call(&id)).await.unwrap_err();
    process.terminate();
    let log: Vec<serde_json::Value> = {
        let (_, lines) = process.wait().await;
        lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let first = &log[0];
    assert_eq!(
        (&first["message"], &first["version"], &first["config"], &first["store"]),
        (&"starting".into(), &version.into(), &file.to_str().into(), &store.into()),
        "{first}"
    );
    let failed = log.iter().find(|line| line["message"] == "call failed").unwrap();
    assert_eq!(
        (&failed["reason"], &failed["account"], &failed["request.id"]),
        (&"UPSTREAM_UNAVAILABLE".into(), &ACCOUNT.into(), &id.to_string().into()),
        "{failed}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_sigterm_ends_it_at_once() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.config();
    // Longer than the test waits.
    config.grpc.drain = Duration::from_mins(10);
    config.thingspace.order_timeout = Duration::from_mins(10);
    let process = Process::serve(&config, upstream.dir.path());
    let mut client = process.client().await;
    let _gate = hold_an_order(&upstream);
    let order = tokio::spawn(async move { place(&mut client, "k", 0..2).await });
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.in_flight(Endpoint::Download) == 1).await;
    process.terminate();
    refuses_connections(process.address).await;
    assert!(!order.is_finished());
    process.terminate();
    let (status, log) = process.wait().await;
    assert_eq!(status.code(), Some(1), "{log:#?}");
    let cut = "orders were in progress when the gateway had to end: 1";
    assert!(log.iter().any(|line| line.contains(cut)), "{log:#?}");
    order.await.unwrap().unwrap_err();
}

/// The gateway uses a proxy only if the configuration names it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_of_the_environment_is_not_used() {
    let upstream = Upstream::manual().await;
    let mut command = serve_command(&upstream.config(), upstream.dir.path());
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]
    {
        command.env(name, "http://127.0.0.1:1");
    }
    let process = Process::spawn(&mut command);
    place(&mut process.client().await, "k", [0]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9() {
    let upstream = Upstream::manual().await;
    let process = Process::serve(&upstream.config(), upstream.dir.path());
    let mut client = process.client().await;
    let mut acknowledged = Vec::new();
    for n in 0..5 {
        acknowledged.push(place(&mut client, &format!("k{n}"), [n]).await.unwrap());
    }
    let gate = hold_an_order(&upstream);
    let order = tokio::spawn(async move { place(&mut client, "open", [5]).await });
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.in_flight(Endpoint::Download) == 1).await;
    process.kill();
    order.await.unwrap().unwrap_err();
    gate.open();
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.orders.len() == 6).await;

    let process = Process::serve(&upstream.config(), upstream.dir.path());
    let mut client = process.client().await;
    for (n, id) in acknowledged.iter().enumerate() {
        assert_eq!(place(&mut client, &format!("k{n}"), [n]).await.unwrap(), *id);
        assert_eq!(
            get_status(&mut client, status_call(id)).await.unwrap().counts.unwrap().total,
            1
        );
    }
    for _ in 0..3 {
        let status = place(&mut client, "open", [5]).await.unwrap_err();
        assert_eq!(kind(&status), (Code::FailedPrecondition, "ORDER_OUTCOME_UNKNOWN".to_owned()));
    }
    assert_eq!(upstream.sim.ledger().calls(Endpoint::Download), 6);
}
