//! `status`: the state of the gateway. The page `/status` shows the same.

mod hosts;
pub(crate) mod issues;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use axum::{Json, Router, extract::State, routing::get};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{
    GatewayParts,
    logins::{self, LoginStatus},
    orders::UnknownOrderItem,
    store::{self, StoreStatus},
};
use crate::{
    callbacks::{CallbackOutcome, Callbacks, registration::RegistrationState},
    reload::UsedVersion,
    requests::inspect::ages::OpenAge,
    server::tls::Tls,
    telemetry::recent_errors::{self, RecentError},
};
pub(crate) use hosts::HostStatus;
use issues::Issue;

pub(crate) const PATH: &str = "/v1/status";

/// How long the store may take to say which orders are unknown.
const STORE_ANSWER: Duration = Duration::from_secs(3);

/// The number of unknown orders that are shown.
const SHOWN_ORDERS: usize = 10;

/// The state of the gateway, without secrets and without identities of devices. Counts begin at its
/// start.
#[derive(Debug, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct StatusResponse {
    /// What is wrong, the worst first. Empty: everything is well.
    #[serde(default)]
    pub(crate) issues: Vec<Issue>,
    pub(crate) version: String,
    /// When the gateway was started.
    #[serde(default)]
    pub(crate) started: Timestamp,
    /// The configuration file.
    pub(crate) config: Option<PathBuf>,
    /// Whether calls can be answered.
    pub(crate) ready: bool,
    /// Why calls cannot be answered.
    pub(crate) waits_for: Option<String>,
    /// Whether `waits_for` names the key set of callers.
    #[serde(default)]
    pub(crate) waits_for_key_set: bool,
    /// What the gateway cannot do now although it is ready, and why.
    #[serde(default)]
    pub(crate) limited: Option<String>,
    /// Whether the gateway is stopping.
    #[serde(default)]
    pub(crate) draining: bool,
    /// The file or the servers of the store.
    pub(crate) store: String,
    /// Whether several replicas can use the store.
    #[serde(default)]
    pub(crate) shared_store: bool,
    /// Why the store cannot be used, or why the last write failed.
    pub(crate) store_trouble: Option<String>,
    pub(crate) store_memory: StoreStatus,
    #[serde(default)]
    pub(crate) unreadable_logs: Vec<UnreadableLog>,
    pub(crate) open_requests: usize,
    pub(crate) open_devices: usize,
    /// The open requests by age, the youngest first.
    #[serde(default)]
    pub(crate) open_by_age: Vec<OpenAge>,
    /// `None`: the store cannot be read.
    pub(crate) unknown_orders: Option<usize>,
    /// At most [`SHOWN_ORDERS`] of them.
    #[serde(default)]
    pub(crate) oldest_unknown_orders: Vec<UnknownOrderItem>,
    /// The errors of callers in the last hour by reason, the most frequent first.
    #[serde(default)]
    pub(crate) errors: Vec<RecentError>,
    pub(crate) finished_by_callback: u64,
    pub(crate) finished_by_poll: u64,
    /// Callbacks for requests that this gateway does not know.
    pub(crate) stray_callbacks: u64,
    pub(crate) logins: Vec<LoginStatus>,
    pub(crate) hosts: Vec<HostStatus>,
    /// The open connections of the API.
    #[serde(default)]
    pub(crate) connections: usize,
    /// The files and URLs with which callers are authenticated, and the certificates of the
    /// listeners, by their configuration keys.
    #[serde(default)]
    pub(crate) caller_credentials: BTreeMap<String, CallerCredentials>,
    /// Whether the file with static tokens has none.
    #[serde(default)]
    pub(crate) lacks_tokens: bool,
    /// When the certificate of the API expires. `None`: it has none.
    #[serde(default)]
    pub(crate) grpc_certificate_expires: Option<Timestamp>,
    /// Whether the gateway has a listener for callbacks.
    #[serde(default)]
    pub(crate) takes_callbacks: bool,
    /// When the certificate of the listener for callbacks expires. `None`: it has none.
    pub(crate) callbacks_certificate_expires: Option<Timestamp>,
    /// The configuration keys of the certificates that should have been replaced.
    #[serde(default)]
    pub(crate) overdue_certificates: Vec<String>,
    /// The number of requests to the listener for callbacks, by outcome, without zeros.
    #[serde(default)]
    pub(crate) callbacks: BTreeMap<String, u64>,
    /// Why the newest files of the callbacks' user name and password are not in use.
    #[serde(default)]
    pub(crate) callback_pair_problem: Option<String>,
    /// Callbacks that were removed from the quarantine to make room for others.
    #[serde(default)]
    pub(crate) quarantine_evicted: u64,
    /// The state of the registration of each account, if callbacks have a public URL.
    #[serde(default)]
    pub(crate) registrations: BTreeMap<String, String>,
    /// The same with the names of the states in metrics.
    #[serde(default)]
    pub(crate) registration_states: BTreeMap<String, String>,
}

/// Which version of the credentials of callers is in use.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CallerCredentials {
    /// `None`: none is in use yet.
    pub(crate) since: Option<Timestamp>,
    /// Why the newest version is not in use.
    pub(crate) problem: Option<String>,
}

impl From<UsedVersion> for CallerCredentials {
    fn from(UsedVersion { since, problem }: UsedVersion) -> Self {
        Self { since, problem }
    }
}

/// A damaged log that is skipped.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct UnreadableLog {
    pub(crate) log: String,
    pub(crate) why: String,
}

pub(crate) fn routes() -> Router<GatewayParts> {
    Router::new().route(PATH, get(status))
}

async fn status(State(parts): State<GatewayParts>) -> Json<StatusResponse> {
    Json(read(&parts).await)
}

/// Returns the state of the gateway.
pub(crate) async fn read(parts: &GatewayParts) -> StatusResponse {
    let GatewayParts { requests, client, callbacks, .. } = parts;
    let callbacks = callbacks.as_ref();
    let unreadable = requests.unreadable_logs().into_iter();
    let overview = requests.overview();
    let draining = parts.drain.is_cancelled();
    let waits_for = if draining { Some("draining".to_owned()) } else { parts.waits_for() };

    // Of a store that does not answer, the rest is still shown.
    let unknown = timeout(STORE_ANSWER, requests.unknown_orders()).await;
    let unknown = unknown.ok().and_then(Result::ok);
    let shown = unknown.iter().flatten().take(SHOWN_ORDERS).cloned();
    let now = Timestamp::now();
    let grpc_certificate = parts.tls.as_ref().map(Tls::validity);
    let callbacks_certificate = callbacks.and_then(Callbacks::certificate_validity);
    let mut status = StatusResponse {
        issues: Vec::new(),
        started: parts.started,
        draining,
        shared_store: requests.shares_store(),
        open_by_age: requests.open_by_age(),
        oldest_unknown_orders: shown.map(UnknownOrderItem::from).collect(),
        errors: recent_errors::list(),
        takes_callbacks: callbacks.is_some(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        config: parts.config.clone(),
        ready: waits_for.is_none(),
        waits_for_key_set: waits_for.is_some() && !draining && requests.is_ready(),
        waits_for,
        limited: if draining { None } else { requests.limited() },
        store: parts.store.clone(),
        store_trouble: requests.store_trouble(),
        store_memory: store::status(parts),
        unreadable_logs: unreadable.map(|(log, why)| UnreadableLog { log, why }).collect(),
        open_requests: overview.open_requests,
        open_devices: overview.open_devices,
        unknown_orders: unknown.as_ref().map(Vec::len),
        finished_by_callback: overview.finished_by_callback,
        finished_by_poll: overview.finished_by_poll,
        stray_callbacks: overview.stray_callbacks,
        logins: logins::logins(parts),
        hosts: client.hosts().into_iter().map(HostStatus::from).collect(),
        connections: parts.connections.len(),
        caller_credentials: caller_credentials(parts),
        lacks_tokens: parts.callers.lacks_tokens(),
        grpc_certificate_expires: grpc_certificate.map(|validity| validity.expires),
        callbacks_certificate_expires: callbacks_certificate.map(|validity| validity.expires),
        overdue_certificates: [
            (issues::GRPC_CERTIFICATE, grpc_certificate),
            (issues::CALLBACKS_CERTIFICATE, callbacks_certificate),
        ]
        .into_iter()
        .filter(|(_, validity)| validity.is_some_and(|validity| validity.overdue < now))
        .map(|(key, _)| key.to_owned())
        .collect(),
        callbacks: callbacks.map(outcomes).unwrap_or_default(),
        callback_pair_problem: callbacks.and_then(Callbacks::pair_problem),
        quarantine_evicted: callbacks.map_or(0, |callbacks| callbacks.quarantine().evicted()),
        registrations: registrations(parts, standing),
        registration_states: registrations(parts, |state| {
            RegistrationState::name(state).to_owned()
        }),
    };
    status.issues = issues::issues(&status);
    status
}

fn caller_credentials(parts: &GatewayParts) -> BTreeMap<String, CallerCredentials> {
    let tls = parts.tls.as_ref().map(|tls| (issues::GRPC_CERTIFICATE, tls.used()));
    let callbacks = parts.callbacks.as_ref().and_then(Callbacks::used_certificate);
    let callbacks = callbacks.map(|used| (issues::CALLBACKS_CERTIFICATE, used));
    let used = parts.callers.used().into_iter().chain(tls).chain(callbacks);
    used.map(|(key, used)| (key.to_owned(), used.into())).collect()
}

fn outcomes(callbacks: &Callbacks) -> BTreeMap<String, u64> {
    let counts =
        CallbackOutcome::all().map(|outcome| (outcome.name().to_owned(), callbacks.count(outcome)));
    counts.filter(|(_, count)| *count > 0).collect()
}

/// Returns what `text` says about the registration of each account.
fn registrations(
    parts: &GatewayParts,
    text: impl Fn(Option<&RegistrationState>) -> String,
) -> BTreeMap<String, String> {
    let (Some(callbacks), Some(registration)) = (&parts.callbacks, &parts.registration) else {
        return BTreeMap::new();
    };
    let states = registration.states();
    let accounts = callbacks.secrets().accounts();
    accounts.map(|account| (account.to_string(), text(states.get(account)))).collect()
}

fn standing(state: Option<&RegistrationState>) -> String {
    state.map_or_else(|| "not checked yet".to_owned(), ToString::to_string)
}
