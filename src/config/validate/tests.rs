mod auth;
mod distinct;
mod files;

use std::{fs, path::PathBuf};

use tempfile::TempDir;

use super::*;
use crate::config::StoreKind;

/// A deployment without problems, and the folder of its files.
fn deployed() -> (TempDir, Config) {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, name).unwrap();
        path
    };
    let mut config = Config::defaults();
    config.store.path = folder.path().join("store.redb");
    config.credentials.push(CredentialsConfig {
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
    assert_begin(&deployment(&config, None), &[]);
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
    config.limits.closed_bytes = 1;
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
        "limits.closed_bytes: 1 is out of bounds; must be 1048576 to 17179869184",
        "limits.closed_in_memory: ",
    ];
    assert_begin(&problems, &keys);
}

#[test]
fn a_proxy_url_is_http_and_holds_no_password() {
    let mut config = Config::defaults();
    for (url, problem) in [
        ("", None),
        ("http://proxy.example.com:3128", None),
        ("https://proxy.example.com", Some("https is not supported")),
        ("http://user:secret@proxy.example.com", Some("must hold no user or password")),
        ("http://proxy.example.com:99999", Some("has a port that does not exist")),
        ("http://proxy.example.com:0", Some("has a port that does not exist")),
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
        config.grpc.allow_plaintext = false;
        let refused = bounds(&config).to_string();
        assert_eq!(
            refused.contains("every client that reaches the port can place orders on your account"),
            remote,
            "{listen}"
        );
        assert_eq!(refused.contains("grpc.allow_plaintext = true"), remote, "{listen}");
        config.grpc.allow_unauthenticated_remote_callers = true;
        config.grpc.allow_plaintext = true;
        assert_begin(&bounds(&config), &[]);
    }
}

#[test]
fn addresses_are_http_and_hold_no_secret() {
    let mut config = Config::defaults();
    for (url, begin) in [
        ("http://127.0.0.1:8080/api", None),
        ("ftp://host/api", Some("must begin with http")),
        ("http://thingspace.example/api", Some("http:// would send passwords")),
        ("https://:443/api", Some("has no valid host")),
        ("https://host:99999/api", Some("has a port that does not exist")),
        ("thingspace.verizon.com/api", Some("is not a URL")),
        ("https://user:secret@host/api", Some("must hold no user")),
        ("https://host/api?key=secret", Some("must have no query")),
        ("https://host/api#x", Some("must have no fragment")),
        ("https://thingspace.verizon.com/api/", None),
        ("https://thingspace.verizon.com", Some("must end with /api")),
        ("https://mock.thingspace.verizon.com/api/ts", Some("must end with /api")),
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
    config.telemetry.otlp_endpoint = "https://collector:99999".to_owned();
    config.telemetry.trace_ratio = 1.5;
    assert_begin(
        &bounds(&config),
        &[
            "telemetry.log_filter: ",
            "telemetry.trace_ratio: 1.5 is out of bounds; must be 0 to 1",
            "telemetry.otlp_endpoint: has a port that does not exist",
        ],
    );
    config.telemetry.trace_ratio = 1.0;
    config.telemetry.log_filter = "debug".to_owned();
    config.telemetry.otlp_endpoint = "collector".to_owned();
    assert_begin(&bounds(&config), &["telemetry.otlp_endpoint: "]);
    for endpoint in ["http://collector:4317", "https://collector:4317"] {
        config.telemetry.otlp_endpoint = endpoint.to_owned();
        assert_begin(&bounds(&config), &[]);
    }
    let (folder, mut config) = deployed();
    config.telemetry.otlp_ca_file = folder.path().join("key");
    assert_begin(&deployment(&config, None), &["telemetry.otlp_ca_file: "]);
}

#[test]
fn plain_text_to_other_machines_must_be_accepted() {
    let mut config = Config::defaults();
    config.thingspace.base_url = "http://thingspace.example/api".to_owned();
    config.thingspace.token_url = "http://10.0.0.1/token".to_owned();
    config.callbacks.public_url = "http://gateway.example".to_owned();
    config.store.nats.url = "nats://nats.example:4222,tls://b,nats://127.0.0.1".to_owned();
    let problems = bounds(&config);
    assert_begin(
        &problems,
        &[
            "thingspace.base_url: ",
            "thingspace.token_url: ",
            "callbacks.public_url: ",
            "store.nats.url: ",
        ],
    );
    for option in ["thingspace", "callbacks", "store.nats"] {
        assert!(
            problems.to_string().contains(&format!("{option}.allow_plaintext = true")),
            "{problems}"
        );
    }
    config.thingspace.allow_plaintext = true;
    config.callbacks.allow_plaintext = true;
    config.store.nats.allow_plaintext = true;
    assert_begin(&bounds(&config), &[]);
    // With a certificate or an authority, TLS is mandatory.
    config.store.nats.allow_plaintext = false;
    config.store.nats.ca_file = "ca.pem".into();
    assert_begin(&bounds(&config), &[]);
}

#[test]
fn listeners_have_different_ports() {
    let mut config = Config::defaults();
    let set = |config: &mut Config, grpc: &str, admin: &str, callbacks: &str| {
        config.grpc.listen = grpc.parse().unwrap();
        config.admin.listen = admin.parse().unwrap();
        config.callbacks.listen = callbacks.parse().unwrap();
    };
    set(&mut config, "127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1");
    assert_begin(&bounds(&config), &["admin.listen: port 1 is also the port of grpc.listen"]);
    config.callbacks.enabled = true;
    set(&mut config, "127.0.0.1:1", "127.0.0.1:2", "0.0.0.0:2");
    assert_begin(&bounds(&config), &["callbacks.listen: port 2 is also the port of admin.listen"]);
    set(&mut config, "127.0.0.1:1", "127.0.0.2:1", "[::1]:1");
    assert_begin(&bounds(&config), &[]);
    set(&mut config, "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0");
    assert_begin(&bounds(&config), &[]);
}

#[test]
fn names_are_safe_in_paths() {
    let (_folder, mut config) = deployed();
    for name in [".", "..", "...", "", "a/b", "a b", "ä"] {
        name.clone_into(&mut config.credentials[0].name);
        assert_begin(&deployment(&config, None), &["credentials #1: name: must be 1 to 64"]);
    }
    "a..b".clone_into(&mut config.credentials[0].name);
    assert_begin(&deployment(&config, None), &[]);
}

#[test]
fn a_deployment_needs_credentials_and_a_store() {
    assert_begin(
        &deployment(&Config::defaults(), None),
        &["credentials: there are none", "store.path: is required"],
    );
}

#[test]
fn the_stores_folder_must_be_there() {
    let (folder, mut config) = deployed();
    config.store.path = folder.path().join("missing/store.redb");
    assert_begin(&deployment(&config, None), &["store.path: the folder "]);
    config.store.path = folder.path().to_owned();
    assert_begin(&deployment(&config, None), &["store.path: "]);
}

#[test]
fn operators_have_a_socket() {
    let (folder, mut config) = deployed();
    assert_eq!(config.control_socket(), folder.path().join("store.redb.sock"));
    config.control.socket = folder.path().join("gateway.sock");
    assert_eq!(config.control_socket(), folder.path().join("gateway.sock"));
    assert_begin(&deployment(&config, None), &[]);
    config.control.socket = folder.path().join("missing/gateway.sock");
    assert_begin(&deployment(&config, None), &["control.socket: the folder "]);
    config.control.socket = PathBuf::new();
    config.store.kind = StoreKind::Nats;
    config.store.nats.url = "nats://127.0.0.1:4222".to_owned();
    assert_begin(&deployment(&config, None), &["control.socket: is required"]);
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
        "callbacks.tls_cert_file: is required with tls_key_file",
        "callbacks.password_file: is required with username_file",
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
        "https://a.example/x",
        "https://a.example/",
        "https://a.example/x.y/~z_1-2/",
        "https://a:9006/x",
        "https://[::1]:28200",
        "http://127.0.0.1:50551",
        "http://[::1]/x",
    ] {
        config.callbacks.public_url = good.to_owned();
        assert_begin(&bounds(&config), &[]);
    }
    let wrong = [
        ("https://a:8443", "callbacks.public_url: ThingSpace does not call port 8443"),
        ("https://a:50560/x", "callbacks.public_url: ThingSpace does not call port 50560"),
        ("https://a:99999", "callbacks.public_url: has a port that does not exist"),
        ("http://a:99999", "callbacks.public_url: has a port that does not exist"),
        ("https://:443", "callbacks.public_url: has no valid host"),
        ("http://a.example", "callbacks.public_url: with http:// the path secret"),
        ("a.example", "callbacks.public_url: must begin with http:// or https://"),
        ("https://u:p@a.example", "callbacks.public_url: must hold no user"),
        ("https://a.example/it's", "callbacks.public_url: the path may have only"),
        ("https://a.example//", "callbacks.public_url: the path may have only"),
        ("https://a.example/a//b", "callbacks.public_url: the path may have only"),
        ("https://a.example/../a", "callbacks.public_url: the path may have only"),
        ("https://a.example/a/.", "callbacks.public_url: the path may have only"),
    ];
    for (url, problem) in wrong {
        config.callbacks.public_url = url.to_owned();
        assert_begin(&bounds(&config), &[problem]);
    }
}
