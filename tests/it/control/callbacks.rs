//! Commands about registrations and about callbacks in quarantine.

use std::time::Duration;

use secrecy::ExposeSecret;
use thingspace_gateway::{
    callbacks::registration::RegistrationError,
    config::Config,
    identity::AccountName,
    simulator::{CallbackOptions, Endpoint, Fault, Ledger, SimulatedRegistration, What, When},
};

use super::{json, refused, told};
use crate::{audit::audited, harness::*};

const THEIRS: &str = "https://production.example:28200/callbacks/production-secret";

fn account() -> AccountName {
    AccountName::parse(ACCOUNT).unwrap()
}

async fn upstream() -> Upstream {
    Upstream::calling(CallbackOptions::default()).await
}

/// A listener that only an operator registers, with a port that ThingSpace calls. Nothing listens
/// on that port.
fn by_hand(upstream: &Upstream) -> Config {
    let mut config = upstream.called();
    config.callbacks.register = false;
    config.callbacks.public_url = "http://127.0.0.1:28200/callbacks".into();
    config
}

#[tokio::test]
async fn an_operator_lists_registers_rotates_and_deregisters() {
    let upstream = upstream().await;
    let process = Process::serve(&by_hand(&upstream), upstream.dir.path());
    let file = upstream.dir.path().join("gateway.toml");
    let registered = || upstream.sim.registered(&account());
    let list = async || json(&file, &["callbacks", "list"]).await;
    assert_eq!(list().await, serde_json::json!([{ "account": ACCOUNT, "registrations": [] }]));
    assert!(told(&file, &["callbacks", "list"]).await.contains("nothing is registered"));

    assert!(told(&file, &["callbacks", "register", ACCOUNT]).await.ends_with("is registered.\n"));
    let made = registered().unwrap();
    assert!(
        told(&file, &["callbacks", "register", ACCOUNT])
            .await
            .ends_with("is registered already.\n")
    );
    let ours = serde_json::json!({
        "service": "DeviceProfileService",
        "host": "127.0.0.1",
        "ours": true,
        "same_address": false,
    });
    assert_eq!(list().await, serde_json::json!([{ "account": ACCOUNT, "registrations": [ours] }]));
    let table = told(&file, &["callbacks", "list", ACCOUNT]).await;
    assert!(
        table.starts_with("ACCOUNT") && table.ends_with("127.0.0.1  this gateway\n"),
        "{table}"
    );

    let done = json(&file, &["callbacks", "rotate", ACCOUNT]).await;
    assert_eq!(done, serde_json::json!({ "done": "rotated" }));
    let rotated = registered().unwrap();
    assert_eq!(rotated.url, made.url);
    assert_ne!(rotated.password.expose_secret(), made.password.expose_secret());

    let done = told(&file, &["callbacks", "rotate", ACCOUNT, "--path"]).await;
    assert!(done.ends_with("is registered with a new path secret.\n"), "{done}");
    assert_ne!(registered().unwrap().url, made.url);

    let done = told(&file, &["callbacks", "deregister", ACCOUNT]).await;
    assert!(done.contains(ACCOUNT) && done.ends_with("is deregistered.\n"), "{done}");
    let done = told(&file, &["callbacks", "rotate", ACCOUNT]).await;
    assert!(done.contains("no registration, because it was deregistered"), "{done}");
    assert!(registered().is_none());
    for command in [&["list"][..], &["register"], &["rotate"], &["deregister"]] {
        let unknown =
            refused(&file, &[&["callbacks"], command, &["0000999999-00009"]].concat()).await;
        assert_eq!(unknown, "account 0000999999-00009 is not configured\n");
    }
    process.terminate();
    assert!(process.wait().await.0.success());
}

#[tokio::test]
async fn another_registration_is_replaced_only_by_force() {
    let upstream = upstream().await;
    let theirs = SimulatedRegistration {
        url: THEIRS.into(),
        username: "production".into(),
        password: "theirs".into(),
    };
    upstream.sim.register(&account(), theirs);
    let _process = Process::serve(&by_hand(&upstream), upstream.dir.path());
    let file = upstream.dir.path().join("gateway.toml");
    let url = || upstream.sim.registered(&account()).unwrap().url;

    for command in ["register", "rotate", "deregister"] {
        let taken = refused(&file, &["callbacks", command, ACCOUNT]).await;
        assert!(
            taken.contains("go to another system, which has registered a URL on production"),
            "{taken}"
        );
        assert!(taken.contains(&format!("`callbacks register {ACCOUNT} --force`")), "{taken}");
        assert_eq!(url(), THEIRS, "{command}");
    }
    let table = told(&file, &["callbacks", "list"]).await;
    assert!(table.ends_with("production.example  another system\n"), "{table}");
    let listed = told(&file, &["callbacks", "list", "--json"]).await;
    assert!(listed.contains(r#""ours": false"#), "{listed}");
    assert!(!listed.contains("production-secret") && !listed.contains("theirs"), "{listed}");

    told(&file, &["callbacks", "register", ACCOUNT, "--force"]).await;
    assert_ne!(url(), THEIRS);
    assert_eq!(json(&file, &["callbacks", "list"]).await[0]["registrations"][0]["ours"], true);
}

/// Otherwise they would replace each other's registration for ever.
#[tokio::test]
async fn two_gateways_with_one_url_are_one_error_and_no_fight() {
    let upstream = upstream().await;
    let mut config = by_hand(&upstream);
    config.callbacks.register = true;
    config.callbacks.recheck = Duration::from_secs(1);
    let process = Process::serve(&config, upstream.dir.path());
    let file = upstream.dir.path().join("gateway.toml");
    let listed = async |count: u64| {
        let often = |ledger: &Ledger| ledger.calls(Endpoint::ListCallbacks) >= count;
        upstream.sim.wait_until(DEADLINE, often).await.calls(Endpoint::RegisterCallback)
    };
    assert_eq!(listed(2).await, 1);
    let first = upstream.sim.registered(&account()).unwrap().url;

    let mut other = config.clone();
    other.callbacks.recheck = Duration::from_hours(1);
    other.store.path = upstream.dir.path().join("another.redb");
    let other = Gateway::start(other).await;
    let taken = async || upstream.sim.registered(&account()).is_some_and(|now| now.url != first);
    eventually("the other one takes it over, once", taken).await;
    let listings = upstream.sim.ledger().calls(Endpoint::ListCallbacks);
    assert_eq!(listed(listings + 4).await, 2);
    let status = json(&file, &["status"]).await;
    let said = status["registrations"][ACCOUNT].as_str().unwrap();
    assert!(said.contains("another gateway with another store"), "{status}");
    let refused = refused(&file, &["callbacks", "register", ACCOUNT]).await;
    assert!(
        refused.contains("another gateway with another store") && refused.contains("--force"),
        "{refused}"
    );
    told(&file, &["callbacks", "register", ACCOUNT, "--force"]).await;
    assert_eq!(upstream.sim.registered(&account()).unwrap().url, first);
    let refused = other.registration.as_ref().unwrap().register(&account(), false).await;
    assert!(matches!(refused, Err(RegistrationError::Stopped(_))), "{refused:?}");
    other.stop().await;

    process.terminate();
    let (_, log) = process.wait().await;
    let errors =
        log.iter().filter(|line| line.contains("ERROR") && line.contains("another gateway with"));
    assert_eq!(errors.count(), 1, "{log:#?}");
}

#[tokio::test]
async fn a_callback_in_quarantine_is_shown_without_passwords() {
    let upstream = upstream().await;
    let mut command = serve_command(&by_hand(&upstream), upstream.dir.path());
    let process = Process::spawn(command.env("RUST_LOG", "info,audit=off"));
    let file = upstream.dir.path().join("gateway.toml");
    assert_eq!(told(&file, &["quarantine", "list"]).await, "The quarantine is empty.\n");
    assert_eq!(json(&file, &["quarantine", "list"]).await, serde_json::json!([]));
    let none = refused(&file, &["quarantine", "show", "1"]).await;
    assert!(none.contains("no callback 1 in quarantine"), "{none}");

    told(&file, &["callbacks", "register", ACCOUNT]).await;
    let registered = upstream.sim.registered(&account()).unwrap();
    let password = registered.password.expose_secret();
    let body = format!("callback\u{1b}[2J\npassword={password}&requestId=r");
    let address = process.callbacks.expect("it takes callbacks");
    let url = registered.url.replace("127.0.0.1:28200", &address.to_string());
    let http = reqwest::Client::new();
    for body in [body.as_str(), "[]"] {
        let sent = http.post(&url).body(body.to_owned()).send();
        assert_eq!(within("an answer", sent).await.unwrap().status(), 200);
    }

    let status = json(&file, &["status"]).await;
    assert_eq!(status["callbacks"], serde_json::json!({ "quarantined": 2 }));
    assert_eq!(status["registrations"], serde_json::json!({ ACCOUNT: "registered" }));
    let shown = told(&file, &["status"]).await;
    assert!(shown.contains("quarantined 2\n"), "{shown}");
    assert!(
        shown.lines().any(|line| line.starts_with("registration") && line.ends_with("registered"))
    );
    let listed = json(&file, &["quarantine", "list"]).await;
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!((&listed[0]["id"], &listed[0]["account"]), (&1.into(), &ACCOUNT.into()));
    assert_eq!((&listed[0]["bytes"], &listed[1]["bytes"]), (&body.len().into(), &2.into()));
    let table = told(&file, &["quarantine", "list"]).await;
    assert!(table.starts_with("ID") && table.lines().count() == 3, "{table}");

    let masked = body.replace(password, "***");
    let shown = json(&file, &["quarantine", "show", "1"]).await;
    assert_eq!(shown, serde_json::json!({ "id": 1, "body": masked }));
    // A callback cannot control the operator's terminal.
    let shown = told(&file, &["quarantine", "show", "1"]).await;
    assert_eq!(shown, masked.replace('\u{1b}', r"\u{1b}") + "\n");
    assert_eq!(told(&file, &["quarantine", "show", "2"]).await, "[]\n");

    // The log says who read which callback, with any filter.
    process.terminate();
    let (_, log) = process.wait().await;
    let lines = audited(&log);
    let shows: Vec<_> = lines
        .iter()
        .filter(|line| line["command"] == "quarantine show")
        .map(|line| (line["callback"].as_u64().unwrap(), line["outcome"].as_str().unwrap()))
        .collect();
    assert_eq!(shows, [(1, "failed"), (1, "done"), (1, "done"), (2, "done")], "{lines:#?}");
    let done = lines.iter().filter(|line| line["outcome"] == "done");
    assert!(done.clone().all(|line| line["account"] == ACCOUNT), "{lines:#?}");
    assert_eq!(done.filter(|line| line["command"] == "callbacks register").count(), 1);
}

#[tokio::test]
async fn a_gateway_without_callbacks_says_so() {
    let commands: [&[&str]; 4] = [
        &["callbacks", "list"],
        &["callbacks", "register", ACCOUNT, "--force"],
        &["callbacks", "deregister", ACCOUNT],
        &["callbacks", "rotate", ACCOUNT],
    ];
    let quarantine: [&[&str]; 2] = [&["quarantine", "list"], &["quarantine", "show", "1"]];
    let upstream = upstream().await;
    let mut config = upstream.quiet();
    let process = Process::serve(&config, upstream.dir.path());
    let file = upstream.dir.path().join("gateway.toml");
    for command in commands.into_iter().chain(quarantine) {
        let said = refused(&file, command).await;
        assert_eq!(said, "callbacks are disabled; set callbacks.enabled = true\n", "{command:?}");
    }
    process.kill();

    config.callbacks = upstream.with_callbacks().callbacks;
    let _process = Process::serve(&config, upstream.dir.path());
    for command in commands {
        let said = refused(&file, command).await;
        assert!(said.contains("set callbacks.public_url"), "{command:?}: {said}");
    }
    assert_eq!(json(&file, &["quarantine", "list"]).await, serde_json::json!([]));
}

#[tokio::test]
async fn an_error_of_thingspace_is_shown() {
    let upstream = upstream().await;
    let _process = Process::serve(&by_hand(&upstream), upstream.dir.path());
    let file = upstream.dir.path().join("gateway.toml");
    let body =
        r#"{"errorCode":"UnifiedWebService.REQUEST_FAILED.X","errorMessage":"m"}"#.to_owned();
    let refusal =
        What::Status { status: 400.try_into().unwrap(), content_type: "application/json", body };
    upstream.sim.inject(Fault::always(Endpoint::ListCallbacks, When::BeforeEffect, refusal));
    let said = refused(&file, &["callbacks", "list"]).await;
    assert!(said.contains(ACCOUNT) && said.contains("REQUEST_FAILED.X"), "{said}");
}
