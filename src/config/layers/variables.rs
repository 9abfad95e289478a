//! What the environment says about the configuration.
//!
//! A value is read as its key wants it: text stays text, also where it looks like a number. A
//! variable that begins like one of ours and names no key is a mistake that must not pass silently,
//! except for those that Kubernetes sets for a Service of the same name.

use std::collections::HashMap;

use config::{Map, Value, ValueKind};

use super::{Given, Problems, default, leaves};

const PREFIX: &str = "THINGSPACE_GATEWAY";
const SEPARATOR: &str = "__";

/// Variables with names of their own, and the key each stands for. The later of two wins, ours wins
/// over all.
const FOREIGN: [(&str, &[&str]); 3] = [
    ("RUST_LOG", &["telemetry", "log_filter"]),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", &["telemetry", "otlp_endpoint"]),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &["telemetry", "otlp_endpoint"]),
];

/// The values that the environment gives. What is wrong with the variables themselves is a problem.
pub(super) fn given(
    env: &HashMap<String, String>,
    defaults: &Map<String, Value>,
    problems: &mut Problems,
) -> Vec<Given> {
    let foreign = FOREIGN.into_iter().filter_map(|(name, path)| {
        let value = env.get(name).filter(|value| !value.is_empty())?;
        let path = path.iter().map(ToString::to_string).collect();
        Some(Given { path, value: Value::from(value.as_str()), origin: format!("from {name}") })
    });
    let mut given: Vec<_> = foreign.collect();
    let mut ours: Vec<_> = env.iter().filter(|(name, _)| begins_like_ours(name)).collect();
    ours.sort();
    for (name, text) in ours {
        match one(name, text, defaults) {
            Ok(Some(one)) => given.push(one),
            Ok(None) => {}
            Err(problem) => problems.push(problem),
        }
    }
    given
}

fn begins_like_ours(name: &str) -> bool {
    name.get(..=PREFIX.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(&format!("{PREFIX}_")))
}

/// `None`: the variable is Kubernetes's.
fn one(name: &str, text: &str, defaults: &Map<String, Value>) -> Result<Option<Given>, String> {
    let rest = &name[PREFIX.len()..];
    let Some(path) = rest.strip_prefix(SEPARATOR) else {
        return if of_a_service(rest, text) {
            Ok(None)
        } else {
            Err(no_such(name, rest, defaults))
        };
    };
    let path: Vec<String> = path.to_ascii_lowercase().split(SEPARATOR).map(str::to_owned).collect();
    let origin = format!("from {}", name.to_ascii_uppercase());
    if path[0] == "credentials" {
        return Err(format!(
            "credentials: cannot come from the environment, which holds no lists; write [[credentials]] into the \
             configuration file ({origin})"
        ));
    }
    let is_value = |path: &[String]| {
        default(defaults, path).is_some_and(|value| !matches!(value.kind, ValueKind::Table(_)))
    };
    if path.iter().any(String::is_empty) || (1..path.len()).any(|end| is_value(&path[..end])) {
        return Err(no_such(name, rest, defaults));
    }
    match typed(default(defaults, &path), text) {
        Ok(value) => Ok(Some(Given { path, value, origin })),
        Err(wrong) => Err(format!("{}: {text:?} is {wrong} ({origin})", path.join("."))),
    }
}

/// The text as its key wants it.
fn typed(default: Option<&Value>, text: &str) -> Result<Value, &'static str> {
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

/// Whether Kubernetes sets such a variable for a Service whose name begins like ours.
fn of_a_service(rest: &str, text: &str) -> bool {
    let address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.starts_with(scheme));
    if rest.ends_with("_PORT")
        || rest.ends_with("_TCP")
        || rest.ends_with("_UDP")
        || rest.ends_with("_SCTP")
    {
        return address
            || rest.ends_with("_SERVICE_PORT")
            || (numbered(rest) && rest.ends_with("_PORT"));
    }
    rest.ends_with("_SERVICE_HOST")
        || rest.contains("_SERVICE_PORT_")
        || (numbered(rest) && (rest.ends_with("_PROTO") || rest.ends_with("_ADDR")))
}

/// Like `_PORT_50051_TCP_ADDR`.
fn numbered(rest: &str) -> bool {
    rest.split_once("_PORT_")
        .is_some_and(|(_, number)| number.starts_with(|c: char| c.is_ascii_digit()))
}

fn no_such(name: &str, rest: &str, defaults: &Map<String, Value>) -> String {
    let mut keys = Vec::new();
    leaves(&[], defaults.clone(), "", &mut keys);
    let words: Vec<_> = rest.split('_').filter(|word| !word.is_empty()).collect();
    let written = words.join("_");
    let meant = keys.iter().find(|key| key.path.join("_").eq_ignore_ascii_case(&written));
    let hint = match meant {
        Some(key) => {
            format!("write {PREFIX}{SEPARATOR}{}", key.path.join(SEPARATOR).to_ascii_uppercase())
        }
        None => {
            format!("variables of the gateway are written {PREFIX}{SEPARATOR}SECTION{SEPARATOR}KEY")
        }
    };
    format!("{name}: there is no such variable; {hint} (from the environment)")
}
