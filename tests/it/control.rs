//! Operator commands: the real binary, on the socket of a running gateway.

mod callbacks;
mod logins;
mod requests;
mod settlements;

use std::{
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use thingspace_gateway::{
    app::App,
    config::Config,
    identity::RequestId,
    simulator::{Endpoint, Fault, What, When},
};
use tonic::Code;

use crate::{
    audit::audited,
    harness::*,
    nats_server::NatsServer,
    process::{run, text},
};

/// Runs a command on the gateway with this configuration.
async fn operate(config: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(arguments).arg("--config").arg(config);
    run(command).await
}

/// The output of a command that succeeds.
pub async fn told(config: &Path, arguments: &[&str]) -> String {
    let output = operate(config, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "", "{arguments:?}");
    text(&output.stdout).to_owned()
}

pub async fn json(config: &Path, arguments: &[&str]) -> serde_json::Value {
    serde_json::from_str(&told(config, &[arguments, &["--json"]].concat()).await).unwrap()
}

/// The error of a command that fails.
async fn refused(config: &Path, arguments: &[&str]) -> String {
    let output = operate(config, arguments).await;
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), ""), "{arguments:?}");
    text(&output.stderr).to_owned()
}

async fn lose(upstream: &Upstream, client: &mut Client, key: &str, device: usize) -> RequestId {
    upstream.sim.inject(Fault::once(Endpoint::Download, When::AfterEffect, What::Drop));
    let status = place(client, key, [device]).await.unwrap_err();
    assert_eq!(kind(&status), (Code::FailedPrecondition, "ORDER_OUTCOME_UNKNOWN".to_owned()));
    upstream.sim.ledger().orders.last().unwrap().request_id.clone()
}

fn socket_of(config: &Config) -> PathBuf {
    config.control_socket()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_settles_orders_of_unknown_outcome() {
    let upstream = Upstream::manual().await;
    let config = upstream.quiet();
    let process = Process::serve(&config, upstream.dir.path());
    let file = upstream.dir.path().join("gateway.toml");
    let mut client = process.client().await;
    assert!(told(&file, &["orders", "unknown"]).await.contains("known"));

    let placed = lose(&upstream, &mut client, "placed", 0).await;
    lose(&upstream, &mut client, "lost", 1).await;
    let listed = json(&file, &["orders", "unknown"]).await;
    let orders: Vec<_> =
        listed.as_array().unwrap().iter().map(|o| o["order_id"].as_str().unwrap()).collect();
    assert_eq!(orders.len(), 2, "{listed}");
    assert_eq!((&listed[0]["account"], &listed[0]["devices"]), (&ACCOUNT.into(), &1.into()));
    let table = told(&file, &["orders", "unknown"]).await;
    assert!(
        table.starts_with("ORDER") && orders.iter().all(|order| table.contains(order)),
        "{table}"
    );
    assert_eq!(json(&file, &["status"]).await["unknown_orders"], 2);

    let done = told(&file, &["orders", "settle", orders[0], "--request-id", placed.as_str()]).await;
    assert!(done.contains(placed.as_str()), "{done}");
    assert_eq!(place(&mut client, "placed", [0]).await.unwrap(), placed);
    told(&file, &["orders", "settle", orders[1], "--not-placed"]).await;
    assert_eq!(json(&file, &["orders", "unknown"]).await, serde_json::json!([]));
    // The key is free, even for a different order.
    place(&mut client, "lost", [2]).await.unwrap();

    let again = refused(&file, &["orders", "settle", orders[0], "--not-placed"]).await;
    assert!(again.contains("already") && again.contains(placed.as_str()), "{again}");
    let again = refused(&file, &["orders", "settle", orders[1], "--request-id", "r"]).await;
    assert!(again.contains("already"), "{again}");
    for nobody in ["0198a6c3-0000-7000-8000-000000000000", "x"] {
        let nobody = refused(&file, &["orders", "settle", nobody, "--not-placed"]).await;
        assert!(nobody.contains("no such order"), "{nobody}");
    }
    assert_eq!(upstream.sim.ledger().orders.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_socket_belongs_to_the_user_and_is_removed_with_the_gateway() {
    let upstream = Upstream::manual().await;
    let config = upstream.quiet();
    let (file, socket) = (write_config(&config, upstream.dir.path()), socket_of(&config));
    let no_gateway = refused(&file, &["status"]).await;
    assert!(
        no_gateway.contains("no gateway answers") && no_gateway.contains(socket.to_str().unwrap())
    );

    let process = Process::serve(&config, upstream.dir.path());
    let metadata = std::fs::symlink_metadata(&socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let status = json(&file, &["status"]).await;
    assert_eq!(status["ready"], true);
    assert!(
        status["hosts"][0]["host"].is_string() && status["hosts"][0]["left_alone_ms"].is_null()
    );
    assert_eq!(status["store"], config.store.path.to_str().unwrap());
    place(&mut process.client().await, "k", 0..2).await.unwrap();
    let mut by_socket = Command::new(binary());
    by_socket.args(["status", "--json", "--socket"]).arg(&socket);
    let status: serde_json::Value = serde_json::from_slice(&run(by_socket).await.stdout).unwrap();
    assert_eq!((&status["open_requests"], &status["open_devices"]), (&1.into(), &2.into()));
    assert!(told(&file, &["status"]).await.contains("open devices          2\n"));

    // A second gateway on the same store removes nothing.
    assert_eq!(run(serve_command(&config, upstream.dir.path())).await.status.code(), Some(1));
    told(&file, &["status"]).await;

    process.kill();
    assert!(socket.exists(), "the socket was removed");
    assert!(refused(&file, &["status"]).await.contains("no gateway answers"));
    let process = Process::serve(&config, upstream.dir.path());
    told(&file, &["status"]).await;
    process.terminate();
    assert!(process.wait().await.0.success());
    assert!(!socket.exists());
}

/// An operator needs the gateway above all after a wrong edit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_with_problems_still_leads_to_the_gateway() {
    let upstream = Upstream::manual().await;
    let process = Process::serve(&upstream.quiet(), upstream.dir.path());
    let file = upstream.dir.path().join("gateway.toml");
    std::fs::remove_file(upstream.dir.path().join("password")).unwrap();
    let spoiled = std::fs::read_to_string(&file).unwrap() + "\n[pooling]\nmax = 5\n";
    std::fs::write(&file, spoiled).unwrap();
    assert!(told(&file, &["status"]).await.contains("ready"));
    told(&file, &["orders", "unknown"]).await;
    drop(process);

    std::fs::write(&file, "[control]\n").unwrap();
    let output = operate(&file, &["status"]).await;
    assert_eq!(output.status.code(), Some(78));
    assert!(text(&output.stderr).contains("control.socket"), "{}", text(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_says_what_is_wrong_with_the_store() {
    let (upstream, mut nats) = (Upstream::manual().await, NatsServer::stopped_with(""));
    let config = upstream.replica(&upstream.quiet(), &nats.url(), 1, 0);
    let file = write_config(&config, upstream.dir.path());
    let gateway = Gateway::launch(config).await;
    let says = async |ready: bool, away: bool| {
        let status = json(&file, &["status"]).await;
        let names_it = |key: &str| {
            status[key].as_str().is_some_and(|why| why.contains("not connected to NATS"))
        };
        (&status["ready"], names_it("waits_for"), names_it("limited"), names_it("store_trouble"))
            == (&ready.into(), !ready, ready && away, away)
    };
    eventually("it waits for NATS", async || says(false, true).await).await;
    nats.restart().await;
    eventually("it is ready", async || says(true, false).await).await;
    nats.kill();
    eventually("its store is away", async || says(true, true).await).await;
    let said = told(&file, &["status"]).await;
    let ready = "\nready                 yes, but status calls and watches are answered from \
                 memory; orders are \
                 refused while the store cannot be used: not connected to NATS";
    let store = format!("\nstore                 gw at {}\n", nats.url());
    assert!(said.contains(ready) && said.contains(", since 2") && said.contains(&store), "{said}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_accepts_a_store_loss() {
    let (upstream, nats) = (Upstream::manual().await, NatsServer::start().await);
    let config = upstream.replica(&upstream.quiet(), &nats.url(), 1, 0);
    let process = Process::serve(&config, upstream.dir.path());
    let file = upstream.dir.path().join("gateway.toml");
    let mut client = process.client().await;
    place(&mut client, "k", [0]).await.unwrap();
    let nothing = told(&file, &["store", "accept-loss"]).await;
    assert!(nothing.starts_with("There is nothing to accept: "), "{nothing}");
    let before = json(&file, &["status"]).await["store_memory"].clone();
    assert!(before["remembers_since"].is_string() && before["lost"].is_null(), "{before}");

    let admin = async_nats::jetstream::new(async_nats::connect(nats.url()).await.unwrap());
    admin.delete_stream("gw_keys").await.unwrap();
    eventually("the loss is noticed", async || {
        json(&file, &["status"]).await["store_memory"]["lost"]["what"]
            == "stream gw_keys was deleted"
    })
    .await;
    let said = told(&file, &["status"]).await;
    assert!(
        said.contains("ready                 no: the store lost something: stream gw_keys"),
        "{said}"
    );
    assert!(said.contains("store lost            stream gw_keys was deleted, noticed "), "{said}");
    let done = told(&file, &["store", "accept-loss"]).await;
    assert!(done.starts_with("Accepted: stream gw_keys was deleted."), "{done}");
    eventually("it is ready", async || json(&file, &["status"]).await["ready"] == true).await;
    let after = json(&file, &["status"]).await["store_memory"].clone();
    assert!(
        after["lost"].is_null() && after["remembers_since"] != before["remembers_since"],
        "{after}"
    );
    place(&mut client, "other", [1]).await.unwrap();

    process.terminate();
    let (_, log) = process.wait().await;
    let lines = |what: &str| log.iter().filter(|line| line.contains(what)).count();
    let accepted: Vec<_> = audited(&log)
        .iter()
        .filter(|line| line["command"] == "store accept-loss")
        .map(|line| line["outcome"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(accepted, ["unchanged", "done"], "{log:#?}");
    assert_eq!(lines("\"level\":\"ERROR\""), 1, "{log:#?}");
}

/// Such a socket can be created by renaming, but no command could connect to it.
#[tokio::test]
async fn a_path_that_is_too_long_for_a_socket_is_refused() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    config.store.path = upstream.dir.path().join("s".repeat(120));
    let error = App::bind(config).await.unwrap_err();
    assert!(format!("{error:#}").contains("shorten store.path"), "{error:#}");
}

#[tokio::test]
async fn commands_explain_themselves_and_refuse_what_they_do_not_know() {
    let commands: [&[&str]; 15] = [
        &["status"],
        &["unblock"],
        &["orders"],
        &["orders", "unknown"],
        &["orders", "settle"],
        &["callbacks"],
        &["callbacks", "list"],
        &["callbacks", "register"],
        &["callbacks", "deregister"],
        &["callbacks", "rotate"],
        &["quarantine"],
        &["quarantine", "list"],
        &["quarantine", "show"],
        &["store"],
        &["store", "accept-loss"],
    ];
    for command in commands {
        let mut help = Command::new(binary());
        help.args(command).arg("--help");
        let output = run(help).await;
        assert!(text(&output.stdout).contains("Example"), "{command:?}");
    }
    let wrong: [&[&str]; 13] = [
        &["status"],
        &["unblock", "--socket", "a"],
        &["unblock", "a/b", "--socket", "a"],
        &["orders"],
        &["status", "--socket", "a", "--config", "b"],
        &["orders", "settle", "o", "--socket", "a"],
        &["orders", "settle", "o", "--not-placed", "--request-id", "r", "--socket", "a"],
        &["orders", "settle", "o", "--request-id", "no/id", "--socket", "a"],
        &["orders", "settle", "a b", "--not-placed", "--socket", "a"],
        &["callbacks", "register", "--socket", "a"],
        &["callbacks", "list", "no/account", "--socket", "a"],
        &["callbacks", "deregister", "0000123456-00001", "--force", "--socket", "a"],
        &["quarantine", "show", "first", "--socket", "a"],
    ];
    for arguments in wrong {
        let mut command = Command::new(binary());
        command.args(arguments);
        assert_eq!(run(command).await.status.code(), Some(64), "{arguments:?}");
    }
}

/// The socket is created at each start, and nothing else is removed for it.
#[tokio::test]
async fn the_socket_replaces_nothing_but_a_socket() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    for name in ["store.redb", "password", "gateway.toml"] {
        config.control.socket = upstream.dir.path().join(name);
        let mut check = Command::new(binary());
        check.arg("check").arg("--config").arg(write_config(&config, upstream.dir.path()));
        for command in [check, serve_command(&config, upstream.dir.path())] {
            let output = run(command).await;
            assert_eq!(output.status.code(), Some(78), "{name}");
            assert!(text(&output.stderr).contains("control.socket: "), "{}", text(&output.stderr));
        }
    }
    assert_eq!(std::fs::read(upstream.dir.path().join("password")).unwrap(), b"simulator-password");

    // Also if the configuration was not validated.
    for path in ["a file", "a link"] {
        config.control.socket = upstream.dir.path().join(path);
        // A gateway that did not start releases its store a moment later.
        config.store.path = upstream.dir.path().join(format!("store of {path}"));
        if path == "a link" {
            std::os::unix::fs::symlink("nothing", &config.control.socket).unwrap();
        } else {
            std::fs::write(&config.control.socket, "kept").unwrap();
        }
        let error = App::bind(config.clone()).await.unwrap_err();
        assert!(format!("{error:#}").contains("is not a socket"), "{error:#}");
        assert!(std::fs::symlink_metadata(&config.control.socket).is_ok());
    }
}
