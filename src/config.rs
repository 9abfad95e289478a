//! The configuration: compiled-in defaults (`config.default.toml`, which is also the reference of
//! all keys), then one TOML file, then the environment.
//!
//! Refuses unknown keys and reports all problems at once. Holds only the names of files with
//! secrets, never a secret, so it can be printed. `[[credentials]]` sections come from the file
//! only. No other module reads the environment.

mod duration;
mod layers;
mod network;
mod problems;
#[expect(missing_docs, reason = "config.default.toml describes every key")]
mod sections;
pub(crate) mod url;
mod validate;

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub(crate) use duration::{parse as parse_duration, show as show_duration};
pub use network::Network;
pub use problems::Problems;
pub use sections::{
    AdminConfig, AllowConfig, AuthConfig, CallbacksConfig, ClientCert, ControlConfig,
    CredentialsConfig, GrpcConfig, JwtConfig, LimitsConfig, LogFormat, NatsConfig, OtlpProtocol,
    OtlpSignals, PollingConfig, StoreConfig, StoreKind, TelemetryConfig, ThingSpaceConfig,
    TraceSampler,
};

/// The longest user name or password of callbacks that ThingSpace accepts, in characters.
pub(crate) const MAX_PAIR_CHARS: usize = 40;

/// The whole configuration.
#[expect(missing_docs, reason = "each section describes itself")]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    pub grpc: GrpcConfig,
    pub auth: AuthConfig,
    pub admin: AdminConfig,
    pub thingspace: ThingSpaceConfig,
    pub callbacks: CallbacksConfig,
    #[serde(default)]
    pub credentials: Vec<CredentialsConfig>,
    pub store: StoreConfig,
    pub control: ControlConfig,
    pub polling: PollingConfig,
    pub limits: LimitsConfig,
    pub telemetry: TelemetryConfig,
    /// The file that the configuration was read from, if any.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

/// Whether a set of credentials may have this name.
pub(crate) fn is_credentials_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(allowed) && name.bytes().any(|b| b != b'.')
}

pub(crate) fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| is_set(folder)).unwrap_or(Path::new("."))
}

/// Whether an optional path is set. An unset path is empty.
pub(crate) fn is_set(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

/// An optional path, if it is set.
pub(crate) fn set(path: &Path) -> Option<PathBuf> {
    is_set(path).then(|| path.to_owned())
}

/// The path with a suffix appended to its file name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The path of the record of an embedded store.
pub(crate) fn record_path(store: &Path) -> PathBuf {
    beside(store, ".record")
}

impl Config {
    /// Merges the defaults, the file and the environment, and validates the result.
    ///
    /// With a file, the result must be complete, with credentials and a store. Without a file, the
    /// result is the base for `dev` and `simulate`, which supply their own credentials and store.
    pub fn load(file: Option<&Path>) -> Result<Self, Problems> {
        let (config, problems, _) = Self::load_with_problems(file);
        if problems.0.is_empty() { Ok(config) } else { Err(problems) }
    }

    /// Does the same as [`Self::load`]. Keys with problems may have their defaults. The last value
    /// is whether the file can be read; if not, the configuration is that without a file.
    pub(crate) fn load_with_problems(file: Option<&Path>) -> (Self, Problems, bool) {
        let (table, mut problems, is_readable) = match read(file) {
            Ok(table) => (table, Problems::default(), true),
            Err(problems) => (None, problems, false),
        };
        let (mut config, invalid) = layers::merge(table, &environment());
        problems.append(invalid);
        problems.append(validate::bounds(&config));
        // Without the file's content, credentials and store would be reported as missing.
        if file.is_some() && is_readable {
            problems.append(validate::deployment(&config, file));
        }
        config.file = file.map(Path::to_owned);
        (config, problems, is_readable)
    }

    /// The path of the control socket according to this configuration. Ignores all other problems,
    /// so that operators reach a running gateway after a wrong edit.
    pub fn socket_of(file: Option<&Path>) -> Result<PathBuf, Problems> {
        let (config, mut problems) = layers::merge(read(file)?, &environment());
        if !is_set(&config.control.socket) && !is_set(&config.store.path) {
            problems.push(
                "control.socket: neither it nor store.path is set; set one, or pass --socket",
            );
            return Err(problems);
        }
        Ok(config.control_socket())
    }

    /// The paths of the embedded store and the control socket according to this configuration.
    /// Ignores all other problems.
    pub fn store_of(file: &Path) -> Result<(PathBuf, PathBuf), Problems> {
        let (config, mut problems) = layers::merge(read(Some(file))?, &environment());
        if config.store.kind != StoreKind::Embedded || !is_set(&config.store.path) {
            problems.push("store.path: this configuration has no embedded store");
            return Err(problems);
        }
        let socket = config.control_socket();
        Ok((config.store.path, socket))
    }

    /// Settings that are allowed but probably a mistake.
    pub fn warnings(&self) -> Problems {
        validate::warnings(self)
    }

    /// Whether callers are asked for credentials. If not, every caller is anonymous.
    pub fn asks_callers(&self) -> bool {
        is_set(&self.grpc.client_ca_file) || self.auth.has_tokens()
    }

    /// The path of the socket for operator commands.
    pub fn control_socket(&self) -> PathBuf {
        if is_set(&self.control.socket) {
            self.control.socket.clone()
        } else {
            beside(&self.store.path, ".sock")
        }
    }

    /// The compiled-in defaults, without credentials and without a store path.
    pub fn defaults() -> Self {
        layers::merge(None, &HashMap::new()).0
    }
}

/// Formats the configuration as TOML, as `check` prints it.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&toml::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// Returns the path and the parsed content of the file. `None` without a file.
fn read(file: Option<&Path>) -> Result<Option<layers::FileTable<'_>>, Problems> {
    let Some(file) = file else { return Ok(None) };
    let text = std::fs::read_to_string(file)
        .map_err(|error| Problems::one(format!("{}: cannot be read: {error}", file.display())))?;
    Ok(Some((file, layers::parse(file, &text)?)))
}

fn environment() -> HashMap<String, String> {
    let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
    std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
}
