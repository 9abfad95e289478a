//! Lays file and environment over the defaults.
//!
//! Each value given is first tried alone on the defaults, so that one wrong value hides no other and every problem is
//! named with the place it comes from.

use std::{collections::HashMap, path::Path};

use config::{Config as Layer, ConfigError, Environment, File, FileFormat, Map, Source, Value, ValueKind};
use serde::Deserialize;

use super::{Config, Credentials, problems::Problems};

const DEFAULTS: &str = include_str!("../config.default.toml");
const PREFIX: &str = "THINGSPACE_GATEWAY";
const SEPARATOR: &str = "__";

/// An entry of `[[credentials]]` in the right shape.
const CREDENTIALS: &str = r#"
    name = ""
    accounts = []
    key_file = ""
    secret_file = ""
    username_file = ""
    password_file = ""
"#;

/// Variables with names of their own, and the key each stands for. The later of two wins, ours wins over all.
const FOREIGN: [(&str, &[&str]); 3] = [
    ("RUST_LOG", &["telemetry", "log_filter"]),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", &["telemetry", "otlp_endpoint"]),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &["telemetry", "otlp_endpoint"]),
];

/// A file, and what is in it.
pub(super) type Read<'a> = (&'a Path, Map<String, Value>);

/// One value given by the user.
struct Given {
    path: Vec<String>,
    value: Value,
    origin: String,
}

/// The configuration as far as it can be read, and what cannot. A value with a problem is left at its default.
pub(super) fn merge(file: Option<Read<'_>>, env: &HashMap<String, String>) -> (Config, Problems) {
    let defaults = parse_toml(DEFAULTS).expect("the compiled-in defaults are tested");
    let mut problems = Problems::default();
    let mut given = Vec::new();
    if let Some((path, table)) = file {
        leaves(&[], table, &format!("in {}", path.display()), &mut given);
    }
    given.extend(from_environment(env));
    // Tables and the environment have no order; what is reported has. It is stable: the environment stays behind the file.
    given.sort_by(|one, other| one.path.cmp(&other.path));

    let mut merged = defaults.clone();
    for Given { path, value, origin } in given {
        let wrong = try_alone(&defaults, &path, &value, &origin);
        if wrong.is_empty() {
            set(&mut merged, &path, value);
        }
        for problem in wrong {
            problems.push(problem);
        }
    }
    let mut config =
        Config::deserialize(Value::new(None, merged)).expect("each value was tried on the defaults");
    if env.get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        config.telemetry.otlp_endpoint.clear();
    }
    (config, problems)
}

/// A file's table. One that is not TOML has no other problems: nothing of it was read.
pub(super) fn parse(path: &Path, text: &str) -> Result<Map<String, Value>, Problems> {
    parse_toml(text).map_err(|error| Problems::one(format!("{}: {error}", path.display())))
}

fn parse_toml(text: &str) -> Result<Map<String, Value>, ConfigError> {
    Layer::builder().add_source(File::from_str(text, FileFormat::Toml)).build()?.collect()
}

/// The values of a table, with their paths. `credentials` is one value: its entries have no defaults to be tried on.
fn leaves(path: &[String], table: Map<String, Value>, origin: &str, given: &mut Vec<Given>) {
    for (key, value) in table {
        let path = [path, &[key]].concat();
        match value.kind {
            ValueKind::Table(inner) if !inner.is_empty() && path != ["credentials"] => {
                leaves(&path, inner, origin, given);
            }
            _ => given.push(Given { path, value, origin: origin.to_owned() }),
        }
    }
}

fn from_environment(env: &HashMap<String, String>) -> impl Iterator<Item = Given> {
    let foreign = FOREIGN.into_iter().filter_map(|(name, path)| {
        let value = env.get(name).filter(|value| !value.is_empty())?;
        let path = path.iter().map(ToString::to_string).collect();
        Some(Given { path, value: Value::from(value.as_str()), origin: format!("from {name}") })
    });
    let ours = Environment::with_prefix(PREFIX)
        .prefix_separator(SEPARATOR)
        .separator(SEPARATOR)
        .try_parsing(true)
        .source(Some(env.clone()))
        .collect()
        .expect("a map of text can be collected");
    foreign.chain(ours.into_iter().map(|(key, value)| {
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        let origin = format!("from {PREFIX}{SEPARATOR}{}", path.join(SEPARATOR).to_uppercase());
        Given { path, value, origin }
    }))
}

/// What is wrong with a value on its own.
fn try_alone(defaults: &Map<String, Value>, path: &[String], value: &Value, origin: &str) -> Vec<String> {
    if let ([section], ValueKind::Array(entries)) = (path, &value.kind)
        && section == "credentials"
    {
        return entries
            .iter()
            .zip(1..)
            .flat_map(|(entry, number)| try_credentials(entry, number, origin))
            .collect();
    }
    let mut trial = defaults.clone();
    set(&mut trial, path, value.clone());
    read::<Config>(Value::new(None, trial), origin, |unknown| match unknown {
        Some(unknown) => unknown.to_owned(),
        None => path.join("."),
    })
}

/// What is wrong with an entry of `[[credentials]]`: each value is tried on an entry that is right.
fn try_credentials(entry: &Value, number: usize, origin: &str) -> Vec<String> {
    let name = format!("credentials #{number}");
    let ValueKind::Table(entry) = &entry.kind else {
        return vec![format!("{name}: is not a section; write [[credentials]] ({origin})")];
    };
    let right = parse_toml(CREDENTIALS).expect("an entry that is right");
    let mut keys: Vec<_> = right.keys().chain(entry.keys().filter(|key| !right.contains_key(*key))).collect();
    keys.sort();
    keys.into_iter()
        .flat_map(|key| match entry.get(key) {
            None => vec![format!("{name}: {key} is missing ({origin})")],
            Some(value) => {
                let mut trial = right.clone();
                trial.insert(key.clone(), value.clone());
                read::<Credentials>(Value::new(None, trial), origin, |unknown| match unknown {
                    Some(unknown) => format!("{name}: {unknown}"),
                    None => name.clone(),
                })
            }
        })
        .collect()
}

/// Deserializes, and tells the keys nobody asked for and the first error. `name` names an unknown key, or what was
/// deserialized.
fn read<'de, T: Deserialize<'de>>(
    value: Value,
    origin: &str,
    name: impl Fn(Option<&str>) -> String,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let outcome: Result<T, _> = serde_ignored::deserialize(value, |path| {
        wrong.push(format!("{}: there is no such key ({origin})", name(Some(&path.to_string()))));
    });
    if let Err(error) = outcome {
        wrong.push(format!("{}: {} ({origin})", name(None), explain(&error)));
    }
    wrong
}

fn explain(error: &ConfigError) -> String {
    match error {
        ConfigError::Type { unexpected, expected, .. } => format!("{unexpected} is not {expected}"),
        ConfigError::At { error, key: Some(key), .. } if !key.contains('.') => {
            format!("{key}: {}", explain(error))
        }
        ConfigError::At { error, .. } => explain(error),
        ConfigError::NotFound(key) => format!("{key} is missing"),
        other => other.to_string(),
    }
}

/// Puts a value at its path. A table given empty changes nothing where one is.
fn set(table: &mut Map<String, Value>, path: &[String], value: Value) {
    match path {
        [] => {}
        [key] => {
            let keeps = matches!(value.kind, ValueKind::Table(_))
                && matches!(table.get(key).map(|there| &there.kind), Some(ValueKind::Table(_)));
            if !keeps {
                table.insert(key.clone(), value);
            }
        }
        [key, rest @ ..] => {
            let inner =
                table.entry(key.clone()).or_insert_with(|| Value::new(None, Map::<String, Value>::new()));
            if !matches!(inner.kind, ValueKind::Table(_)) {
                *inner = Value::new(None, Map::<String, Value>::new());
            }
            if let ValueKind::Table(inner) = &mut inner.kind {
                set(inner, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests;
