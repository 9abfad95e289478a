//! What a configuration must be, beyond its types. Reports everything that is wrong, never only the
//! first.

mod callbacks;
mod files;
mod store;

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
    Config, CredentialsConfig, StoreKind, TelemetryConfig, ThingSpaceConfig,
    duration::show,
    problems::Problems,
    url::{self, Url},
};
use crate::{
    certificate::{self, ServerCertificate},
    secret_file,
};

const DAY: Duration = Duration::from_hours(24);

const HEARTBEAT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(5);
const MAX_DEADLINE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_mins(10);
const DRAIN: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_mins(10);
const MAX_CONCURRENT_STREAMS: RangeInclusive<u32> = 1..=100_000;

const CONNECT_TIMEOUT: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_mins(1);
const CALL_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(5);
const ORDER_TIMEOUT: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_mins(10);
const LOGIN_BACKOFF_FIRST: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_hours(1);
const CALLS_PER_SECOND: RangeInclusive<u32> = 1..=10_000;
const MAX_DEVICES_PER_ORDER: RangeInclusive<usize> = 1..=10_000;
const MAX_CONNECTIONS: RangeInclusive<usize> = 4..=10_000;
/// What each set of credentials needs of `thingspace.max_connections`: one for each class of calls.
const CONNECTIONS_PER_SET: usize = 4;
const BREAKER_FAILURES: RangeInclusive<u32> = 1..=100;
const BREAKER_FIRST: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_mins(1);
const BREAKER_AT_MOST: Duration = Duration::from_mins(5);

/// The domain of ThingSpace's own hosts.
const VERIZON: &str = "verizon.com";

const MIN_AGE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(1);
const FIRST: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_hours(1);
const FACTOR: RangeInclusive<f64> = 1.0..=10.0;
const GIVE_UP_AT_MOST: Duration = Duration::from_hours(24 * 30);

const OPEN_DEVICES: RangeInclusive<usize> = 1..=10_000_000;
const CLOSED_BYTES: RangeInclusive<usize> = 1 << 20..=16 << 30;
const CLOSED_IN_MEMORY: RangeInclusive<Duration> = Duration::ZERO..=DAY;

/// What every gateway needs.
pub(super) fn bounds(config: &Config) -> Problems {
    let mut problems = Problems::default();
    let Config {
        grpc,
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

    if !grpc.listen.ip().is_loopback() && !grpc.allow_unauthenticated_remote_callers {
        problems.push(format!(
            "grpc.listen: {} is not loopback, and callers are not authenticated: anybody who reaches the port can \
             order on your account. Listen on 127.0.0.1, or accept that risk with \
             grpc.allow_unauthenticated_remote_callers = true",
            grpc.listen
        ));
    }
    problems.duration("grpc.heartbeat", grpc.heartbeat, &HEARTBEAT);
    problems.duration("grpc.max_deadline", grpc.max_deadline, &MAX_DEADLINE);
    problems.duration("grpc.drain", grpc.drain, &DRAIN);
    problems.number(
        "grpc.max_concurrent_streams",
        grpc.max_concurrent_streams,
        &MAX_CONCURRENT_STREAMS,
    );

    problems.ports(&[
        ("grpc.listen", Some(grpc.listen)),
        ("admin.listen", Some(admin.listen)),
        ("callbacks.listen", callbacks.enabled.then_some(callbacks.listen)),
    ]);

    problems.base_url(thingspace);
    if !thingspace.token_url.is_empty() {
        problems.thingspace_url("thingspace.token_url", &thingspace.token_url, thingspace);
    }
    problems.duration("thingspace.connect_timeout", thingspace.connect_timeout, &CONNECT_TIMEOUT);
    problems.duration("thingspace.call_timeout", thingspace.call_timeout, &CALL_TIMEOUT);
    problems.duration("thingspace.order_timeout", thingspace.order_timeout, &ORDER_TIMEOUT);
    let (first, most) = (thingspace.login_backoff_first, thingspace.login_backoff_max);
    problems.duration("thingspace.login_backoff_first", first, &LOGIN_BACKOFF_FIRST);
    problems.ordered(
        "thingspace.login_backoff_max",
        most,
        "thingspace.login_backoff_first",
        first,
        DAY,
    );
    problems.number("thingspace.calls_per_second", thingspace.calls_per_second, &CALLS_PER_SECOND);
    problems.number(
        "thingspace.max_devices_per_order",
        thingspace.max_devices_per_order,
        &MAX_DEVICES_PER_ORDER,
    );

    problems.number("thingspace.max_connections", thingspace.max_connections, &MAX_CONNECTIONS);
    problems.breaker(thingspace);
    problems.proxy("thingspace.proxy_url", &thingspace.proxy_url);

    problems.callbacks(callbacks);

    problems.store(store);

    problems.duration("polling.min_age", polling.min_age, &MIN_AGE);
    problems.duration("polling.first", polling.first, &FIRST);
    problems.number("polling.factor", polling.factor, &FACTOR);
    problems.ordered(
        "polling.max_watched",
        polling.max_watched,
        "polling.first",
        polling.first,
        DAY,
    );
    problems.ordered("polling.max", polling.max, "polling.max_watched", polling.max_watched, DAY);
    problems.ordered(
        "polling.give_up",
        polling.give_up,
        "polling.max",
        polling.max,
        GIVE_UP_AT_MOST,
    );

    problems.number("limits.open_devices", limits.open_devices, &OPEN_DEVICES);
    problems.number("limits.closed_bytes", limits.closed_bytes, &CLOSED_BYTES);
    problems.duration("limits.closed_in_memory", limits.closed_in_memory, &CLOSED_IN_MEMORY);

    problems.telemetry(telemetry);
    problems
}

/// What may be meant so, and is unlikely to be.
pub(super) fn warnings(config: &Config) -> Problems {
    let mut warnings = Problems::default();
    let Config { grpc, thingspace, .. } = config;
    let order = thingspace.connect_timeout + thingspace.order_timeout;
    if grpc.drain < order {
        warnings.push(format!(
            "grpc.drain: {} is shorter than an order may take (thingspace.connect_timeout + order_timeout, {}): the \
             outcome of an order under way when the gateway stops may stay unknown",
            show(grpc.drain),
            show(order)
        ));
    }
    warnings
}

/// What `serve` needs on top: credentials and a store. `file` is the configuration's.
pub(super) fn deployment(config: &Config, file: Option<&Path>) -> Problems {
    let mut problems = Problems::default();
    if config.credentials.is_empty() {
        problems.push(
            "credentials: there are none; add a [[credentials]] section to the configuration file",
        );
    }
    let (connections, sets) = (config.thingspace.max_connections, config.credentials.len());
    if sets > 1 && connections < CONNECTIONS_PER_SET * sets {
        problems.push(format!(
            "thingspace.max_connections: {connections} is too small for {sets} sets of credentials; {} or more",
            CONNECTIONS_PER_SET * sets
        ));
    }
    let mut names = HashSet::new();
    let mut owners = HashMap::new();
    for (index, credentials) in config.credentials.iter().enumerate() {
        let CredentialsConfig {
            name,
            accounts,
            key_file,
            secret_file,
            username_file,
            password_file,
        } = credentials;
        let entry = format!("credentials #{}", index + 1);
        if name.is_empty()
            || name.len() > 64
            || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            || name.bytes().all(|b| b == b'.')
        {
            problems.push(format!(
                "{entry}: name: must be 1 to 64 letters, digits, '-', '_' and '.', and not only dots"
            ));
        } else if !names.insert(name) {
            problems.push(format!(
                "{entry}: name: {name:?} is taken by another section; choose a name of its own"
            ));
        }
        if accounts.is_empty() {
            problems.push(format!(
                "{entry}: accounts: there are none; list the accounts these credentials serve"
            ));
        }
        for account in accounts {
            if let Some(owner) = owners.insert(account, index + 1) {
                problems.push(format!(
                    "{entry}: accounts: {account} is already listed in credentials #{owner}; leave it in one place"
                ));
            }
        }
        let files = [
            ("key_file", key_file),
            ("secret_file", secret_file),
            ("username_file", username_file),
            ("password_file", password_file),
        ];
        for (key, path) in files {
            if let Err(what) = secret_file::check(path) {
                problems.push(format!("{entry}: {key}: {}", secret_file::problem(path, &what)));
            }
        }
    }
    if !config.telemetry.otlp_ca_file.as_os_str().is_empty()
        && let Err(what) = certificate::check_authorities(&config.telemetry.otlp_ca_file)
    {
        problems.push(format!("telemetry.otlp_ca_file: {what}"));
    }
    problems.callback_files(&config.callbacks);
    problems.store_is_there(&config.store);
    if let Err(what) = socket_can_be_there(config) {
        problems.push(format!("control.socket: {what}"));
    }
    problems.written_files_are_apart(config, file);
    problems.users_are_spelled_alike(config);
    problems.pairs_are_apart(config);
    problems
}

fn socket_can_be_there(config: &Config) -> Result<(), String> {
    let socket = &config.control.socket;
    if net::SocketAddr::from_pathname(config.control_socket()).is_err() {
        return Err(if socket.as_os_str().is_empty() {
            "is too long for a socket; shorten store.path, or name a shorter one here".to_owned()
        } else {
            "is too long for a socket; name a shorter one".to_owned()
        });
    }
    let found = fs::symlink_metadata(config.control_socket());
    if found.is_ok_and(|found| !found.file_type().is_socket()) {
        return Err(format!(
            "{} exists and is no socket; name another file, or remove it",
            config.control_socket().display()
        ));
    }
    if socket.as_os_str().is_empty() {
        if config.store.kind == StoreKind::Embedded {
            return Ok(());
        }
        return Err(
            "is required for this kind of store; name a file that the gateway may make".to_owned()
        );
    }
    let folder =
        socket.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(format!("the folder {} does not exist; make it", folder.display()));
    }
    can_be_written(folder)
}

/// Tries it: permissions alone do not tell. Nothing is left behind.
fn can_be_written(folder: &Path) -> Result<(), String> {
    tempfile::tempfile_in(folder).map(drop).map_err(|error| {
        format!(
            "no file can be made in the folder {} ({error}); let the gateway's user write there",
            folder.display()
        )
    })
}

impl Problems {
    fn number<T: Copy + PartialOrd + Display>(
        &mut self,
        key: &str,
        value: T,
        range: &RangeInclusive<T>,
    ) {
        if !range.contains(&value) {
            self.push(format!(
                "{key}: {value} is out of bounds; must be {} to {}",
                range.start(),
                range.end()
            ));
        }
    }

    fn duration(&mut self, key: &str, value: Duration, range: &RangeInclusive<Duration>) {
        if !range.contains(&value) {
            let (value, least, most) = (show(value), show(*range.start()), show(*range.end()));
            self.push(format!("{key}: {value} is out of bounds; must be {least} to {most}"));
        }
    }

    /// A duration that is at least another one.
    fn ordered(
        &mut self,
        key: &str,
        value: Duration,
        least_key: &str,
        least: Duration,
        most: Duration,
    ) {
        if !(least..=most).contains(&value) {
            let (value, least, most) = (show(value), show(least), show(most));
            self.push(format!(
                "{key}: {value} is out of bounds; must be {least_key} ({least}) to {most}"
            ));
        }
    }

    /// A chain of certificates with its key. Each problem names the key of its file.
    fn identity(
        &mut self,
        section: &str,
        (cert_key, cert): (&str, &Path),
        (key_key, key): (&str, &Path),
    ) {
        let now = Timestamp::now();
        let (chain, private_key) =
            (certificate::check_chain(cert, now), certificate::check_key(key));
        let chain = match private_key {
            Ok(()) => chain.and_then(|()| ServerCertificate::check(cert, key, now).map(drop)),
            Err(what) => {
                self.push(format!("{section}.{key_key}: {what}"));
                chain
            }
        };
        if let Err(what) = chain {
            self.push(format!("{section}.{cert_key}: {what}"));
        }
    }

    fn breaker(&mut self, thingspace: &ThingSpaceConfig) {
        let ThingSpaceConfig { breaker_failures, breaker_first, breaker_max, .. } = thingspace;
        self.number("thingspace.breaker_failures", *breaker_failures, &BREAKER_FAILURES);
        self.duration("thingspace.breaker_first", *breaker_first, &BREAKER_FIRST);
        let first = "thingspace.breaker_first";
        self.ordered(
            "thingspace.breaker_max",
            *breaker_max,
            first,
            *breaker_first,
            BREAKER_AT_MOST,
        );
    }

    /// Listeners that take each other's port. Port 0 is a free one.
    fn ports(&mut self, listeners: &[(&str, Option<SocketAddr>)]) {
        let listeners: Vec<_> =
            listeners.iter().filter_map(|(key, address)| Some((key, (*address)?))).collect();
        for (at, (key, address)) in listeners.iter().enumerate() {
            let taken = |other: &SocketAddr| {
                let (one, other) = (address, other);
                let both = one.ip() == other.ip()
                    || one.ip().is_unspecified()
                    || other.ip().is_unspecified();
                one.port() != 0 && one.port() == other.port() && both
            };
            if let Some((first, _)) = listeners[..at].iter().find(|(_, other)| taken(other)) {
                self.push(format!(
                    "{key}: port {} is also that of {first}; choose another",
                    address.port()
                ));
            }
        }
    }

    /// Every path of ThingSpace begins with `/api`. Another host may have it elsewhere.
    fn base_url(&mut self, thingspace: &ThingSpaceConfig) {
        let key = "thingspace.base_url";
        let Some(url) = self.thingspace_url(key, &thingspace.base_url, thingspace) else { return };
        let is_verizon = url.host == VERIZON || url.host.ends_with(&format!(".{VERIZON}"));
        if is_verizon && !url.path.trim_end_matches('/').ends_with("/api") {
            self.push(format!(
                "{key}: must end with /api; write for example https://thingspace.verizon.com/api"
            ));
        }
    }

    /// Where tokens and passwords are sent.
    fn thingspace_url(
        &mut self,
        key: &str,
        text: &str,
        thingspace: &ThingSpaceConfig,
    ) -> Option<Url> {
        let url = self.url(key, text)?;
        if url.scheme == "http" && !url.is_loopback() && !thingspace.allow_plaintext {
            self.push(format!(
                "{key}: http:// would send passwords and tokens to {} in plain text. Write https://, or accept that \
                 risk with thingspace.allow_plaintext = true",
                url.host
            ));
        }
        Some(url)
    }

    /// A proxy that is spoken to in plain text; what goes through it to an https:// address is
    /// encrypted all the same.
    fn proxy(&mut self, key: &str, text: &str) {
        if text.is_empty() {
            return;
        }
        if self.url(key, text).is_some_and(|url| url.scheme == "https") {
            self.push(format!("{key}: https is not supported; write http://HOST:PORT"));
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
        if !telemetry.otlp_endpoint.is_empty() {
            self.url("telemetry.otlp_endpoint", &telemetry.otlp_endpoint);
        }
    }

    /// An address on the web that the gateway calls or is called at.
    fn url(&mut self, key: &str, text: &str) -> Option<Url> {
        let read = Url::parse(text, url::WEB);
        let read = read.and_then(|url| match url.port {
            0 => Err("has a port that does not exist; must be 1 to 65535".to_owned()),
            _ => Ok(url),
        });
        read.map_err(|what| self.push(format!("{key}: {what}"))).ok()
    }
}

#[cfg(test)]
mod tests;
