//! Settings from environment variables.
//!
//! Each value is read as the type of its key, so text stays text even if it looks like a number. A
//! variable that begins with the gateway's prefix and names no key is refused, unless Kubernetes
//! sets it for a Service of the same name.

use std::collections::HashMap;

use config::{Value, ValueKind};

use super::{Problems, Setting, Table, default_of, flatten, is_list};

const PREFIX: &str = "THINGSPACE_GATEWAY";
const SEPARATOR: &str = "__";

/// The well-known variables and their keys. A later entry overrides an earlier one with the same
/// key, and the gateway's own variables override all of them.
const WELL_KNOWN: [(&str, &[&str]); 6] = [
    ("RUST_LOG", &["telemetry", "log_filter"]),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", &["telemetry", "otlp_endpoint"]),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &["telemetry", "otlp_endpoint"]),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", &["telemetry", "otlp_protocol"]),
    ("OTEL_TRACES_SAMPLER", &["telemetry", "trace_sampler"]),
    ("OTEL_TRACES_SAMPLER_ARG", &["telemetry", "trace_ratio"]),
];

/// Returns the settings. Adds a problem for each variable that names no key, or whose text does not
/// have the type of its key.
pub(super) fn settings(
    env: &HashMap<String, String>,
    defaults: &Table,
    problems: &mut Problems,
) -> Vec<Setting> {
    let mut settings = Vec::new();
    for (name, key) in WELL_KNOWN {
        let Some(text) = env.get(name).filter(|text| !text.is_empty()) else { continue };
        let key = key.iter().map(ToString::to_string).collect();
        match parsed(key, text, defaults, format!("from {name}")) {
            Ok(setting) => settings.push(setting),
            Err(problem) => problems.push(problem),
        }
    }
    let mut own: Vec<_> = env.iter().filter(|(name, _)| has_prefix(name)).collect();
    own.sort();
    for (name, text) in own {
        match setting(name, text, defaults) {
            Ok(setting) => settings.extend(setting),
            Err(problem) => problems.push(problem),
        }
    }
    settings
}

fn has_prefix(name: &str) -> bool {
    name.get(..=PREFIX.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(&format!("{PREFIX}_")))
}

/// Returns `None` for a variable that Kubernetes sets.
fn setting(name: &str, text: &str, defaults: &Table) -> Result<Option<Setting>, String> {
    let rest = &name[PREFIX.len()..];
    let Some(key) = rest.strip_prefix(SEPARATOR) else {
        let is_kubernetes = is_set_by_kubernetes(rest, text);
        return if is_kubernetes { Ok(None) } else { Err(no_such_variable(name, rest, defaults)) };
    };
    let key: Vec<String> = key.to_ascii_lowercase().split(SEPARATOR).map(str::to_owned).collect();
    let origin = format!("from {}", name.to_ascii_uppercase());
    if let Some(end) = (1..=key.len()).find(|end| is_list(&key[..*end])) {
        let list = key[..end].join(".");
        return Err(format!(
            "{list}: cannot come from the environment, because it is a list; write [[{list}]] \
             sections into the configuration file ({origin})"
        ));
    }
    let is_value = |key: &[String]| {
        default_of(defaults, key).is_some_and(|value| !matches!(value.kind, ValueKind::Table(_)))
    };
    if key.iter().any(String::is_empty) || (1..key.len()).any(|end| is_value(&key[..end])) {
        return Err(no_such_variable(name, rest, defaults));
    }
    parsed(key, text, defaults, origin).map(Some)
}

fn parsed(
    key: Vec<String>,
    text: &str,
    defaults: &Table,
    origin: String,
) -> Result<Setting, String> {
    match parse(default_of(defaults, &key), text) {
        Ok(value) => Ok(Setting { key, value, origin }),
        Err(wrong) => Err(format!("{}: {text:?} is {wrong} ({origin})", key.join("."))),
    }
}

/// Parses the text as the type of the key's default.
fn parse(default: Option<&Value>, text: &str) -> Result<Value, &'static str> {
    match default.map(|default| &default.kind) {
        Some(ValueKind::Boolean(_)) => match text.to_ascii_lowercase().as_str() {
            "true" => Ok(true.into()),
            "false" => Ok(false.into()),
            _ => Err("neither true nor false"),
        },
        Some(ValueKind::I64(_)) => {
            text.parse::<i64>().map(Value::from).map_err(|_| "not a whole number")
        }
        Some(ValueKind::Float(_)) => {
            text.parse::<f64>().map(Value::from).map_err(|_| "not a number")
        }
        _ => Ok(Value::from(text)),
    }
}

/// Whether Kubernetes sets this variable for a Service whose name begins with the prefix.
fn is_set_by_kubernetes(rest: &str, text: &str) -> bool {
    let has_port_number = rest
        .split_once("_PORT_")
        .is_some_and(|(_, number)| number.starts_with(|c: char| c.is_ascii_digit()));
    if ["_PORT", "_TCP", "_UDP", "_SCTP"].iter().any(|end| rest.ends_with(end)) {
        return ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.starts_with(scheme))
            || rest.ends_with("_SERVICE_PORT")
            || (has_port_number && rest.ends_with("_PORT"));
    }
    rest.ends_with("_SERVICE_HOST")
        || rest.contains("_SERVICE_PORT_")
        || (has_port_number && (rest.ends_with("_PROTO") || rest.ends_with("_ADDR")))
}

fn no_such_variable(name: &str, rest: &str, defaults: &Table) -> String {
    let mut keys = Vec::new();
    flatten(&[], defaults.clone(), "", &mut keys);
    let words: Vec<_> = rest.split('_').filter(|word| !word.is_empty()).collect();
    let similar = keys.iter().find(|one| one.key.join("_").eq_ignore_ascii_case(&words.join("_")));
    let hint = similar.map_or_else(
        || format!("write {PREFIX}{SEPARATOR}SECTION{SEPARATOR}KEY"),
        |one| format!("write {PREFIX}{SEPARATOR}{}", one.key.join(SEPARATOR).to_ascii_uppercase()),
    );
    format!("{name}: there is no such variable; {hint} (from the environment)")
}
