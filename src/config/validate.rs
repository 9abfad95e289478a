//! Validates a configuration beyond its types, and reports all problems.

mod auth;
mod callbacks;
mod files;
mod store;
mod thingspace;

use std::{
    collections::{HashMap, HashSet},
    fmt::Display,
    fs,
    net::SocketAddr,
    ops::RangeInclusive,
    os::unix::{fs::FileTypeExt as _, net},
    path::Path,
    time::Duration,
};

use jiff::Timestamp;
use tracing_subscriber::EnvFilter;

use super::{
    Config, CredentialsConfig, StoreKind, TelemetryConfig,
    duration::{parse, show},
    folder_of, is_credentials_name, is_set,
    problems::Problems,
    url::{self, Url},
};
use crate::{
    certificate::{self, ServerCertificate},
    secret_file,
    telemetry::read_headers,
};

/// The connections that each set of credentials needs: one for each class of calls.
const CONNECTIONS_PER_CREDENTIALS: usize = 4;

/// Checks what every command needs: bounds, URLs and combinations of keys.
pub(super) fn bounds(config: &Config) -> Problems {
    let mut problems = Problems::default();
    let Config {
        grpc,
        auth: _,
        admin,
        thingspace,
        callbacks,
        credentials: _,
        store,
        control: _,
        polling,
        limits,
        telemetry,
        file: _,
    } = config;

    problems.front_door(config);
    problems.duration("grpc.heartbeat", grpc.heartbeat, ["100ms", "5m"]);
    problems.duration("grpc.max_deadline", grpc.max_deadline, ["1s", "10m"]);
    problems.duration("grpc.drain", grpc.drain, ["1s", "10m"]);
    problems.number("grpc.max_concurrent_streams", grpc.max_concurrent_streams, 1..=100_000);
    problems.number("grpc.max_connections", grpc.max_connections, 1..=1_000_000);
    let per_address = grpc.max_connections_per_address;
    problems.number("grpc.max_connections_per_address", per_address, 1..=1_000_000);
    problems.duration("grpc.connection_age", grpc.connection_age, ["10s", "1d"]);
    problems.duration("grpc.connection_grace", grpc.connection_grace, ["1s", "1h"]);
    problems.duration("grpc.stream_age", grpc.stream_age, ["10s", "1d"]);
    problems.duration("grpc.receive_timeout", grpc.receive_timeout, ["1s", "5m"]);
    problems.number("grpc.max_request_bytes", grpc.max_request_bytes, 16 << 20..=16 << 30);
    problems.ports(&[
        ("grpc.listen", Some(grpc.listen)),
        ("admin.listen", Some(admin.listen)),
        ("callbacks.listen", callbacks.enabled.then_some(callbacks.listen)),
    ]);
    problems.thingspace(thingspace);
    problems.callbacks(callbacks);
    problems.store(store);

    problems.duration("polling.min_age", polling.min_age, ["0s", "1h"]);
    problems.duration("polling.first", polling.first, ["10ms", "1h"]);
    problems.number("polling.factor", polling.factor, 1.0..=10.0);
    let first = ("polling.first", polling.first);
    problems.ordered(first, ("polling.max_watched", polling.max_watched), "1d");
    let max_watched = ("polling.max_watched", polling.max_watched);
    problems.ordered(max_watched, ("polling.max", polling.max), "1d");
    let max = ("polling.max", polling.max);
    problems.ordered(max, ("polling.give_up", polling.give_up), "30d");

    problems.number("limits.open_devices", limits.open_devices, 1..=10_000_000);
    problems.number("limits.closed_bytes", limits.closed_bytes, 1 << 20..=16 << 30);
    let closed_in_memory = limits.closed_in_memory;
    problems.duration("limits.closed_in_memory", closed_in_memory, ["0s", "1d"]);
    let calls = limits.caller_calls_per_second;
    problems.number("limits.caller_calls_per_second", calls, 1..=1_000_000);
    problems.number("limits.caller_watches", limits.caller_watches, 1..=1_000_000);
    problems.number("limits.caller_open_devices", limits.caller_open_devices, 1..=10_000_000);
    problems.telemetry(telemetry);
    problems
}

/// Returns warnings about settings that are allowed but probably a mistake.
pub(super) fn warnings(config: &Config) -> Problems {
    let mut warnings = Problems::default();
    let Config { grpc, thingspace, .. } = config;
    let order = thingspace.connect_timeout + thingspace.order_timeout;
    if grpc.drain < order {
        warnings.push(format!(
            "grpc.drain: {} is shorter than an order may take (thingspace.connect_timeout + \
             order_timeout, {}): an order in progress when the gateway stops may end with an \
             unknown outcome; set a longer time",
            show(grpc.drain),
            show(order)
        ));
    }
    warnings.front_door_warnings(config);
    if config.callbacks.enabled {
        warnings.authority_as_server("callbacks.tls_cert_file", config.callbacks.tls());
    }
    warnings
}

/// Checks what only `serve` needs: credentials, a store, and the files. `file` is the configuration
/// file.
pub(super) fn deployment(config: &Config, file: Option<&Path>) -> Problems {
    let mut problems = Problems::default();
    problems.credentials(&config.credentials, config.thingspace.max_connections);
    let ca_file = &config.telemetry.otlp_ca_file;
    if is_set(ca_file) {
        problems.check("telemetry.otlp_ca_file", certificate::check_authorities(ca_file));
    }
    let headers_file = &config.telemetry.otlp_headers_file;
    if is_set(headers_file) {
        problems.check("telemetry.otlp_headers_file", read_headers(headers_file));
    }
    problems.front_door_files(&config.grpc, &config.auth);
    problems.callback_files(&config.callbacks);
    problems.store_is_usable(&config.store);
    problems.check("control.socket", check_socket(config));
    problems.written_files_are_distinct(config, file);
    problems.users_are_spelled_alike(config);
    problems.callback_pair_is_distinct(config);
    problems
}

fn check_socket(config: &Config) -> Result<(), String> {
    let (path, is_named) = (config.control_socket(), is_set(&config.control.socket));
    if net::SocketAddr::from_pathname(&path).is_err() {
        return Err(if is_named {
            "is too long for a socket; use a shorter path".to_owned()
        } else {
            "is too long for a socket; shorten store.path, or set a shorter path here".to_owned()
        });
    }
    if fs::symlink_metadata(&path).is_ok_and(|found| !found.file_type().is_socket()) {
        return Err(format!(
            "{} exists and is not a socket; use another path, or remove it",
            path.display()
        ));
    }
    match (is_named, config.store.kind) {
        (true, _) => check_folder(folder_of(&path), "make it"),
        (false, StoreKind::Embedded) => Ok(()),
        (false, StoreKind::Nats) => {
            Err("is required for this kind of store; set a path that the gateway may create"
                .to_owned())
        }
    }
}

/// Checks that a folder exists and that files can be created in it. Creates a temporary file for
/// this check, because permissions alone do not show it.
fn check_folder(folder: &Path, hint: &str) -> Result<(), String> {
    if !folder.is_dir() {
        return Err(format!("the folder {} does not exist; {hint}", folder.display()));
    }
    tempfile::tempfile_in(folder).map(drop).map_err(|error| {
        format!(
            "cannot create a file in the folder {} ({error}); let the gateway's user write there",
            folder.display()
        )
    })
}

/// Parses a bound, which is written as in the configuration.
fn bound(text: &str) -> Duration {
    parse(text).expect("bounds are durations")
}

impl Problems {
    fn number<T: Copy + PartialOrd + Display>(
        &mut self,
        key: &str,
        value: T,
        range: RangeInclusive<T>,
    ) {
        if !range.contains(&value) {
            let (least, most) = range.into_inner();
            self.push(format!("{key}: {value} is out of bounds; must be {least} to {most}"));
        }
    }

    fn duration(&mut self, key: &str, value: Duration, [least, most]: [&str; 2]) {
        let least = bound(least);
        self.within((key, value), (least, show(least)), most);
    }

    /// Checks a duration whose lower bound is the value of another key.
    fn ordered(&mut self, least: (&str, Duration), value: (&str, Duration), most: &str) {
        let shown = format!("{} ({})", least.0, show(least.1));
        self.within(value, (least.1, shown), most);
    }

    fn within(
        &mut self,
        (key, value): (&str, Duration),
        (least, shown): (Duration, String),
        most: &str,
    ) {
        let most = bound(most);
        if !(least..=most).contains(&value) {
            let (value, most) = (show(value), show(most));
            self.push(format!("{key}: {value} is out of bounds; must be {shown} to {most}"));
        }
    }

    /// Checks that two files of a section are both set, or both not set.
    fn both_or_neither(&mut self, section: &str, one: (&str, &Path), other: (&str, &Path)) {
        let (missing, present) = match (is_set(one.1), is_set(other.1)) {
            (false, true) => (one.0, other.0),
            (true, false) => (other.0, one.0),
            _ => return,
        };
        self.push(format!("{section}.{missing}: is required with {present}; set both or neither"));
    }

    /// Checks that listeners have different ports. For port 0 the system chooses a free port.
    fn ports(&mut self, listeners: &[(&str, Option<SocketAddr>)]) {
        let listeners: Vec<_> =
            listeners.iter().filter_map(|(key, address)| Some((key, (*address)?))).collect();
        for (at, (key, address)) in listeners.iter().enumerate() {
            let clashes = |other: &SocketAddr| {
                let same_ip = address.ip() == other.ip()
                    || address.ip().is_unspecified()
                    || other.ip().is_unspecified();
                address.port() != 0 && address.port() == other.port() && same_ip
            };
            if let Some((first, _)) = listeners[..at].iter().find(|(_, other)| clashes(other)) {
                self.push(format!(
                    "{key}: port {} is also the port of {first}; use another one",
                    address.port()
                ));
            }
        }
    }

    fn telemetry(&mut self, telemetry: &TelemetryConfig) {
        if let Err(error) = EnvFilter::try_new(&telemetry.log_filter) {
            self.push(format!(
                "telemetry.log_filter: {:?}: {error}; write a level, or directives such as \
                 \"info,thingspace_gateway=debug\"",
                telemetry.log_filter
            ));
        }
        self.number("telemetry.trace_ratio", telemetry.trace_ratio, 0.0..=1.0);
        if !telemetry.otlp_endpoint.is_empty() {
            self.url("telemetry.otlp_endpoint", &telemetry.otlp_endpoint);
        }
    }

    fn url(&mut self, key: &str, text: &str) -> Option<Url> {
        let url = Url::parse(text, url::WEB).and_then(Url::with_usable_port);
        url.map_err(|what| self.push(format!("{key}: {what}"))).ok()
    }

    fn credentials(&mut self, credentials: &[CredentialsConfig], max_connections: usize) {
        let sets = credentials.len();
        if sets == 0 {
            self.push(
                "credentials: there are none; add a [[credentials]] section to the configuration \
                 file",
            );
        }
        let least = CONNECTIONS_PER_CREDENTIALS * sets;
        if sets > 1 && max_connections < least {
            self.push(format!(
                "thingspace.max_connections: {max_connections} is too small for {sets} sets of \
                 credentials; must be at least {least}"
            ));
        }
        let mut names = HashSet::new();
        let mut owners = HashMap::new();
        for (number, section) in (1..).zip(credentials) {
            let CredentialsConfig { name, accounts, .. } = section;
            let entry = format!("credentials #{number}");
            if !is_credentials_name(name) {
                self.push(format!(
                    "{entry}: name: must be 1 to 64 letters, digits, '-', '_' and '.', and not \
                     only dots"
                ));
            } else if !names.insert(name) {
                self.push(format!(
                    "{entry}: name: {name:?} is the name of another section; use a different one"
                ));
            }
            if accounts.is_empty() {
                self.push(format!(
                    "{entry}: accounts: there are none; list the accounts of these credentials"
                ));
            }
            for account in accounts {
                if let Some(owner) = owners.insert(account, number) {
                    self.push(format!(
                        "{entry}: accounts: {account} is already listed in credentials #{owner}; \
                         remove it from one of them"
                    ));
                }
            }
            for (key, path) in section.files() {
                self.secret_file(&format!("{entry}: {key}"), path, secret_file::check);
            }
        }
    }

    /// Checks a file that holds a secret.
    fn secret_file<T>(
        &mut self,
        key: &str,
        path: &Path,
        check: impl Fn(&Path) -> Result<T, String>,
    ) {
        self.check(key, check(path).map_err(|what| secret_file::problem(path, &what)));
    }

    /// Warns about a server's certificate that is one of an authority.
    fn authority_as_server(&mut self, key: &str, files: Option<(&Path, &Path)>) {
        if let Some((cert, _)) = files.filter(|(cert, _)| certificate::is_authority(cert)) {
            self.push(format!(
                "{key}: {} begins with a certificate of an authority (basic constraints CA:TRUE), \
                 which many clients refuse as that of a server; issue one for the server with it \
                 (CA:FALSE)",
                cert.display()
            ));
        }
    }

    /// Checks a certificate chain and its private key. A problem names the configuration key of the
    /// file that is wrong.
    fn server_certificate(
        &mut self,
        section: &str,
        (cert_key, cert): (&str, &Path),
        (key_key, key): (&str, &Path),
    ) {
        let now = Timestamp::now();
        let mut chain = certificate::check_chain(cert, now);
        if let Err(what) = certificate::check_key(key) {
            self.push(format!("{section}.{key_key}: {what}"));
        } else {
            chain = chain.and_then(|()| ServerCertificate::check(cert, key, now).map(drop));
        }
        self.check(&format!("{section}.{cert_key}"), chain);
    }
}

#[cfg(test)]
mod tests;
