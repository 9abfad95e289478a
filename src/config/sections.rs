//! The sections of the configuration. `config.default.toml` describes each key, its default and its
//! bounds.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::{duration, is_set};
use crate::identity::AccountName;

/// `[grpc]`: the listener of the API.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GrpcConfig {
    #[serde(deserialize_with = "listen_address")]
    pub listen: SocketAddr,
    pub tls_cert_file: PathBuf,
    pub tls_key_file: PathBuf,
    pub client_ca_file: PathBuf,
    pub client_cert: ClientCert,
    pub allow_plaintext: bool,
    pub allow_unauthenticated_remote_callers: bool,
    pub reflection: bool,
    #[serde(with = "duration")]
    pub heartbeat: Duration,
    #[serde(with = "duration")]
    pub max_deadline: Duration,
    #[serde(with = "duration")]
    pub drain: Duration,
    pub max_concurrent_streams: u32,
    pub max_connections: usize,
    pub max_connections_per_address: usize,
    #[serde(with = "duration")]
    pub connection_age: Duration,
    #[serde(with = "duration")]
    pub connection_grace: Duration,
    #[serde(with = "duration")]
    pub stream_age: Duration,
    #[serde(with = "duration")]
    pub receive_timeout: Duration,
    pub max_request_bytes: usize,
}

impl GrpcConfig {
    /// Returns the files of the certificate and the key, if TLS is configured.
    pub fn tls(&self) -> Option<(&Path, &Path)> {
        both(&self.tls_cert_file, &self.tls_key_file)
    }
}

/// Whether callers need a certificate, if `client_ca_file` is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", rename_all(serialize = "lowercase"))]
pub enum ClientCert {
    Optional,
    Required,
}

impl TryFrom<String> for ClientCert {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        choose(&text, [("optional", Self::Optional), ("required", Self::Required)])
    }
}

/// `[admin]`: the listener for probes and scrapes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AdminConfig {
    #[serde(deserialize_with = "listen_address")]
    pub listen: SocketAddr,
}

/// `[auth]`: how callers prove who they are, and what they may do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuthConfig {
    pub tokens_file: PathBuf,
    pub jwt: JwtConfig,
    #[serde(default)]
    pub allow: Vec<AllowConfig>,
}

impl AuthConfig {
    /// Whether tokens are accepted.
    pub fn has_tokens(&self) -> bool {
        is_set(&self.tokens_file) || self.jwt.is_used()
    }
}

/// `[auth.jwt]`: tokens that an issuer signs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JwtConfig {
    pub issuer: String,
    pub audience: String,
    pub jwks_url: String,
    pub jwks_file: PathBuf,
    pub jwks_ca_file: PathBuf,
    pub jwks_token_file: PathBuf,
}

impl JwtConfig {
    /// Whether such tokens are accepted.
    pub fn is_used(&self) -> bool {
        !self.jwks_url.is_empty() || is_set(&self.jwks_file)
    }
}

/// `[[auth.allow]]`: what some callers may do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AllowConfig {
    pub callers: Vec<String>,
    pub methods: Vec<String>,
    pub accounts: Vec<String>,
}

/// `[thingspace]`: the calls to ThingSpace.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ThingSpaceConfig {
    pub base_url: String,
    pub token_url: String,
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    #[serde(with = "duration")]
    pub call_timeout: Duration,
    #[serde(with = "duration")]
    pub order_timeout: Duration,
    #[serde(with = "duration")]
    pub login_backoff_first: Duration,
    #[serde(with = "duration")]
    pub login_backoff_max: Duration,
    pub calls_per_second: u32,
    pub max_connections: usize,
    pub breaker_failures: u32,
    #[serde(with = "duration")]
    pub breaker_first: Duration,
    #[serde(with = "duration")]
    pub breaker_max: Duration,
    pub proxy_url: String,
    pub allow_plaintext: bool,
    pub max_devices_per_order: usize,
    pub strict_checksums: bool,
}

/// `[callbacks]`: the listener for callbacks, and its registration with ThingSpace.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CallbacksConfig {
    pub enabled: bool,
    #[serde(deserialize_with = "listen_address")]
    pub listen: SocketAddr,
    pub networks: String,
    pub tls_cert_file: PathBuf,
    pub tls_key_file: PathBuf,
    pub public_url: String,
    pub allow_plaintext: bool,
    pub service: String,
    pub register: bool,
    pub username_file: PathBuf,
    pub password_file: PathBuf,
    #[serde(with = "duration")]
    pub grace: Duration,
    #[serde(with = "duration")]
    pub password_grace: Duration,
    #[serde(with = "duration")]
    pub recheck: Duration,
}

impl CallbacksConfig {
    /// Returns the files of the certificate and the key, if HTTPS is configured.
    pub fn tls(&self) -> Option<(&Path, &Path)> {
        both(&self.tls_cert_file, &self.tls_key_file)
    }

    /// Returns the files of the user name and the password, if they are configured.
    pub fn pair_files(&self) -> Option<(&Path, &Path)> {
        both(&self.username_file, &self.password_file)
    }
}

fn both<'a>(one: &'a Path, other: &'a Path) -> Option<(&'a Path, &'a Path)> {
    (is_set(one) && is_set(other)).then_some((one, other))
}

/// `[[credentials]]`: an application, a user, and the accounts that they serve.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CredentialsConfig {
    pub name: String,
    pub accounts: Vec<AccountName>,
    pub key_file: PathBuf,
    pub secret_file: PathBuf,
    pub username_file: PathBuf,
    pub password_file: PathBuf,
}

impl CredentialsConfig {
    /// Returns the files with secrets, each with its key in the configuration.
    pub(crate) fn files(&self) -> [(&'static str, &Path); 4] {
        [
            ("key_file", &self.key_file),
            ("secret_file", &self.secret_file),
            ("username_file", &self.username_file),
            ("password_file", &self.password_file),
        ]
    }
}

/// `[store]`: where everything durable is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoreConfig {
    pub kind: StoreKind,
    pub path: PathBuf,
    #[serde(with = "duration")]
    pub retention: Duration,
    pub nats: NatsConfig,
}

impl StoreConfig {
    /// Returns the location of the store, for logs and `status`.
    pub fn shown(&self) -> String {
        match self.kind {
            StoreKind::Embedded => self.path.display().to_string(),
            StoreKind::Nats => format!("{} at {}", self.nats.prefix, self.nats.url),
        }
    }
}

/// `[store.nats]`: the connection to NATS, and the streams.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NatsConfig {
    pub url: String,
    pub creds_file: PathBuf,
    pub username_file: PathBuf,
    pub password_file: PathBuf,
    pub ca_file: PathBuf,
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    pub allow_plaintext: bool,
    pub replicas: usize,
    pub prefix: String,
    pub max_bytes: u64,
}

impl NatsConfig {
    /// Returns the URLs in `url`.
    pub fn servers(&self) -> Vec<String> {
        self.url.split(',').map(|url| url.trim().to_owned()).collect()
    }
}

/// The kind of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", rename_all(serialize = "lowercase"))]
pub enum StoreKind {
    Embedded,
    Nats,
}

impl TryFrom<String> for StoreKind {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        choose(&text, [("embedded", Self::Embedded), ("nats", Self::Nats)])
    }
}

fn choose<T: Copy, const N: usize>(text: &str, choices: [(&str, T); N]) -> Result<T, String> {
    let chosen = choices.iter().find(|(name, _)| *name == text);
    chosen.map(|(_, choice)| *choice).ok_or_else(|| {
        let names = choices.map(|(name, _)| format!("{name:?}"));
        format!("{text:?} is unknown; write {}", names.join(" or "))
    })
}

/// `[control]`: the socket for operators.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ControlConfig {
    pub socket: PathBuf,
}

/// `[polling]`: when the gateway queries the status of open requests.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PollingConfig {
    #[serde(with = "duration")]
    pub min_age: Duration,
    #[serde(with = "duration")]
    pub first: Duration,
    pub factor: f64,
    #[serde(with = "duration")]
    pub max_watched: Duration,
    #[serde(with = "duration")]
    pub max: Duration,
    #[serde(with = "duration")]
    pub give_up: Duration,
}

/// `[limits]`: bounds of what the gateway keeps in memory, and of what one caller may use.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LimitsConfig {
    pub open_devices: usize,
    pub closed_bytes: usize,
    #[serde(with = "duration")]
    pub closed_in_memory: Duration,
    pub caller_calls_per_second: u32,
    pub caller_watches: usize,
    pub caller_open_devices: usize,
}

/// `[telemetry]`: logs, metrics and traces.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TelemetryConfig {
    pub log_format: LogFormat,
    pub log_filter: String,
    pub metrics: bool,
    pub otlp_endpoint: String,
    pub otlp_protocol: OtlpProtocol,
    pub otlp_signals: OtlpSignals,
    pub otlp_headers_file: PathBuf,
    pub otlp_ca_file: PathBuf,
    pub trace_sampler: TraceSampler,
    pub trace_ratio: f64,
}

/// How the collector is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", rename_all(serialize = "lowercase"))]
pub enum OtlpProtocol {
    Grpc,
    Http,
}

impl TryFrom<String> for OtlpProtocol {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        // The name in OTEL_EXPORTER_OTLP_PROTOCOL.
        let text = if text == "http/protobuf" { "http" } else { &text };
        choose(text, [("grpc", Self::Grpc), ("http", Self::Http)])
    }
}

/// What the collector gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OtlpSignals {
    pub traces: bool,
    pub metrics: bool,
    pub logs: bool,
}

impl TryFrom<String> for OtlpSignals {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let mut signals = Self { traces: false, metrics: false, logs: false };
        for name in text.split(',').map(str::trim) {
            match name {
                "traces" => signals.traces = true,
                "metrics" => signals.metrics = true,
                "logs" => signals.logs = true,
                _ => {
                    return Err(format!(
                        "{name:?} is unknown; write \"traces,metrics,logs\", or some of these names"
                    ));
                }
            }
        }
        Ok(signals)
    }
}

impl From<OtlpSignals> for String {
    fn from(OtlpSignals { traces, metrics, logs }: OtlpSignals) -> Self {
        let signals = [(traces, "traces"), (metrics, "metrics"), (logs, "logs")];
        let names: Vec<_> =
            signals.into_iter().filter_map(|(sent, name)| sent.then_some(name)).collect();
        names.join(",")
    }
}

/// What decides whether a call is traced. The names are those of `OTEL_TRACES_SAMPLER`, and ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", rename_all(serialize = "snake_case"))]
pub enum TraceSampler {
    /// What the gateway does for orders, what callers trace, and a share of the other calls.
    Orders,
    AlwaysOn,
    AlwaysOff,
    #[serde(rename(serialize = "traceidratio"))]
    TraceIdRatio,
    #[serde(rename(serialize = "parentbased_always_on"))]
    ParentBasedAlwaysOn,
    #[serde(rename(serialize = "parentbased_always_off"))]
    ParentBasedAlwaysOff,
    #[serde(rename(serialize = "parentbased_traceidratio"))]
    ParentBasedTraceIdRatio,
}

impl TryFrom<String> for TraceSampler {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let choices = [
            ("orders", Self::Orders),
            ("always_on", Self::AlwaysOn),
            ("always_off", Self::AlwaysOff),
            ("traceidratio", Self::TraceIdRatio),
            ("parentbased_always_on", Self::ParentBasedAlwaysOn),
            ("parentbased_always_off", Self::ParentBasedAlwaysOff),
            ("parentbased_traceidratio", Self::ParentBasedTraceIdRatio),
        ];
        choose(&text, choices)
    }
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", rename_all(serialize = "lowercase"))]
pub enum LogFormat {
    Text,
    Json,
}

impl TryFrom<String> for LogFormat {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        choose(&text, [("text", Self::Text), ("json", Self::Json)])
    }
}

fn listen_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        D::Error::custom(format!(
            "{text:?} is not an IP address and a port; write for example \"127.0.0.1:50051\" or \
             \"[::]:50051\""
        ))
    })
}
