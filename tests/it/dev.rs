//! The commands `dev` and `simulate`, as a newcomer uses them.

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
async fn simulate_is_controlled_and_serves_until_it_is_stopped() {
    let mut simulate = tokio::process::Command::new(binary())
        .args(["simulate", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"])
        .env("THINGSPACE_GATEWAY__TELEMETRY__LOG_FORMAT", "json")
        .env("RUST_LOG", "info")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut log = BufReader::new(simulate.stderr.take().unwrap()).lines();
    let mut said = async || -> serde_json::Value {
        let line = within("a line of the log", log.next_line()).await.unwrap().unwrap();
        serde_json::from_str(&line).unwrap()
    };
    let control = format!("http://{}", said().await["address"].as_str().unwrap());
    let base_url = said().await["base_url"].as_str().unwrap().to_owned();

    let files = Upstream::manual().await;
    let mut config = files.config();
    config.thingspace.base_url = base_url;
    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    place(&mut client, "k", 0..1).await.unwrap();
    // A fault that a team would inject to test its own service: the answer to an order is lost.
    let lost = r#"{"endpoint": "download", "when": "after_effect", "answer": "drop", "times": 1}"#;
    let http = reqwest::Client::new();
    let injected = http.post(format!("{control}/faults")).body(lost).send().await.unwrap();
    assert_eq!(injected.status(), 204);
    let status = place(&mut client, "lost", 1..2).await.unwrap_err();
    assert_eq!(reason(&status), "ORDER_OUTCOME_UNKNOWN");
    let happened = http.get(format!("{control}/happened")).send().await.unwrap();
    let happened: serde_json::Value = happened.json().await.unwrap();
    assert_eq!(happened["orders"].as_array().unwrap().len(), 2);
    gateway.stop().await;
    terminate(&simulate);
    assert_eq!(within("simulate ends", simulate.wait()).await.unwrap().code(), Some(0));
}

fn terminate(child: &tokio::process::Child) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

/// PATH with the folder into which `make tools` installs grpcurl.
pub fn path_with_grpcurl() -> std::ffi::OsString {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = [tools].into_iter().chain(std::env::split_paths(&path)).collect();
    let there = folders.iter().any(|folder| folder.join("grpcurl").is_file());
    assert!(there, "this test needs grpcurl: run `make tools`");
    std::env::join_paths(folders).unwrap()
}

/// `dev` as a child process, and what it has printed up to the end of its tour.
struct Dev {
    child: tokio::process::Child,
    stdout: BufReader<tokio::process::ChildStdout>,
    /// The text above the commands of the tour.
    addresses: String,
    script: String,
}

impl Dev {
    async fn start(arguments: &[&str]) -> Self {
        let mut child = tokio::process::Command::new(binary())
            .args(["dev", "--listen", "127.0.0.1:0"])
            .args(arguments)
            .env("THINGSPACE_GATEWAY__POLLING__FIRST", "100ms")
            .env("THINGSPACE_GATEWAY__POLLING__MAX_WATCHED", "200ms")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut tour = String::new();
        while !tour.contains("/WatchRequest\n") {
            let read = within("a line of the tour", stdout.read_line(&mut tour)).await.unwrap();
            assert_ne!(read, 0, "the tour ends early:\n{tour}");
        }
        let (addresses, script) = tour.split_once("# 1.").unwrap();
        let (addresses, script) = (addresses.to_owned(), format!("# 1.{script}"));
        Self { child, stdout, addresses, script }
    }

    fn address(&self) -> SocketAddr {
        let mut words = self.addresses.split_whitespace().skip_while(|word| *word != "gRPC");
        words.nth(1).unwrap().parse().unwrap()
    }

    /// Ends the process, and checks that it has printed nothing more.
    async fn end(mut self) {
        terminate(&self.child);
        assert_eq!(within("dev ends", self.child.wait()).await.unwrap().code(), Some(0));
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest.trim(), "");
    }
}

/// Runs a script as if it were pasted into a shell. Returns the JSON that it prints.
async fn paste(script: &str) -> Vec<serde_json::Value> {
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-c"]).arg(script).env("PATH", path_with_grpcurl());
    let output = run(shell).await;
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", text(&output.stderr));
    serde_json::Deserializer::from_str(&without_shell_echo(said))
        .into_iter::<serde_json::Value>()
        .collect::<Result<Vec<_>, _>>()
        .unwrap_or_else(|error| panic!("{error}:\n{said}"))
}

/// The commands that `dev` prints work when they are pasted into a shell.
#[tokio::test]
async fn the_tour_of_dev_works() {
    let dev = Dev::start(&[]).await;
    assert_ne!(dev.address().port(), 0, "{}", dev.addresses);
    let answers = paste(&dev.script).await;
    let id = &answers[0]["requestId"];
    assert!(id.is_string(), "{answers:#?}");
    assert_eq!(
        (&answers[1]["status"]["requestId"], &answers[1]["status"]["state"]),
        (id, &"REQUEST_STATE_PENDING".into())
    );
    assert_eq!((&answers[2]["snapshot"]["requestId"]), id);
    let last = answers.last().unwrap();
    assert_eq!(last["change"]["state"], "REQUEST_STATE_PARTIALLY_SUCCEEDED", "{answers:#?}");
    // A callback says why a device failed; a poll does not.
    let devices =
        answers.iter().filter_map(|answer| answer["change"]["devices"].as_array()).flatten();
    let failed: Vec<_> =
        devices.filter(|device| device["state"] == "DEVICE_STATE_FAILED").collect();
    assert!(
        !failed.is_empty() && failed.iter().all(|device| device["fault"].is_object()),
        "{answers:#?}"
    );
    dev.end().await;
}

/// The `grpcurl` commands of the README, forwards and backwards, with the tour of `dev` in between.
#[tokio::test]
async fn the_readme_works_in_any_order() {
    let readme =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let blocks = readme.split("```sh\n").skip(1).map(|rest| rest.split_once("```").unwrap().0);
    let snippets: Vec<_> = blocks.filter(|block| block.contains("grpcurl -plaintext")).collect();
    let [order, watch] = snippets[..] else { panic!("{snippets:#?}") };
    let dev = Dev::start(&[]).await;
    let paste_here = |snippet: &str| {
        let snippet = snippet.replace("127.0.0.1:50051", &dev.address().to_string());
        async move { paste(&snippet).await }
    };
    let ordered = paste_here(order).await;
    let request_id = &ordered[0]["requestId"];
    assert!(request_id.is_string(), "{ordered:#?}");
    let watched = paste_here(watch).await;
    assert_eq!(&watched[0]["snapshot"]["requestId"], request_id);
    let tour = paste(&dev.script).await;
    assert_ne!(&tour[0]["requestId"], request_id);
    let watched_again = paste_here(watch).await;
    for messages in [&watched, &watched_again] {
        let last = messages.last().unwrap();
        let state = last["change"]["state"].as_str().or(last["snapshot"]["state"].as_str());
        assert_eq!(state, Some("REQUEST_STATE_PARTIALLY_SUCCEEDED"), "{messages:#?}");
    }
    let ordered_again = paste_here(order).await;
    assert_eq!(
        (&ordered_again[0]["requestId"], &ordered_again[0]["replayed"]),
        (request_id, &true.into())
    );
    dev.end().await;
}

/// A watch that was broken by the end of `dev` resumes with its token after the next start.
#[tokio::test]
async fn dev_keeps_a_named_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("dev.redb");
    let arguments = ["--store", store.to_str().unwrap()];
    let dev = Dev::start(&arguments).await;
    let mut client = connect(dev.address()).await;
    // A device whose last digit is 9 takes long.
    let mut slow = order("k", 0..1);
    slow.devices[0].iccid = "89148000004292933829".to_owned();
    // The gateway may still be reading its store.
    let placed = eventually_ok("an order", || {
        let (mut client, slow) = (client.clone(), slow.clone());
        async move { client.download_profile(slow).await }
    });
    let placed = placed.await.into_inner();
    let id = thingspace_gateway::identity::RequestId::parse(&placed.request_id).unwrap();
    let (_, token) = watch(&mut client, &id, "").await.unwrap().event().await;
    drop(client);
    dev.end().await;

    let dev = Dev::start(&arguments).await;
    let client = connect(dev.address()).await;
    let again = eventually_ok("the same order", || {
        let (mut client, slow) = (client.clone(), slow.clone());
        async move { client.download_profile(slow).await }
    });
    let again = again.await.into_inner();
    assert_eq!((again.request_id, again.replayed), (placed.request_id, true));
    let resumed = eventually_ok("the watch is resumed", || {
        let (mut client, id, token) = (client.clone(), id.clone(), token.clone());
        async move { watch(&mut client, &id, &token).await }
    });
    drop(resumed.await);
    drop(client);
    dev.end().await;
}

#[tokio::test]
async fn dev_makes_no_folder_for_its_store() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("mistyped");
    let mut command = Command::new(binary());
    command.args(["dev", "--listen", "127.0.0.1:0", "--store"]).arg(folder.join("dev.redb"));
    let output = run(command).await;
    let told = text(&output.stderr);
    assert_eq!(
        (output.status.code(), told.contains("mistyped does not exist; make it")),
        (Some(1), true),
        "{told}"
    );
    assert!(!folder.exists());
}

/// Skips the line in which the tour repeats the id, which is no JSON.
fn without_shell_echo(said: &str) -> String {
    said.lines().filter(|line| line.starts_with(['{', '}', ' '])).collect::<Vec<_>>().join("\n")
}
