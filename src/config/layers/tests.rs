use std::{collections::BTreeSet, path::Path, time::Duration};

use super::*;
use crate::config::TraceSampler;

fn env<const N: usize>(pairs: [(&str, &str); N]) -> HashMap<String, String> {
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

fn merged(file: &str, env: &HashMap<String, String>) -> Result<Config, Problems> {
    let path = Path::new("gateway.toml");
    let (config, problems) = merge(Some((path, parse(path, file)?)), env);
    if problems.0.is_empty() { Ok(config) } else { Err(problems) }
}

fn from_file(text: &str) -> Result<Config, Problems> {
    merged(text, &env([]))
}

/// The problems, sorted, because tables have no order.
fn problems(outcome: Result<Config, Problems>) -> Vec<String> {
    let mut lines: Vec<_> = outcome.unwrap_err().iter().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn the_defaults_file_has_every_key_and_no_other() {
    let keys = |text: &str| -> BTreeSet<String> {
        let mut settings = Vec::new();
        flatten(&[], parse_toml(text).unwrap(), "", &mut settings);
        settings
            .into_iter()
            .map(|one| one.key.join("."))
            .filter(|key| key != "credentials" && key != "auth.allow")
            .collect()
    };
    assert_eq!(keys(DEFAULTS), keys(&Config::defaults().to_string()));
}

#[test]
fn the_credentials_section_shown_in_the_defaults_is_right() {
    let shown: Vec<_> = DEFAULTS
        .lines()
        .skip_while(|line| *line != "# [[credentials]]")
        .take_while(|line| line.starts_with('#'))
        .filter_map(|line| line.strip_prefix("# "))
        .collect();
    let config = from_file(&shown.join("\n")).unwrap();
    assert_eq!(config.credentials[0].accounts[0].as_str(), "0000123456-00001");
}

#[test]
fn a_printed_configuration_can_be_loaded() {
    let printed = from_file("[polling]\nfactor = 2\nfirst = \"1m 30s\"").unwrap().to_string();
    assert_eq!(from_file(&printed).unwrap().to_string(), printed);
}

/// The line may hold a secret in a wrong place.
#[test]
fn an_error_of_syntax_has_its_place_and_does_not_quote_the_line() {
    for (text, place) in [
        ("[grpc]\npassword = \"hunter2", "line 2, column 20: "),
        ("password = hunter2 3", "line 1, column 12: "),
        ("[grpc]\n# ä\npassword hunter2", "line 3, column "),
        ("listen = 1\nlisten = \"hunter2\"", "line 2, column 1: "),
    ] {
        let told = problems(from_file(text));
        let [told] = &told[..] else { panic!("{told:?}") };
        assert!(told.starts_with(&format!("gateway.toml: {place}")), "{told}");
        assert!(!told.contains("hunter2") && !told.contains('\n'), "{told}");
    }
}

#[test]
fn a_value_or_a_section_that_should_be_a_list_is_told_so() {
    for (text, expected) in [
        (
            "[auth.allow]\ncallers = [\"token:a\"]",
            "auth.allow: is a list of sections; write [[auth.allow]] (in gateway.toml)",
        ),
        (
            "[[auth.allow]]\ncallers = \"token:a\"\nmethods = [\"*\"]\naccounts = [\"*\"]",
            "auth.allow #1: callers: is no list; write callers = [\"…\"] (in gateway.toml)",
        ),
    ] {
        assert_eq!(problems(from_file(text)), [expected]);
    }
}

#[test]
fn file_over_defaults_and_environment_over_file() {
    let file = "[grpc]\nlisten = \"127.0.0.1:1\"\nreflection = true\n[store]\npath = \"a.redb\"";
    let env = env([
        ("THINGSPACE_GATEWAY__GRPC__LISTEN", "[::1]:2"),
        ("THINGSPACE_GATEWAY__GRPC__HEARTBEAT", "1m 30s"),
        ("THINGSPACE_GATEWAY__GRPC__ALLOW_UNAUTHENTICATED_REMOTE_CALLERS", "true"),
        ("THINGSPACE_GATEWAY__THINGSPACE__CALLS_PER_SECOND", "50"),
        ("THINGSPACE_GATEWAY__POLLING__FACTOR", "2"),
        ("THINGSPACE_GATEWAY__TELEMETRY__LOG_FORMAT", "json"),
        ("THINGSPACE_GATEWAY__STORE__NATS__PREFIX", "007"),
        ("THINGSPACE_GATEWAY_PORT", "tcp://10.0.0.1:50051"),
        ("THINGSPACE_GATEWAY_SERVICE_HOST", "10.0.0.1"),
        ("THINGSPACE_GATEWAY_SERVICE_PORT", "50051"),
        ("THINGSPACE_GATEWAY_SERVICE_PORT_GRPC", "50051"),
        ("THINGSPACE_GATEWAY_CALLBACKS_PORT_28200_TCP", "tcp://10.0.0.1:28200"),
        ("THINGSPACE_GATEWAY_CALLBACKS_PORT_28200_TCP_PROTO", "tcp"),
        ("THINGSPACE_GATEWAY_CALLBACKS_PORT_28200_TCP_PORT", "28200"),
        ("THINGSPACE_GATEWAY_CALLBACKS_PORT_28200_TCP_ADDR", "10.0.0.1"),
    ]);
    let config = merged(file, &env).unwrap();
    assert_eq!(config.grpc.listen.to_string(), "[::1]:2");
    assert_eq!(config.grpc.heartbeat, Duration::from_secs(90));
    assert!(config.grpc.allow_unauthenticated_remote_callers);
    assert!(config.grpc.reflection);
    assert_eq!(config.thingspace.calls_per_second, 50);
    assert!((config.polling.factor - 2.0).abs() < f64::EPSILON);
    assert_eq!(config.telemetry.log_format, super::super::LogFormat::Json);
    assert_eq!(config.store.path, Path::new("a.redb"));
    assert_eq!(config.store.nats.prefix, "007");
    assert_eq!(config.polling.first, Config::defaults().polling.first);
}

#[test]
fn well_known_variables_set_keys() {
    let endpoint = |pairs: &[(&str, &str)]| {
        let env =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        merge(None, &env).0.telemetry.otlp_endpoint
    };
    let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4317");
    let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:4317");
    let ours = ("THINGSPACE_GATEWAY__TELEMETRY__OTLP_ENDPOINT", "http://ours:4317");
    assert_eq!(endpoint(&[]), "");
    assert_eq!(endpoint(&[all]), "http://all:4317");
    assert_eq!(endpoint(&[traces, all]), "http://traces:4317");
    assert_eq!(endpoint(&[traces, all, ours]), "http://ours:4317");
    assert_eq!(endpoint(&[traces, ("OTEL_SDK_DISABLED", "True")]), "");
    assert_eq!(endpoint(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), "");
    let filter = merge(None, &env([("RUST_LOG", "debug")])).0.telemetry.log_filter;
    assert_eq!(filter, "debug");
    let sampler = [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")];
    let telemetry = merge(None, &env(sampler)).0.telemetry;
    assert_eq!(telemetry.trace_sampler, TraceSampler::ParentBasedTraceIdRatio);
    let ratio = merge(None, &env([("OTEL_TRACES_SAMPLER_ARG", "0.5")])).0.telemetry.trace_ratio;
    assert!((ratio - 0.5).abs() < f64::EPSILON);
    let wrong =
        env([("OTEL_TRACES_SAMPLER", "jaeger_remote"), ("OTEL_TRACES_SAMPLER_ARG", "half")]);
    let lines = problems(merged("", &wrong));
    let [ratio, sampler] = &lines[..] else { panic!("{lines:#?}") };
    assert!(sampler.contains("write \"orders\" or \"always_on\" or "), "{sampler}");
    assert_eq!(
        ratio,
        "telemetry.trace_ratio: \"half\" is not a number (from OTEL_TRACES_SAMPLER_ARG)"
    );
}

#[test]
fn every_wrong_value_is_reported_with_its_place() {
    let file = r#"
        [grpc]
        listen = "localhost"
        max_concurrent_streams = -1
        [thingspace]
        call_timeout = 30
        [store]
        kind = "postgres"
        [[credentials]]
        name = "a"
        [[credentials]]
        name = "b"
        accounts = ["b/1"]
        key_file = "k"
        secret_file = "s"
        username_file = "u"
        password_file = "p"
    "#;
    let env = env([("THINGSPACE_GATEWAY__POLLING__FIRST", "soon")]);
    let lines = problems(merged(file, &env));
    let begins = [
        "credentials #1: accounts is missing (in gateway.toml)",
        "credentials #1: key_file is missing",
        "credentials #1: password_file is missing",
        "credentials #1: secret_file is missing",
        "credentials #1: username_file is missing",
        "credentials #2: accounts",
        "grpc.listen: ",
        "grpc.max_concurrent_streams: ",
        "polling.first: \"soon\" is not a duration; write it with a unit",
        "store.kind: \"postgres\" is unknown; write \"embedded\" or \"nats\"",
        "thingspace.call_timeout: ",
    ];
    assert_eq!(lines.len(), begins.len(), "{lines:#?}");
    for (line, begin) in lines.iter().zip(begins) {
        assert!(line.starts_with(begin), "{line:?} does not begin with {begin:?}");
        let place = if begin.starts_with("polling") {
            "(from THINGSPACE_GATEWAY__POLLING__FIRST)"
        } else {
            "(in gateway.toml)"
        };
        assert!(line.ends_with(place), "{line}");
    }
}

#[test]
fn valid_values_are_checked_although_others_cannot_be_read() {
    let file =
        "[grpc]\nheartbeat = \"5h\"\nlisten = \"x\"\n[store]\npath = []\n[[credentials]]\nname = 1";
    let (config, mut problems) =
        merge(Some((Path::new("gateway.toml"), parse_toml(file).unwrap())), &env([]));
    assert_eq!(config.grpc.heartbeat, Duration::from_hours(5));
    assert_eq!(config.grpc.listen, Config::defaults().grpc.listen);
    problems.append(super::super::validate::bounds(&config));
    problems.append(super::super::validate::deployment(&config, None));
    let keys: BTreeSet<_> = problems.iter().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(
        keys,
        BTreeSet::from(["credentials #1", "grpc.heartbeat", "grpc.listen", "store.path"])
    );
}

#[test]
fn every_unknown_key_is_reported_with_its_place() {
    let file = r#"
        heartbeat = "25s"
        [grpc]
        listn = "127.0.0.1:1"
        [polling.watched]
        max = "60s"
        [nats]
        [[credentials]]
        name = "a"
        acounts = ["0000123456-00001"]
        accounts = ["0000123456-00001"]
        key_file = "k"
        secret_file = "s"
        username_file = "u"
        password_file = "p"
    "#;
    let env = env([("THINGSPACE_GATEWAY__STORE__PAHT", "x"), ("THINGSPACE_GATEWAY__LISTEN", "x")]);
    let lines = problems(merged(file, &env));
    let expected = [
        "credentials #1: acounts: there is no such key (in gateway.toml)",
        "grpc.listn: there is no such key (in gateway.toml)",
        "heartbeat: there is no such key (in gateway.toml)",
        "listen: there is no such key (from THINGSPACE_GATEWAY__LISTEN)",
        "nats: there is no such key (in gateway.toml)",
        "polling.watched: there is no such key (in gateway.toml)",
        "store.paht: there is no such key (from THINGSPACE_GATEWAY__STORE__PAHT)",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_section_in_the_wrong_shape_is_one_problem() {
    assert_eq!(problems(from_file("grpc = 1")).len(), 1);
    assert_eq!(problems(from_file("[credentials]\nname = \"a\"\naccounts = []")).len(), 1);
    assert_eq!(problems(from_file("[grpc\n")).len(), 1);
    assert!(from_file("[grpc]\n[store]").is_ok());
}

/// For example with a single underscore between section and key.
#[test]
fn a_variable_with_the_prefix_that_names_no_key_is_refused() {
    let lines = problems(merged(
        "",
        &env([
            ("THINGSPACE_GATEWAY_GRPC_LISTEN", "127.0.0.1:1"),
            ("THINGSPACE_GATEWAY_STORE_NATS_MAX_BYTES", "1"),
            ("THINGSPACE_GATEWAY_PORT", "50051"),
            ("THINGSPACE_GATEWAY_LISTEN", "127.0.0.1:1"),
            ("THINGSPACE_GATEWAY__AUTH__ALLOW", "[]"),
            ("THINGSPACE_GATEWAY__CREDENTIALS__0__NAME", "main"),
            ("THINGSPACE_GATEWAY__GRPC__LISTEN__", "127.0.0.1:1"),
            ("THINGSPACE_GATEWAY__GRPC__LISTEN__PORT", "1"),
        ]),
    ));
    let unknown = |hint: &str| format!("there is no such variable; {hint} (from the environment)");
    let shape = "write THINGSPACE_GATEWAY__SECTION__KEY";
    let expected = [
        format!(
            "THINGSPACE_GATEWAY_GRPC_LISTEN: {}",
            unknown("write THINGSPACE_GATEWAY__GRPC__LISTEN")
        ),
        format!("THINGSPACE_GATEWAY_LISTEN: {}", unknown(shape)),
        format!("THINGSPACE_GATEWAY_PORT: {}", unknown(shape)),
        format!(
            "THINGSPACE_GATEWAY_STORE_NATS_MAX_BYTES: {}",
            unknown("write THINGSPACE_GATEWAY__STORE__NATS__MAX_BYTES")
        ),
        format!(
            "THINGSPACE_GATEWAY__GRPC__LISTEN__: {}",
            unknown("write THINGSPACE_GATEWAY__GRPC__LISTEN")
        ),
        format!("THINGSPACE_GATEWAY__GRPC__LISTEN__PORT: {}", unknown(shape)),
        "auth.allow: cannot come from the environment, because it is a list; write [[auth.allow]] \
         sections into the configuration file (from THINGSPACE_GATEWAY__AUTH__ALLOW)"
            .to_owned(),
        "credentials: cannot come from the environment, because it is a list; write \
         [[credentials]] sections into the configuration file (from \
         THINGSPACE_GATEWAY__CREDENTIALS__0__NAME)"
            .to_owned(),
    ];
    assert_eq!(lines, expected);
}

/// The problem is the same if the type of the key cannot hold the number.
#[test]
fn the_problem_of_a_number_out_of_bounds_names_the_bounds() {
    let file = "[grpc]\nmax_concurrent_streams = 5000000000\n[limits]\nclosed_bytes = -1\n\
                [store.nats]\nreplicas = -3";
    let env = env([("THINGSPACE_GATEWAY__THINGSPACE__MAX_CONNECTIONS", "-1")]);
    let expected = [
        "grpc.max_concurrent_streams: 5000000000 is out of bounds; must be 1 to 100000 (in \
         gateway.toml)",
        "limits.closed_bytes: -1 is out of bounds; must be 1048576 to 17179869184 (in \
         gateway.toml)",
        "store.nats.replicas: -3 is out of bounds; must be 1, 3 or 5 (in gateway.toml)",
        "thingspace.max_connections: -1 is out of bounds; must be 4 to 10000 (from \
         THINGSPACE_GATEWAY__THINGSPACE__MAX_CONNECTIONS)",
    ];
    assert_eq!(problems(merged(file, &env)), expected);
}

#[test]
fn nothing_is_converted_silently() {
    let file = "[grpc]\nreflection = 1\n[thingspace]\ncalls_per_second = 10.7\n\
                max_connections = true\n\
                max_devices_per_order = \"10\"\nbreaker_failures = 3.0\n\
                [store]\npath = 5\n[polling]\nfactor = \"2\"\nmin_age = 1";
    let env = env([
        ("THINGSPACE_GATEWAY__LIMITS__OPEN_DEVICES", "1e3"),
        ("THINGSPACE_GATEWAY__CALLBACKS__ENABLED", "yes"),
    ]);
    let (config, problems) =
        merge(Some((Path::new("gateway.toml"), parse_toml(file).unwrap())), &env);
    let keys: BTreeSet<_> = problems.iter().map(|line| line.split(": ").next().unwrap()).collect();
    let expected = [
        "grpc.reflection",
        "thingspace.calls_per_second",
        "thingspace.max_connections",
        "thingspace.max_devices_per_order",
        "store.path",
        "polling.factor",
        "polling.min_age",
        "limits.open_devices",
        "callbacks.enabled",
    ];
    assert_eq!(keys, BTreeSet::from(expected), "{problems}");
    assert_eq!(config.thingspace.breaker_failures, 3);
}

#[test]
fn a_value_of_the_wrong_type_in_a_section_is_named() {
    let file = r#"
        [[credentials]]
        name = "main"
        accounts = ["0000123456-00001"]
        key_file = ["a"]
        secret_file = ["a", "b"]
        username_file = 5
        password_file = { path = "d" }
        [grpc]
        listen = ["127.0.0.1:0"]
    "#;
    let (_, problems) =
        merge(Some((Path::new("gateway.toml"), parse_toml(file).unwrap())), &env([]));
    for key in ["key_file", "secret_file", "username_file", "password_file"] {
        let expected = format!("credentials #1: {key}: is not text; write it in quotes (");
        let found = problems.iter().filter(|line| line.starts_with(&expected)).count();
        assert_eq!(found, 1, "{key}: {problems}");
    }
    assert!(problems.iter().any(|line| line.starts_with("grpc.listen: is not text")), "{problems}");
    assert_eq!(problems.iter().count(), 5, "{problems}");
}

/// For example, a wrong account does not hide that the files of the credentials are missing.
#[test]
fn a_wrong_value_of_credentials_hides_no_other_problem() {
    let file = r#"
        [[credentials]]
        name = ".."
        accounts = ["b/1", "0000123456-00001", "c/2"]
        key_file = "/nowhere/a"
        secret_file = "/nowhere/b"
        username_file = 5
        [[credentials]]
        name = "b"
        accounts = ["0000123456-00002"]
        key_file = "/nowhere/a"
        secret_file = "/nowhere/b"
        username_file = "/nowhere/c"
        password_file = "/nowhere/d"
    "#;
    let (config, mut problems) =
        merge(Some((Path::new("gateway.toml"), parse_toml(file).unwrap())), &env([]));
    problems.append(super::super::validate::deployment(&config, None));
    let begins = |begin: &str| problems.iter().filter(|line| line.starts_with(begin)).count();
    assert_eq!(begins("credentials #1: accounts"), 2, "{problems}");
    for key in [
        "credentials #1: name",
        "credentials #1: key_file",
        "credentials #1: secret_file",
        "credentials #1: password_file",
        "credentials #2: key_file",
        "credentials #2: secret_file",
        "credentials #2: username_file",
        "credentials #2: password_file",
    ] {
        assert_eq!(begins(key), 1, "{key}: {problems}");
    }
}

#[test]
fn a_wrong_account_or_section_or_address_is_reported_once_with_a_hint() {
    let file = r#"
        grpc = 5
        [admin]
        listen = "localhost:9464"
        [[credentials]]
        name = "a"
        accounts = ["b/1"]
        key_file = "/dev/null"
        secret_file = "/dev/null"
        username_file = "/dev/null"
        password_file = "/dev/null"
    "#;
    let env = env([("THINGSPACE_GATEWAY__POLLING", "x")]);
    let (config, mut problems) =
        merge(Some((Path::new("gateway.toml"), parse_toml(file).unwrap())), &env);
    problems.append(super::super::validate::deployment(&config, None));
    let about =
        |begin: &str| problems.iter().filter(|line| line.starts_with(begin)).collect::<Vec<_>>();
    assert_eq!(about("credentials #1: accounts").len(), 1, "{problems}");
    assert_eq!(
        about("grpc"),
        ["grpc: is a section and has no value of its own; set its keys (in gateway.toml)"]
    );
    assert_eq!(about("polling").len(), 1, "{problems}");
    assert!(
        about("polling")[0].ends_with("set its keys (from THINGSPACE_GATEWAY__POLLING)"),
        "{problems}"
    );
    let hint =
        "admin.listen: \"localhost:9464\" is not an IP address and a port; write for example";
    assert!(about("admin.listen")[0].starts_with(hint), "{problems}");
}
