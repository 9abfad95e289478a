//! Lays file and environment over the defaults.
//!
//! Each value given is first tried alone on the defaults, so that one wrong value hides no other
//! and every problem is named with the place it comes from.

mod variables;

use std::{collections::HashMap, path::Path};

use config::{Config as Layer, ConfigError, File, FileFormat, Map, Source, Value, ValueKind};
use serde::Deserialize;

use super::{Config, CredentialsConfig, duration, problems::Problems, validate};

const DEFAULTS: &str = include_str!("../config.default.toml");

/// An entry of `[[credentials]]` in the right shape.
const CREDENTIALS: &str = r#"
    name = ""
    accounts = []
    key_file = ""
    secret_file = ""
    username_file = ""
    password_file = ""
"#;

/// A file, and what is in it.
pub(super) type Read<'a> = (&'a Path, Map<String, Value>);

/// One value given by the user.
struct Given {
    path: Vec<String>,
    value: Value,
    origin: String,
}

/// The configuration as far as it can be read, and what cannot. A value with a problem is left at
/// its default.
pub(super) fn merge(file: Option<Read<'_>>, env: &HashMap<String, String>) -> (Config, Problems) {
    let defaults = parse_toml(DEFAULTS).expect("the compiled-in defaults are tested");
    let mut problems = Problems::default();
    let mut given = Vec::new();
    if let Some((path, table)) = file {
        leaves(&[], table, &format!("in {}", path.display()), &mut given);
    }
    given.extend(variables::given(env, &defaults, &mut problems));
    // Tables and the environment have no order; what is reported has. It is stable: the environment
    // stays behind the file.
    given.sort_by(|one, other| one.path.cmp(&other.path));

    let mut merged = defaults.clone();
    for Given { path, value, origin } in given {
        let (right, wrong) = right_part(&defaults, &path, value, &origin);
        if let Some(right) = right {
            set(&mut merged, &path, right);
        }
        for problem in wrong {
            problems.push(problem);
        }
    }
    let mut config = Config::deserialize(Value::new(None, merged))
        .expect("each value was tried on the defaults");
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

/// The values of a table, with their paths. `credentials` is one value: its entries have no
/// defaults to be tried on.
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

/// What of a value can be used, and what is wrong with the value on its own.
fn right_part(
    defaults: &Map<String, Value>,
    path: &[String],
    value: Value,
    origin: &str,
) -> (Option<Value>, Vec<String>) {
    if let ([section], ValueKind::Array(entries)) = (path, &value.kind)
        && section == "credentials"
    {
        let (entries, wrong): (Vec<_>, Vec<_>) = entries
            .iter()
            .zip(1..)
            .map(|(entry, number)| right_credentials(entry, number, origin))
            .unzip();
        let entries: Vec<Value> = entries.into_iter().flatten().collect();
        return (Some(Value::new(None, entries)), wrong.into_iter().flatten().collect());
    }
    let key = || path.join(".");
    if let Some(wrong) =
        default(defaults, path).and_then(|default| other_kind(&default.kind, &value.kind))
    {
        return (None, vec![format!("{}: {wrong} ({origin})", key())]);
    }
    let mut trial = defaults.clone();
    set(&mut trial, path, value.clone());
    let wrong = read::<Config>(Value::new(None, trial), origin, |unknown| match unknown {
        Some(unknown) => unknown.to_owned(),
        None => key(),
    });
    if !wrong.is_empty()
        && let Some(bounds) = bounds(defaults, path)
    {
        return (None, vec![format!("{}: {} {bounds} ({origin})", key(), value.kind)]);
    }
    (wrong.is_empty().then_some(value), wrong)
}

/// What is said of a whole number that is out of bounds, as 0 is for each of them. A number that
/// its type cannot hold never gets to where bounds are checked.
fn bounds(defaults: &Map<String, Value>, path: &[String]) -> Option<String> {
    if !matches!(default(defaults, path)?.kind, ValueKind::I64(_)) {
        return None;
    }
    let mut trial = defaults.clone();
    set(&mut trial, path, 0.into());
    let config = Config::deserialize(Value::new(None, trial)).ok()?;
    let begin = format!("{}: 0 ", path.join("."));
    validate::bounds(&config)
        .iter()
        .find_map(|problem| problem.strip_prefix(&begin))
        .map(str::to_owned)
}

/// The default of a key.
fn default<'a>(defaults: &'a Map<String, Value>, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let value = defaults.get(first)?;
    match &value.kind {
        _ if rest.is_empty() => Some(value),
        ValueKind::Table(inner) => default(inner, rest),
        _ => None,
    }
}

/// Why a value is not of its default's kind. Deserializing would convert it without a word: 10.7 to
/// 10, true to 1, 5 to "5".
fn other_kind(default: &ValueKind, given: &ValueKind) -> Option<String> {
    use ValueKind::{Boolean, Float, I64, I128, String, Table, U64, U128};
    match (default, given) {
        (Table(_), given) if !matches!(given, Table(_)) => {
            Some("is a section and has no value of its own; set its keys".to_owned())
        }
        (Boolean(_), given) if !matches!(given, Boolean(_)) => {
            Some(format!("{given} is neither true nor false"))
        }
        (I64(_), Float(number)) if number.fract() == 0.0 => None,
        (I64(_), given) if !matches!(given, I64(_) | I128(_) | U64(_) | U128(_)) => {
            Some(format!("{given} is not a whole number"))
        }
        (Float(_), given) if !matches!(given, I64(_) | Float(_)) => {
            Some(format!("{given} is not a number"))
        }
        // Of a duration its own type says more.
        (String(text), given) if !matches!(given, String(_)) && duration::parse(text).is_none() => {
            Some("is not text; write it in quotes".to_owned())
        }
        _ => None,
    }
}

/// An entry of `[[credentials]]` with placeholders for the values that are wrong or missing, and
/// what is wrong with it: each value is tried on an entry that is right.
fn right_credentials(entry: &Value, number: usize, origin: &str) -> (Option<Value>, Vec<String>) {
    let name = format!("credentials #{number}");
    let ValueKind::Table(entry) = &entry.kind else {
        return (None, vec![format!("{name}: is not a section; write [[credentials]] ({origin})")]);
    };
    let mut right = parse_toml(CREDENTIALS).expect("an entry that is right");
    let mut keys: Vec<_> =
        right.keys().chain(entry.keys().filter(|key| !right.contains_key(*key))).collect();
    keys.sort();
    let keys: Vec<String> = keys.into_iter().cloned().collect();
    let mut problems = Vec::new();
    let mut usable = right.clone();
    for key in keys {
        let Some(value) = entry.get(&key) else {
            problems.push(format!("{name}: {key} is missing ({origin})"));
            continue;
        };
        let wrong = try_credential(&mut right, &key, value, origin, &name);
        if wrong.is_empty() {
            usable.insert(key, value.clone());
        }
        problems.extend(wrong);
    }
    (Some(Value::new(None, usable)), problems)
}

/// What is wrong with one value of an entry. Every element of a list is tried alone.
fn try_credential(
    right: &mut Map<String, Value>,
    key: &str,
    value: &Value,
    origin: &str,
    name: &str,
) -> Vec<String> {
    let elements = match &value.kind {
        ValueKind::Array(elements) if elements.len() > 1 => elements.as_slice(),
        _ => std::slice::from_ref(value),
    };
    let whole = elements.len() == 1;
    let mut problems = Vec::new();
    for (at, element) in elements.iter().enumerate() {
        let value = if whole { element.clone() } else { Value::new(None, vec![element.clone()]) };
        let before = right.insert(key.to_owned(), value);
        let wrong = read::<CredentialsConfig>(Value::new(None, right.clone()), origin, |unknown| {
            match unknown {
                Some(unknown) => format!("{name}: {unknown}"),
                None => name.to_owned(),
            }
        });
        // The element was tried as the only one.
        problems
            .extend(wrong.into_iter().map(|line| line.replacen("[0]: ", &format!("[{at}]: "), 1)));
        match before {
            Some(before) => right.insert(key.to_owned(), before),
            None => right.remove(key),
        };
    }
    problems
}

/// Deserializes, and tells the keys nobody asked for and the first error. `name` names an unknown
/// key, or what was deserialized.
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
            let inner = table
                .entry(key.clone())
                .or_insert_with(|| Value::new(None, Map::<String, Value>::new()));
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
