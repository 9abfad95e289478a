//! Merges the defaults, the file and the environment.
//!
//! Each value is tried alone on top of the defaults. So a wrong value hides no other problem, and
//! each problem is reported with the origin of its value.

mod variables;

use std::{collections::HashMap, path::Path};

use config::{Config as Layer, ConfigError, File, FileFormat, Map, Source, Value, ValueKind};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    AllowConfig, Config, CredentialsConfig, OtlpSignals, duration, problems::Problems, validate,
};

const DEFAULTS: &str = include_str!("../config.default.toml");

/// A valid `[[credentials]]` section, on which single values are tried.
const CREDENTIALS: &str = r#"
    name = ""
    accounts = []
    key_file = ""
    secret_file = ""
    username_file = ""
    password_file = ""
"#;

/// A valid `[[auth.allow]]` section.
const ALLOW: &str = "
    callers = []
    methods = []
    accounts = []
";

type Table = Map<String, Value>;

/// The path of a configuration file, and its content.
pub(super) type FileTable<'a> = (&'a Path, Table);

/// One value from the file or the environment.
struct Setting {
    key: Vec<String>,
    value: Value,
    /// Where the value comes from, as problems say it: "in FILE" or "from VARIABLE".
    origin: String,
}

/// Merges all layers. A key with a problem keeps its default.
pub(super) fn merge(
    file: Option<FileTable<'_>>,
    env: &HashMap<String, String>,
) -> (Config, Problems) {
    let defaults = parse_toml(DEFAULTS).expect("the compiled-in defaults are tested");
    let mut problems = Problems::default();
    let mut settings = Vec::new();
    if let Some((path, table)) = file {
        flatten(&[], table, &format!("in {}", path.display()), &mut settings);
    }
    settings.extend(variables::settings(env, &defaults, &mut problems));
    // Gives the problems a fixed order. The sort is stable, so the environment still overrides the
    // file.
    settings.sort_by(|one, other| one.key.cmp(&other.key));

    let mut merged = defaults.clone();
    for Setting { key, value, origin } in settings {
        let (usable, wrong) = check(&defaults, &key, value, &origin);
        if let Some(usable) = usable {
            set(&mut merged, &key, usable);
        }
        for problem in wrong {
            problems.push(problem);
        }
    }
    let mut config = Config::deserialize(Value::new(None, merged))
        .expect("each value was tried on the defaults");
    if env.get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        config.telemetry.otlp_endpoint.clear();
        config.telemetry.metrics = false;
    }
    let is_set = |name| env.get(name).is_some_and(|value| !value.is_empty());
    if is_set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") && !is_set("OTEL_EXPORTER_OTLP_ENDPOINT") {
        // That collector may accept nothing else.
        config.telemetry.otlp_signals = OtlpSignals { traces: true, metrics: false, logs: false };
    }
    (config, problems)
}

pub(super) fn parse(path: &Path, text: &str) -> Result<Table, Problems> {
    parse_toml(text).map_err(|error| {
        Problems::one(format!("{}: {}", path.display(), explain_syntax(&error, text)))
    })
}

/// Returns where the syntax of a text is wrong, and why. The parser's own text quotes the line,
/// which may hold a secret.
fn explain_syntax(error: &ConfigError, text: &str) -> String {
    let ConfigError::FileParse { cause, .. } = error else { return error.to_string() };
    let Some(error) = cause.downcast_ref::<toml::de::Error>() else { return cause.to_string() };
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("line {line}, column {column}: {}", error.message())
}

fn parse_toml(text: &str) -> Result<Table, ConfigError> {
    Layer::builder().add_source(File::from_str(text, FileFormat::Toml)).build()?.collect()
}

/// Whether the key is that of a list of sections.
fn is_list(key: &[String]) -> bool {
    key == ["credentials"] || key == ["auth", "allow"]
}

/// Lists the values of a table and of the tables in it. A list of sections stays one value, because
/// its sections have no defaults.
fn flatten(prefix: &[String], table: Table, origin: &str, settings: &mut Vec<Setting>) {
    for (name, value) in table {
        let key = [prefix, &[name]].concat();
        match value.kind {
            ValueKind::Table(inner) if !inner.is_empty() && !is_list(&key) => {
                flatten(&key, inner, origin, settings);
            }
            _ => settings.push(Setting { key, value, origin: origin.to_owned() }),
        }
    }
}

/// Returns the usable part of a value, and its problems. Ignores all other values.
fn check(
    defaults: &Table,
    key: &[String],
    value: Value,
    origin: &str,
) -> (Option<Value>, Vec<String>) {
    let name = key.join(".");
    if is_list(key) && matches!(value.kind, ValueKind::Table(_)) {
        return (None, vec![format!("{name}: is a list of sections; write [[{name}]] ({origin})")]);
    }
    if is_list(key)
        && let ValueKind::Array(sections) = &value.kind
    {
        let checked = sections.iter().zip(1..).map(|(one, number)| match &*name {
            "credentials" => {
                check_section::<CredentialsConfig>(&name, CREDENTIALS, one, number, origin)
            }
            _ => check_section::<AllowConfig>(&name, ALLOW, one, number, origin),
        });
        let (sections, wrong): (Vec<_>, Vec<_>) = checked.unzip();
        let sections: Vec<Value> = sections.into_iter().flatten().collect();
        return (Some(Value::new(None, sections)), wrong.concat());
    }
    let default = default_of(defaults, key);
    if let Some(wrong) = default.and_then(|default| kind_mismatch(&default.kind, &value.kind)) {
        return (None, vec![format!("{name}: {wrong} ({origin})")]);
    }
    let mut trial = defaults.clone();
    set(&mut trial, key, value.clone());
    let wrong = try_read::<Config>(trial, origin, |unknown| unknown.unwrap_or(&name).to_owned());
    if wrong.is_empty() {
        return (Some(value), wrong);
    }
    match bounds_of(defaults, key) {
        Some(bounds) => (None, vec![format!("{name}: {} {bounds} ({origin})", value.kind)]),
        None => (None, wrong),
    }
}

/// Returns the message about a whole number that is out of bounds, without the number. A number
/// that does not fit its type never reaches the validation of bounds. So the message is taken from
/// the validation of 0, which is out of bounds for all of these keys.
fn bounds_of(defaults: &Table, key: &[String]) -> Option<String> {
    if !matches!(default_of(defaults, key)?.kind, ValueKind::I64(_)) {
        return None;
    }
    let mut trial = defaults.clone();
    set(&mut trial, key, 0.into());
    let config = Config::deserialize(Value::new(None, trial)).ok()?;
    let begin = format!("{}: 0 ", key.join("."));
    let bounds = validate::bounds(&config);
    bounds.iter().find_map(|problem| problem.strip_prefix(&begin)).map(str::to_owned)
}

fn default_of<'a>(defaults: &'a Table, key: &[String]) -> Option<&'a Value> {
    let (first, rest) = key.split_first()?;
    let value = defaults.get(first)?;
    match &value.kind {
        _ if rest.is_empty() => Some(value),
        ValueKind::Table(inner) => default_of(inner, rest),
        _ => None,
    }
}

/// Returns what is wrong with the type of a value, if the default has another type. Deserializing
/// would convert the value silently: 10.7 to 10, true to 1, 5 to "5".
fn kind_mismatch(default: &ValueKind, value: &ValueKind) -> Option<String> {
    use ValueKind::{Boolean, Float, I64, I128, String, Table, U64, U128};
    match (default, value) {
        (Table(_), value) if !matches!(value, Table(_)) => {
            Some("is a section and has no value of its own; set its keys".to_owned())
        }
        (Boolean(_), value) if !matches!(value, Boolean(_)) => {
            Some(format!("{value} is neither true nor false"))
        }
        (I64(_), Float(number)) if number.fract() == 0.0 => None,
        (I64(_), value) if !matches!(value, I64(_) | I128(_) | U64(_) | U128(_)) => {
            Some(format!("{value} is not a whole number"))
        }
        (Float(_), value) if !matches!(value, I64(_) | Float(_)) => {
            Some(format!("{value} is not a number"))
        }
        // The deserializer of durations gives a better hint.
        (String(text), value) if !matches!(value, String(_)) && duration::parse(text).is_none() => {
            Some("is not text; write it in quotes".to_owned())
        }
        _ => None,
    }
}

/// Returns a section of a list with placeholders for wrong and missing values, and its problems.
fn check_section<T: DeserializeOwned>(
    list: &str,
    valid: &str,
    section: &Value,
    number: usize,
    origin: &str,
) -> (Option<Value>, Vec<String>) {
    let name = format!("{list} #{number}");
    let ValueKind::Table(section) = &section.kind else {
        return (None, vec![format!("{name}: is not a section; write [[{list}]] ({origin})")]);
    };
    let valid = parse_toml(valid).expect("the placeholder section is valid");
    let unknown = section.keys().filter(|key| !valid.contains_key(*key));
    let mut keys: Vec<_> = valid.keys().chain(unknown).collect();
    keys.sort();
    let mut problems = Vec::new();
    let mut usable = valid.clone();
    for key in keys {
        let Some(value) = section.get(key) else {
            problems.push(format!("{name}: {key} is missing ({origin})"));
            continue;
        };
        let expects_list = matches!(valid.get(key), Some(Value { kind: ValueKind::Array(_), .. }));
        let mismatch = valid.get(key).and_then(|of| kind_mismatch(&of.kind, &value.kind));
        let wrong = if expects_list && !matches!(value.kind, ValueKind::Array(_)) {
            vec![format!("{name}: {key}: is no list; write {key} = [\"…\"] ({origin})")]
        } else if let Some(mismatch) = mismatch {
            vec![format!("{name}: {key}: {mismatch} ({origin})")]
        } else {
            check_value::<T>(&valid, key, value, origin, &name)
        };
        if wrong.is_empty() {
            usable.insert(key.clone(), value.clone());
        }
        problems.extend(wrong);
    }
    (Some(Value::new(None, usable)), problems)
}

/// Returns the problems of one value in a section. Tries each element of a list alone.
fn check_value<T: DeserializeOwned>(
    valid: &Table,
    key: &str,
    value: &Value,
    origin: &str,
    name: &str,
) -> Vec<String> {
    let try_one = |value: Value| {
        let mut trial = valid.clone();
        trial.insert(key.to_owned(), value);
        try_read::<T>(trial, origin, |unknown| {
            unknown.map_or_else(|| name.to_owned(), |unknown| format!("{name}: {unknown}"))
        })
    };
    let ValueKind::Array(elements) = &value.kind else { return try_one(value.clone()) };
    if elements.len() < 2 {
        return try_one(value.clone());
    }
    let problems = elements.iter().enumerate().flat_map(|(at, element)| {
        let wrong = try_one(Value::new(None, vec![element.clone()]));
        wrong.into_iter().map(move |line| line.replacen("[0]: ", &format!("[{at}]: "), 1))
    });
    problems.collect()
}

/// Deserializes a table, and returns a problem for each unknown key and for the first error. `name`
/// returns the subject of a problem. It gets the unknown key, or `None` for an error.
fn try_read<'de, T: Deserialize<'de>>(
    table: Table,
    origin: &str,
    name: impl Fn(Option<&str>) -> String,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let outcome: Result<T, _> = serde_ignored::deserialize(Value::new(None, table), |key| {
        wrong.push(format!("{}: there is no such key ({origin})", name(Some(&key.to_string()))));
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

/// Sets a value. An empty table does not replace a table that is already there.
fn set(table: &mut Table, key: &[String], value: Value) {
    let is_table = |value: &Value| matches!(value.kind, ValueKind::Table(_));
    match key {
        [] => {}
        [last] => {
            if !is_table(&value) || !table.get(last).is_some_and(is_table) {
                table.insert(last.clone(), value);
            }
        }
        [first, rest @ ..] => {
            let inner = table.entry(first.clone()).or_insert_with(|| Table::new().into());
            if !is_table(inner) {
                *inner = Table::new().into();
            }
            if let ValueKind::Table(inner) = &mut inner.kind {
                set(inner, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests;
