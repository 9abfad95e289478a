use std::{fs, path::PathBuf};

use tempfile::TempDir;

use super::*;
use crate::config::StoreKind;

/// A deployment without a problem, and the folder its files are in.
fn deployed() -> (TempDir, Config) {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, name).unwrap();
        path
    };
    let mut config = Config::defaults();
    config.store.path = folder.path().join("store.redb");
    config.credentials.push(Credentials {
        name: "main".to_owned(),
        accounts: vec!["0000123456-00001".to_owned().try_into().unwrap()],
        key_file: file("key"),
        secret_file: file("secret"),
        username_file: file("username"),
        password_file: file("password"),
    });
    (folder, config)
}

fn lines(problems: &Problems) -> Vec<&str> {
    problems.iter().collect()
}

#[track_caller]
fn assert_begin(problems: &Problems, begins: &[&str]) {
    let lines = lines(problems);
    assert_eq!(lines.len(), begins.len(), "{lines:#?}");
    for (line, begin) in lines.iter().zip(begins) {
        assert!(line.starts_with(begin), "{line:?} does not begin with {begin:?}");
    }
}

#[test]
fn defaults_and_a_plain_deployment_have_no_problem() {
    assert_begin(&bounds(&Config::defaults()), &[]);
    let (_folder, config) = deployed();
    assert_begin(&bounds(&config), &[]);
    assert_begin(&deployment(&config), &[]);
}

#[test]
fn every_bound_is_checked() {
    let mut config = Config::defaults();
    let long = Duration::from_hours(24 * 1000);
    config.grpc.heartbeat = Duration::ZERO;
    config.grpc.max_deadline = long;
    config.grpc.drain = long;
    config.grpc.max_concurrent_streams = 0;
    config.thingspace.connect_timeout = Duration::ZERO;
    config.thingspace.call_timeout = long;
    config.thingspace.order_timeout = Duration::ZERO;
    config.thingspace.login_backoff_first = Duration::ZERO;
    config.thingspace.login_backoff_max = long;
    config.thingspace.calls_per_second = 0;
    config.thingspace.max_devices_per_order = 10_001;
    config.thingspace.max_connections = 3;
    config.thingspace.breaker_failures = 0;
    config.thingspace.breaker_first = Duration::ZERO;
    config.thingspace.breaker_max = long;
    config.store.retention = Duration::ZERO;
    config.store.nats.replicas = 2;
    config.store.nats.prefix = "a.b".to_owned();
    config.store.nats.max_bytes = 1;
    config.polling.min_age = long;
    config.polling.first = Duration::ZERO;
    config.polling.factor = f64::NAN;
    config.polling.max_watched = long;
    config.polling.max = Duration::from_secs(1);
    config.polling.give_up = Duration::ZERO;
    config.limits.open_devices = 0;
    config.limits.closed_in_memory = long;
    let problems = bounds(&config);
    let keys = [
        "grpc.heartbeat: 0s is out of bounds; must be 100ms to 5m",
        "grpc.max_deadline: ",
        "grpc.drain: ",
        "grpc.max_concurrent_streams: 0 is out of bounds; must be 1 to 100000",
        "thingspace.connect_timeout: ",
        "thingspace.call_timeout: ",
        "thingspace.order_timeout: ",
        "thingspace.login_backoff_first: 0s is out of bounds; must be 100ms to 1h",
        "thingspace.login_backoff_max: ",
        "thingspace.calls_per_second: ",
        "thingspace.max_devices_per_order: 10001 is out of bounds",
        "thingspace.max_connections: 3 is out of bounds; must be 4 to 10000",
        "thingspace.breaker_failures: 0 is out of bounds; must be 1 to 100",
        "thingspace.breaker_first: 0s is out of bounds; must be 10ms to 1m",
        "thingspace.breaker_max: ",
        "store.retention: ",
        "store.nats.replicas: 2 is out of bounds; must be 1, 3 or 5",
        "store.nats.prefix: must be 1 to 32",
        "store.nats.max_bytes: 1 is out of bounds",
        "polling.min_age: ",
        "polling.first: ",
        "polling.factor: NaN is out of bounds",
        "polling.max_watched: ",
        "polling.max: ",
        "polling.give_up: ",
        "limits.open_devices: ",
        "limits.closed_in_memory: ",
    ];
    assert_begin(&problems, &keys);
}

#[test]
fn a_proxy_is_spoken_to_in_plain_text_and_holds_no_password() {
    let mut config = Config::defaults();
    for (url, problem) in [
        ("", None),
        ("http://proxy.example.com:3128", None),
        ("https://proxy.example.com", Some("https is not supported")),
        ("http://user:secret@proxy.example.com", Some("must hold no user or password")),
        ("proxy.example.com:3128", Some("must begin with http:// or https://")),
    ] {
        url.clone_into(&mut config.thingspace.proxy_url);
        let begin = problem.map(|problem| format!("thingspace.proxy_url: {problem}"));
        let begin: Vec<_> = begin.iter().map(String::as_str).collect();
        assert_begin(&bounds(&config), &begin);
    }
}

#[test]
fn intervals_grow() {
    let mut config = Config::defaults();
    config.polling.max_watched = Duration::from_secs(1);
    config.polling.max = Duration::from_millis(500);
    assert_begin(
        &bounds(&config),
        &[
            "polling.max_watched: 1s is out of bounds; must be polling.first (2s) to 24h",
            "polling.max: 500ms is out of bounds; must be polling.max_watched (1s) to 24h",
        ],
    );
}

#[test]
fn only_loopback_unless_the_risk_is_accepted() {
    let mut config = Config::defaults();
    for (listen, remote) in [
        ("0.0.0.0:1", true),
        ("[::]:1", true),
        ("10.0.0.1:1", true),
        ("127.0.0.9:1", false),
        ("[::1]:1", false),
    ] {
        config.grpc.listen = listen.parse().unwrap();
        config.grpc.allow_unauthenticated_remote_callers = false;
        let refused = bounds(&config).to_string();
        assert_eq!(
            refused.contains("anybody who reaches the port can order on your account"),
            remote,
            "{listen}"
        );
        config.grpc.allow_unauthenticated_remote_callers = true;
        assert_begin(&bounds(&config), &[]);
    }
}

#[test]
fn addresses_are_http_and_hold_no_secret() {
    let mut config = Config::defaults();
    for (url, begin) in [
        ("http://127.0.0.1:8080/api", None),
        ("ftp://host/api", Some("must begin with http")),
        ("thingspace.verizon.com/api", Some("is not a URL")),
        ("https://user:secret@host/api", Some("must hold no user")),
        ("https://host/api?key=secret", Some("must have no query")),
        ("https://host/api#x", Some("must have no fragment")),
        ("", Some("is not a URL")),
    ] {
        config.thingspace.base_url = url.to_owned();
        let problems = bounds(&config);
        let expected: Vec<String> =
            begin.map(|begin| format!("thingspace.base_url: {begin}")).into_iter().collect();
        assert_begin(&problems, &expected.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(!problems.to_string().contains("secret"), "{problems}");
    }
}

#[test]
fn telemetry_is_checked_before_it_starts() {
    let mut config = Config::defaults();
    config.telemetry.log_filter = "info,thingspace_gateway=loud".to_owned();
    config.telemetry.otlp_endpoint = "https://collector:4317".to_owned();
    assert_begin(
        &bounds(&config),
        &["telemetry.log_filter: ", "telemetry.otlp_endpoint: https is not supported"],
    );
    config.telemetry.log_filter = "debug".to_owned();
    config.telemetry.otlp_endpoint = "collector".to_owned();
    assert_begin(&bounds(&config), &["telemetry.otlp_endpoint: "]);
}

#[test]
fn a_deployment_needs_credentials_and_a_store() {
    assert_begin(
        &deployment(&Config::defaults()),
        &["credentials: there are none", "store.path: is required"],
    );
}

#[test]
fn credentials_are_unique_and_their_files_there() {
    let (folder, mut config) = deployed();
    let mut second = config.credentials[0].clone();
    fs::write(&second.secret_file, "").unwrap();
    second.key_file = folder.path().join("missing");
    second.password_file = folder.path().to_owned();
    config.credentials.push(second);
    let mut third = config.credentials[1].clone();
    third.name = "a name".to_owned();
    third.accounts.clear();
    config.credentials[0].secret_file = config.credentials[0].key_file.clone();
    third.key_file = config.credentials[0].key_file.clone();
    third.secret_file = third.key_file.clone();
    third.password_file = third.key_file.clone();
    config.credentials.push(third);
    assert_begin(
        &deployment(&config),
        &[
            "credentials #2: name: \"main\" is taken",
            "credentials #2: accounts: 0000123456-00001 is already listed in credentials #1",
            "credentials #2: key_file: ",
            "credentials #2: secret_file: ",
            "credentials #2: password_file: ",
            "credentials #3: name: must be 1 to 64",
            "credentials #3: accounts: there are none",
        ],
    );
}

#[test]
fn the_stores_folder_must_be_there() {
    let (folder, mut config) = deployed();
    config.store.path = folder.path().join("missing/store.redb");
    assert_begin(&deployment(&config), &["store.path: the folder "]);
    config.store.path = folder.path().to_owned();
    assert_begin(&deployment(&config), &["store.path: "]);
}

#[test]
fn operators_have_a_socket() {
    let (folder, mut config) = deployed();
    assert_eq!(config.control_socket(), folder.path().join("store.redb.sock"));
    config.control.socket = folder.path().join("gateway.sock");
    assert_eq!(config.control_socket(), folder.path().join("gateway.sock"));
    assert_begin(&deployment(&config), &[]);
    config.control.socket = folder.path().join("missing/gateway.sock");
    assert_begin(&deployment(&config), &["control.socket: the folder "]);
    config.control.socket = PathBuf::new();
    config.store.kind = StoreKind::Nats;
    config.store.nats.url = "nats://127.0.0.1:4222".to_owned();
    assert_begin(&deployment(&config), &["control.socket: is required"]);
}

#[test]
fn nats_needs_servers_and_its_files_but_no_path() {
    let (folder, mut config) = deployed();
    config.store.kind = StoreKind::Nats;
    config.store.path = PathBuf::new();
    let problems = ["store.nats.url: is required", "control.socket: is required"];
    assert_begin(&deployment(&config), &problems);
    config.control.socket = folder.path().join("gateway.sock");
    config.store.nats.url = "nats://a:4222, tls://b:4222".to_owned();
    assert_begin(&deployment(&config), &[]);
    assert_begin(&bounds(&config), &[]);
    assert_eq!(config.store.nats.servers(), ["nats://a:4222", "tls://b:4222"]);

    config.store.nats.creds_file = folder.path().join("missing");
    config.store.nats.cert_file = folder.path().to_owned();
    assert_begin(&deployment(&config), &["store.nats.creds_file: ", "store.nats.cert_file: "]);
    config.store.nats.url = "http://a,nats://user:password@b,nats://c/d,,nats://e".to_owned();
    let problems = [
        "store.nats.url: must begin with nats:// or tls://",
        "store.nats.url: must hold no user or password",
        "store.nats.url: must have no path",
        "store.nats.url: is not a URL",
        "store.nats: cert_file and key_file belong together",
    ];
    assert_begin(&bounds(&config), &problems);
}

#[test]
fn callbacks_are_all_or_nothing() {
    let mut config = Config::defaults();
    config.callbacks.register = true;
    config.callbacks.service = "Device Profile".to_owned();
    config.callbacks.tls_key_file = "key.pem".into();
    config.callbacks.username_file = "username".into();
    config.callbacks.grace = Duration::from_hours(1);
    config.callbacks.password_grace = Duration::from_hours(24 * 365);
    config.callbacks.recheck = Duration::ZERO;
    let problems = [
        "callbacks.register: there is no listener",
        "callbacks.public_url: is required",
        "callbacks.service: ",
        "callbacks.tls_cert_file: is required beside tls_key_file",
        "callbacks.password_file: is required beside username_file",
        "callbacks.grace: 1h is out of bounds; must be 0s to 5m",
        "callbacks.password_grace: ",
        "callbacks.recheck: 0s is out of bounds; must be 1s to 24h",
    ];
    assert_begin(&bounds(&config), &problems);
}

#[test]
fn thingspace_calls_only_certain_ports() {
    let mut config = Config::defaults();
    for good in [
        "https://a.example",
        "http://a.example/x",
        "https://a:9006/x",
        "https://[::1]:28200",
        "http://a:50551",
    ] {
        config.callbacks.public_url = good.to_owned();
        assert_begin(&bounds(&config), &[]);
    }
    let wrong = [
        ("https://a:8443", "callbacks.public_url: ThingSpace does not call port 8443"),
        ("http://a:50560/x", "callbacks.public_url: ThingSpace does not call port 50560"),
        ("a.example", "callbacks.public_url: must begin with http:// or https://"),
        ("https://u:p@a.example", "callbacks.public_url: must hold no user"),
    ];
    for (url, problem) in wrong {
        config.callbacks.public_url = url.to_owned();
        assert_begin(&bounds(&config), &[problem]);
    }
}

#[test]
fn files_of_callbacks_must_be_there_when_they_are_taken() {
    let (folder, mut config) = deployed();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key"));
    (config.callbacks.tls_cert_file, config.callbacks.tls_key_file) = (cert, key);
    assert_begin(&deployment(&config), &[]);
    config.callbacks.enabled = true;
    assert_begin(&deployment(&config), &["callbacks.tls_cert_file: "]);
}
