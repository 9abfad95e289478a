//! The configuration: one TOML file over compiled-in defaults (`config.default.toml`, which is its
//! reference), every key overridable by environment.
//!
//! Unknown keys are refused and all problems are reported at once. Secrets are never values here,
//! only the names of files that hold them, so that a configuration may be printed. Lists of tables
//! (`[[credentials]]`) come from the file only. The environment is read here and nowhere else.

mod address;
mod duration;
mod layers;
mod network;
mod problems;
pub(crate) mod url;
mod validate;

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use network::Network;
pub use problems::Problems;

use crate::identity::AccountName;

/// The longest user name or password of callbacks that ThingSpace takes, in characters.
pub(crate) const MAX_PAIR_CHARS: usize = 40;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    pub grpc: GrpcConfig,
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
    /// Where it was read from, if that was a file.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

/// `[grpc]`: the API's listener.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GrpcConfig {
    #[serde(deserialize_with = "address::deserialize")]
    pub listen: SocketAddr,
    /// Lets `listen` be other than loopback although callers are not authenticated.
    pub allow_unauthenticated_remote_callers: bool,
    pub reflection: bool,
    /// How often a quiet watch says that it is alive.
    #[serde(with = "duration")]
    pub heartbeat: Duration,
    /// The gateway's own deadline for a unary call.
    #[serde(with = "duration")]
    pub max_deadline: Duration,
    /// How long a drain may take altogether.
    #[serde(with = "duration")]
    pub drain: Duration,
    pub max_concurrent_streams: u32,
}

/// `[admin]`: the listener for probes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AdminConfig {
    #[serde(deserialize_with = "address::deserialize")]
    pub listen: SocketAddr,
}

/// `[thingspace]`: the upstream.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ThingSpaceConfig {
    /// Up to and with `/api`.
    pub base_url: String,
    /// Where bearers come from; empty: `base_url` + `/ts/v1/oauth2/token`.
    pub token_url: String,
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// For every call but an order.
    #[serde(with = "duration")]
    pub call_timeout: Duration,
    #[serde(with = "duration")]
    pub order_timeout: Duration,
    /// From a login without an answer to the next; doubling to `login_backoff_max`.
    #[serde(with = "duration")]
    pub login_backoff_first: Duration,
    #[serde(with = "duration")]
    pub login_backoff_max: Duration,
    /// Per set of credentials and replica.
    pub calls_per_second: u32,
    /// Calls under way, of all credentials together.
    pub max_connections: usize,
    /// So many failures of a host in a row, and it is left alone for a while.
    pub breaker_failures: u32,
    #[serde(with = "duration")]
    pub breaker_first: Duration,
    #[serde(with = "duration")]
    pub breaker_max: Duration,
    /// Empty: none. The environment's is never used.
    pub proxy_url: String,
    /// Lets `base_url` and `token_url` be http:// on other hosts than this one.
    pub allow_plaintext: bool,
    pub max_devices_per_order: usize,
    /// Refuse identifiers with wrong check digits instead of warning.
    pub strict_checksums: bool,
}

/// `[callbacks]`: the listener for ThingSpace's callbacks, and its registration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CallbacksConfig {
    pub enabled: bool,
    #[serde(deserialize_with = "address::deserialize")]
    pub listen: SocketAddr,
    /// Where connections may come from, separated by commas; empty: from everywhere.
    pub networks: String,
    /// Both empty: plain HTTP.
    pub tls_cert_file: PathBuf,
    pub tls_key_file: PathBuf,
    /// Where ThingSpace reaches the listener; an account's secret is appended as the last segment
    /// of the path.
    pub public_url: String,
    /// Lets `public_url` be http:// on other hosts than this one.
    pub allow_plaintext: bool,
    /// ThingSpace's name of the service whose callbacks are wanted.
    pub service: String,
    /// Register at start, and look now and then whether it still holds.
    pub register: bool,
    /// Both empty: the pair is generated and kept in the store.
    pub username_file: PathBuf,
    pub password_file: PathBuf,
    /// How long a final answer of a poll waits for the callback that knows the reason.
    #[serde(with = "duration")]
    pub grace: Duration,
    /// How long a replaced pair is still accepted.
    #[serde(with = "duration")]
    pub password_grace: Duration,
    /// How often the registration is looked at.
    #[serde(with = "duration")]
    pub recheck: Duration,
}

impl CallbacksConfig {
    /// Certificate and key, if HTTPS is wanted.
    pub fn tls(&self) -> Option<(&Path, &Path)> {
        let given =
            !self.tls_cert_file.as_os_str().is_empty() && !self.tls_key_file.as_os_str().is_empty();
        given.then_some((self.tls_cert_file.as_path(), self.tls_key_file.as_path()))
    }

    /// The files of the pair, if it is given.
    pub fn pair_files(&self) -> Option<(&Path, &Path)> {
        let given = !self.username_file.as_os_str().is_empty()
            && !self.password_file.as_os_str().is_empty();
        given.then_some((self.username_file.as_path(), self.password_file.as_path()))
    }
}

/// `[[credentials]]`: a ThingSpace application and a UWS user, and the accounts they serve.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CredentialsConfig {
    pub name: String,
    pub accounts: Vec<AccountName>,
    pub key_file: PathBuf,
    pub secret_file: PathBuf,
    pub username_file: PathBuf,
    pub password_file: PathBuf,
}

/// `[store]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoreConfig {
    pub kind: StoreKind,
    /// The embedded store's file.
    pub path: PathBuf,
    /// How long a request is known after it began.
    #[serde(with = "duration")]
    pub retention: Duration,
    pub nats: NatsConfig,
}

impl StoreConfig {
    /// Which one it is, for people.
    pub fn shown(&self) -> String {
        match self.kind {
            StoreKind::Embedded => self.path.display().to_string(),
            StoreKind::Nats => format!("{} at {}", self.nats.prefix, self.nats.url),
        }
    }
}

/// `[store.nats]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NatsConfig {
    /// Of one server or several, separated by commas.
    pub url: String,
    /// Empty: nobody in particular, or whoever the certificate says.
    pub creds_file: PathBuf,
    /// Instead of `creds_file`. Both empty: none.
    pub username_file: PathBuf,
    pub password_file: PathBuf,
    /// Who signs the servers' certificates; empty: whom the machine trusts.
    pub ca_file: PathBuf,
    /// Both empty: no certificate of our own.
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    /// Lets `url` name servers on other hosts without TLS.
    pub allow_plaintext: bool,
    /// Of each stream.
    pub replicas: usize,
    /// What streams and subjects begin with.
    pub prefix: String,
    /// Of the stream of events.
    pub max_bytes: u64,
}

impl NatsConfig {
    /// The servers' URLs, one by one.
    pub fn servers(&self) -> Vec<String> {
        self.url.split(',').map(|url| url.trim().to_owned()).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", rename_all(serialize = "lowercase"))]
pub enum StoreKind {
    Embedded,
    Nats,
}

impl TryFrom<String> for StoreKind {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "embedded" => Ok(Self::Embedded),
            "nats" => Ok(Self::Nats),
            _ => Err(format!("{text:?} is no kind of store; write \"embedded\" or \"nats\"")),
        }
    }
}

/// `[control]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ControlConfig {
    /// Empty: beside the embedded store.
    pub socket: PathBuf,
}

/// `[polling]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PollingConfig {
    /// A status seen less than this ago is fresh for everybody.
    #[serde(with = "duration")]
    pub min_age: Duration,
    #[serde(with = "duration")]
    pub first: Duration,
    pub factor: f64,
    /// The longest interval of a request that is watched.
    #[serde(with = "duration")]
    pub max_watched: Duration,
    /// The longest interval of a request that nobody watches.
    #[serde(with = "duration")]
    pub max: Duration,
    #[serde(with = "duration")]
    pub give_up: Duration,
}

/// `[limits]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LimitsConfig {
    /// Devices of all open requests; above it new orders are refused before anything is sent.
    pub open_devices: usize,
    /// What finished requests may take in memory, all together.
    pub closed_bytes: usize,
    /// How long a finished request stays in memory after its last use.
    #[serde(with = "duration")]
    pub closed_in_memory: Duration,
}

/// `[telemetry]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TelemetryConfig {
    pub log_format: LogFormat,
    /// `tracing_subscriber` filter directives.
    pub log_filter: String,
    /// Where traces go, OTLP over gRPC; empty: nowhere.
    pub otlp_endpoint: String,
    /// Who signs the certificate of `otlp_endpoint`; empty: whom the machine trusts.
    pub otlp_ca_file: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", rename_all(serialize = "lowercase"))]
pub enum LogFormat {
    Text,
    Json,
}

impl TryFrom<String> for LogFormat {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("{text:?} is no format of logs; write \"text\" or \"json\"")),
        }
    }
}

/// A file beside another one, whose name it extends.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Where the record of an embedded store is.
pub(crate) fn record_path(store: &Path) -> PathBuf {
    beside(store, ".record")
}

impl Config {
    /// Defaults, then the file, then the environment; validated.
    ///
    /// With a file it is the configuration of a deployment, which needs credentials and a store.
    /// Without, it is what `dev` and `simulate` begin with: they bring their own.
    pub fn load(file: Option<&Path>) -> Result<Self, Problems> {
        let (read, mut problems, is_read) = match given(file) {
            Ok(read) => (read, Problems::default(), true),
            Err(problems) => (None, problems, false),
        };
        let (mut config, wrong) = layers::merge(read, &environment());
        problems.append(wrong);
        problems.append(validate::bounds(&config));
        // Of a file that cannot be read nothing more can be said.
        if file.is_some() && is_read {
            problems.append(validate::deployment(&config, file));
        }
        config.file = file.map(Path::to_owned);
        problems.or(config)
    }

    /// The socket of the gateway with this configuration, also if something else in it is wrong by
    /// now: a running gateway is asked above all when something is.
    pub fn socket_of(file: Option<&Path>) -> Result<PathBuf, Problems> {
        let (config, mut problems) = layers::merge(given(file)?, &environment());
        if config.control.socket.as_os_str().is_empty() && config.store.path.as_os_str().is_empty()
        {
            problems.push(
                "control.socket: is not set, nor is store.path: where is the gateway's socket?",
            );
            return Err(problems);
        }
        Ok(config.control_socket())
    }

    /// The file of the embedded store and the socket of the gateway with this configuration, also
    /// if something else in it is wrong by now.
    pub fn store_of(file: &Path) -> Result<(PathBuf, PathBuf), Problems> {
        let (config, mut problems) = layers::merge(given(Some(file))?, &environment());
        if config.store.kind != StoreKind::Embedded || config.store.path.as_os_str().is_empty() {
            problems.push("store.path: there is no embedded store in this configuration");
            return Err(problems);
        }
        let socket = config.control_socket();
        Ok((config.store.path, socket))
    }

    /// What is allowed and unlikely to be meant.
    pub fn warnings(&self) -> Problems {
        validate::warnings(self)
    }

    /// The socket on which the gateway answers its operators.
    pub fn control_socket(&self) -> PathBuf {
        if self.control.socket.as_os_str().is_empty() {
            return beside(&self.store.path, ".sock");
        }
        self.control.socket.clone()
    }

    /// The compiled-in defaults alone: no credentials, no path of a store.
    pub fn defaults() -> Self {
        layers::merge(None, &HashMap::new()).0
    }
}

/// As TOML, what `check` prints.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&toml::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// The file with the values in it.
fn given(file: Option<&Path>) -> Result<Option<layers::Read<'_>>, Problems> {
    let Some(file) = file else { return Ok(None) };
    let text = std::fs::read_to_string(file)
        .map_err(|error| Problems::one(format!("{}: cannot be read: {error}", file.display())))?;
    Ok(Some((file, layers::parse(file, &text)?)))
}

fn environment() -> HashMap<String, String> {
    std::env::vars_os()
        .map(|(name, value)| {
            (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
        })
        .collect()
}
