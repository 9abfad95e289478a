//! Promise 8 of the README: the audit log has a line for each order, denied call, settled order and
//! command, with any filter.

use std::{net::TcpListener, process::Stdio};

use rustix::process::{Pid, Signal, getuid, kill_process};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use test_support::sender::about;
use thingspace_gateway::{
    config::{AllowConfig, LogFormat},
    simulator::{self, CallbackOptions, Fault, What, When},
};
use tonic::transport::Endpoint;

use crate::{control::told, harness::*, process::text};

/// The audit lines of a log.
pub fn audited(log: &[String]) -> Vec<Value> {
    let lines = log.iter().map(|line| serde_json::from_str::<Value>(line).unwrap_or_default());
    lines.filter(|line| line["target"] == "audit").collect()
}

/// The fields of a line that a test can expect literally.
fn fields(line: &Value, names: &[&str]) -> Value {
    let field = |name: &&str| line.get(*name).map(|value| ((*name).to_owned(), value.clone()));
    Value::Object(names.iter().filter_map(field).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_order_denied_call_settlement_and_command_has_one_line() {
    let upstream = Upstream::calling(CallbackOptions::default()).await;
    let mut config = upstream.called();
    // Nothing listens on this port. The test sends the callback.
    config.callbacks.public_url = "http://127.0.0.1:28200/callbacks".into();
    let account = &upstream.accounts[0];
    config.auth.allow = vec![AllowConfig {
        callers: vec!["anonymous".to_owned()],
        methods: vec!["*".to_owned()],
        accounts: vec![ACCOUNT.to_owned()],
    }];
    let mut command = serve_command(&config, upstream.dir.path());
    let mut process = Process::spawn(command.env("RUST_LOG", "info,audit=off"));
    let file = upstream.dir.path().join("gateway.toml");
    let mut client = process.client().await;

    let placed = place(&mut client, "placed", 0..2).await.unwrap();
    place(&mut client, "placed", 0..2).await.unwrap();
    let mut elsewhere = order("k", [0]);
    // The identity of a device in the place of an account.
    elsewhere.account_name = device(5).eid;
    client.download_profile(elsewhere).await.unwrap_err();

    // Orders whose answers are lost. A callback settles one of them, an operator the other.
    for device in [2, 3] {
        upstream.sim.inject(Fault::once(
            simulator::Endpoint::Download,
            When::AfterEffect,
            What::Drop,
        ));
        place(&mut client, &format!("lost {device}"), [device]).await.unwrap_err();
    }
    let evident = upstream.sim.ledger().orders[1].request_id.clone();
    eventually("callbacks are registered", async || upstream.sim.registered(account).is_some())
        .await;
    let registered = upstream.sim.registered(account).unwrap();
    let body = about(&evident, &device(2), "Success")
        .replace("\"user\"", &format!("{:?}", registered.username))
        .replace("\"secret\"", &format!("{:?}", registered.password.expose_secret()));
    let address = process.callbacks.expect("it takes callbacks").to_string();
    let url = registered.url.replace("127.0.0.1:28200", &address);
    let sent = reqwest::Client::new().post(url).body(body).send();
    assert_eq!(within("an answer", sent).await.unwrap().status(), 200);
    eventually("a callback has settled an order", async || {
        place(&mut client.clone(), "lost 2", [2]).await.is_ok()
    })
    .await;
    let unknown: Value =
        serde_json::from_str(&told(&file, &["orders", "unknown", "--json"]).await).unwrap();
    let unknown = unknown[0]["order_id"].as_str().unwrap().to_owned();
    told(&file, &["orders", "settle", &unknown, "--not-placed"]).await;

    // The caller leaves while its order is placed.
    let held = HeldOrder::begin(&upstream, &client, "held", 4..5).await;
    let gate = held.leave();
    process.wait_for_line("abandoned");
    gate.open();

    told(&file, &["unblock", "test"]).await;
    process.terminate();
    let (_, log) = process.wait().await;
    assert!(!log.iter().any(|line| line.contains(&device(5).eid)), "{log:#?}");
    let lines = audited(&log);

    let names = ["caller", "method", "account", "devices", "request.id", "outcome"];
    let calls: Vec<_> = lines.iter().filter(|line| line["method"].is_string()).collect();
    let mut shown: Vec<_> = calls.iter().map(|line| fields(line, &names)).collect();
    // A repetition finds the outcome of the callback's order sooner or later.
    shown.dedup();
    let line = |account: &str, more: Value| {
        let mut line = json!({ "caller": "anonymous", "method": "DownloadProfile",
                               "account": account });
        line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        line
    };
    let expected = [
        line(ACCOUNT, json!({ "devices": 2, "request.id": placed.as_str(), "outcome": "placed" })),
        line(
            ACCOUNT,
            json!({ "devices": 2, "request.id": placed.as_str(),
                              "outcome": "replayed" }),
        ),
        line(&format!("…{}", &device(5).eid[28..]), json!({ "outcome": "denied" })),
        line(ACCOUNT, json!({ "devices": 1, "outcome": "unknown" })),
        line(
            ACCOUNT,
            json!({ "devices": 1, "request.id": evident.as_str(),
                              "outcome": "replayed" }),
        ),
        line(ACCOUNT, json!({ "devices": 1, "outcome": "abandoned" })),
    ];
    assert_eq!(shown, expected, "{lines:#?}");
    assert!(calls.iter().all(|line| line["address"].as_str().unwrap().starts_with("127.0.0.1:")));

    let names = ["caller", "address", "command", "account", "devices", "order.id", "outcome"];
    let others: Vec<_> = lines.iter().filter(|line| line["method"].is_null()).collect();
    let [evidence, settled, unblocked] = others[..] else { panic!("{others:#?}") };
    assert_eq!((&evidence["caller"], &evidence["account"]), (&"gateway".into(), &ACCOUNT.into()));
    assert_eq!(evidence["request.id"], evident.as_str());
    assert_eq!((&evidence["devices"], &evidence["outcome"]), (&1.into(), &"accepted".into()));
    let operator = format!("operator:{}", getuid().as_raw());
    let by_operator = json!({ "caller": operator, "address": "unix",
        "command": "orders settle --not-placed", "account": ACCOUNT, "devices": 1,
        "order.id": unknown, "outcome": "done" });
    assert_eq!(fields(settled, &names), by_operator);
    assert!(settled["pid"].is_number() && settled["gid"].is_number(), "{settled}");
    assert_eq!(
        (&unblocked["command"], &unblocked["outcome"]),
        (&"unblock".into(), &"unchanged".into())
    );
    // The devices of the orders are counted, and not named.
    assert!(!lines.iter().any(|line| line.to_string().contains(&device(0).iccid)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_of_all_lines_leaves_audit_lines() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    // No line of the log names the address.
    config.grpc.listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    config.telemetry.log_filter = "off".to_owned();
    config.telemetry.log_format = LogFormat::Json;
    let mut command = tokio::process::Command::from(serve_command(&config, upstream.dir.path()));
    command.env_remove("RUST_LOG").stderr(Stdio::piped()).kill_on_drop(true);
    let gateway = command.spawn().unwrap();
    eventually("an order is placed", async || {
        let endpoint = Endpoint::new(format!("http://{}", config.grpc.listen)).unwrap();
        let Ok(channel) = endpoint.connect().await else { return false };
        place(&mut Client::new(channel), "k", 0..1).await.is_ok()
    })
    .await;
    let pid = Pid::from_raw(gateway.id().unwrap().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let output = within("the end", gateway.wait_with_output()).await.unwrap();
    let log: Vec<_> = text(&output.stderr).lines().map(str::to_owned).collect();
    let audited = audited(&log);
    assert!(audited.iter().any(|line| line["outcome"] == "placed"), "{log:#?}");
    assert_eq!(audited.len(), log.len(), "{log:#?}");
}
