//! What needs no account: `dev` and `simulate`, as somebody meets them who tries the gateway.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::{
    harness::*,
    process::{run, text},
};

#[tokio::test]
async fn simulate_serves_until_it_is_told_to_stop() {
    let mut simulate = tokio::process::Command::new(BINARY)
        .args(["simulate", "--listen", "127.0.0.1:0"])
        .env("THINGSPACE_GATEWAY__TELEMETRY__LOG_FORMAT", "json")
        .env("RUST_LOG", "info")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut log = BufReader::new(simulate.stderr.take().unwrap()).lines();
    let line = within("a line of the log", log.next_line()).await.unwrap().unwrap();
    let said: serde_json::Value = serde_json::from_str(&line).unwrap();
    let base_url = said["base_url"].as_str().unwrap();

    let files = Upstream::manual().await;
    let mut config = files.config();
    base_url.clone_into(&mut config.thingspace.base_url);
    let gateway = Gateway::start(config).await;
    place(&mut gateway.client().await, "k", 0..1).await.unwrap();
    gateway.stop().await;
    terminate(&simulate);
    assert_eq!(within("simulate ends", simulate.wait()).await.unwrap().code(), Some(0));
}

fn terminate(child: &tokio::process::Child) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

/// Where `make tools` puts grpcurl, or anywhere on PATH.
pub fn path_with_grpcurl() -> std::ffi::OsString {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = [tools].into_iter().chain(std::env::split_paths(&path)).collect();
    let there = folders.iter().any(|folder| folder.join("grpcurl").is_file());
    assert!(there, "this test needs grpcurl: run `make tools`");
    std::env::join_paths(folders).unwrap()
}

/// What `dev` prints works when it is pasted into a shell, line by line.
#[tokio::test]
async fn dev_gives_a_tour_that_works() {
    let path = path_with_grpcurl();
    let mut dev = tokio::process::Command::new(BINARY)
        .args(["dev", "--listen", "127.0.0.1:0"])
        .env("THINGSPACE_GATEWAY__POLLING__FIRST", "100ms")
        .env("THINGSPACE_GATEWAY__POLLING__MAX_WATCHED", "200ms")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(dev.stdout.take().unwrap());
    let mut tour = String::new();
    while !tour.contains("/WatchRequest\n") {
        let read = within("a line of the tour", stdout.read_line(&mut tour)).await.unwrap();
        assert_ne!(read, 0, "the tour ends early:\n{tour}");
    }
    let (addresses, script) = tour.split_once("# 1.").unwrap();
    let address = addresses.split_whitespace().skip_while(|word| *word != "gRPC").nth(1).unwrap();
    assert!(address.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0), "{addresses}");

    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-c"]).arg(format!("# 1.{script}")).env("PATH", path);
    let output = run(shell).await;
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", text(&output.stderr));
    let answers = serde_json::Deserializer::from_str(&without_shell_echo(said))
        .into_iter::<serde_json::Value>()
        .collect::<Result<Vec<_>, _>>()
        .unwrap_or_else(|error| panic!("{error}:\n{said}"));
    let id = &answers[0]["requestId"];
    assert!(id.is_string(), "{said}");
    assert_eq!(
        (&answers[1]["status"]["requestId"], &answers[1]["status"]["state"]),
        (id, &"REQUEST_STATE_PENDING".into())
    );
    assert_eq!((&answers[2]["snapshot"]["requestId"]), id);
    let last = answers.last().unwrap();
    assert_eq!(last["change"]["state"], "REQUEST_STATE_PARTIALLY_SUCCEEDED", "{said}");

    terminate(&dev);
    assert_eq!(within("dev ends", dev.wait()).await.unwrap().code(), Some(0));
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest.trim(), "");
}

/// The line in which the tour repeats the id it keeps is no JSON.
fn without_shell_echo(said: &str) -> String {
    said.lines().filter(|line| line.starts_with(['{', '}', ' '])).collect::<Vec<_>>().join("\n")
}
