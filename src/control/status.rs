//! `status`: how the gateway is doing.

use std::{collections::BTreeMap, path::PathBuf};

use axum::{Json, Router, extract::State, routing::get};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Subject,
    logins::{Login, logins},
    store::{Memory, memory},
};
use crate::{
    callbacks::{Callbacks, Outcome},
    identity::AccountName,
    thingspace::HostHealth,
};

pub(super) const PATH: &str = "/v1/status";

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Status {
    pub(super) version: String,
    /// The configuration file.
    pub(super) config: Option<PathBuf>,
    /// Calls can be answered.
    pub(super) ready: bool,
    /// Why not.
    pub(super) waits_for: Option<String>,
    /// What a gateway that is ready cannot do now, and why.
    #[serde(default)]
    pub(super) limited: Option<String>,
    /// Its file, or where it is.
    pub(super) store: String,
    /// Why it cannot be used now, or, where that shows only then, why it could not be written to
    /// last time.
    pub(super) store_trouble: Option<String>,
    pub(super) store_memory: Memory,
    /// Logs that cannot be read and were set aside.
    #[serde(default)]
    pub(super) unreadable_logs: Vec<UnreadableLog>,
    pub(super) open_requests: usize,
    pub(super) open_devices: usize,
    /// `None`: the store does not say.
    pub(super) unknown_orders: Option<usize>,
    /// Requests that ended since the start.
    pub(super) finished_by_callback: u64,
    pub(super) finished_by_poll: u64,
    /// Callbacks since the start for requests that were not known here.
    pub(super) stray_callbacks: u64,
    pub(super) logins: Vec<Login>,
    pub(super) hosts: Vec<Host>,
    /// When the certificate of the callbacks' listener expires, with HTTPS.
    pub(super) callbacks_certificate_expires: Option<Timestamp>,
    /// How many requests to the callbacks' listener had which outcome since the start, without
    /// those that none had.
    #[serde(default)]
    pub(super) callbacks: BTreeMap<String, u64>,
    /// Callbacks that left the quarantine since the start to make room for others.
    #[serde(default)]
    pub(super) quarantine_evicted: u64,
    /// How the registration of each account is doing, if it is known how ThingSpace reaches the
    /// listener.
    #[serde(default)]
    pub(super) registrations: BTreeMap<String, String>,
}

/// A log that cannot be read.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct UnreadableLog {
    pub(super) log: String,
    pub(super) why: String,
}

/// A host of ThingSpace's.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Host {
    pub(super) host: String,
    /// It does not answer, and is not called for so long. `None`: it is called.
    pub(super) left_alone_ms: Option<u64>,
}

impl From<HostHealth> for Host {
    fn from(HostHealth { host, left_alone }: HostHealth) -> Self {
        let left_alone_ms =
            left_alone.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        Self { host, left_alone_ms }
    }
}

pub(super) fn routes() -> Router<Subject> {
    Router::new().route(PATH, get(status))
}

async fn status(State(subject): State<Subject>) -> Json<Status> {
    // What is known is told also while the store is away.
    let unknown = subject.requests.unknown_orders().await.ok().map(|orders| orders.len());
    let unreadable = subject.requests.unreadable_logs();
    let overview = subject.requests.overview();
    let draining = subject.instance.drain.is_cancelled();
    let waits_for =
        if draining { Some("draining".to_owned()) } else { subject.requests.waits_for() };
    let limited = if draining { None } else { subject.requests.limited() };
    let certificate = match &subject.callbacks {
        Some(callbacks) => callbacks.certificate_expires().await,
        None => None,
    };
    Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        config: subject.instance.config.clone(),
        ready: overview.ready && !draining,
        waits_for,
        limited,
        store: subject.instance.store.clone(),
        store_trouble: subject.requests.store_trouble(),
        store_memory: memory(&subject),
        unreadable_logs: unreadable
            .into_iter()
            .map(|(log, why)| UnreadableLog { log, why })
            .collect(),
        open_requests: overview.open_requests,
        open_devices: overview.open_devices,
        unknown_orders: unknown,
        finished_by_callback: overview.finished_by_callback,
        finished_by_poll: overview.finished_by_poll,
        stray_callbacks: overview.stray_callbacks,
        logins: logins(&subject),
        hosts: subject.client.hosts().into_iter().map(Host::from).collect(),
        callbacks_certificate_expires: certificate,
        callbacks: subject.callbacks.as_ref().map(outcomes).unwrap_or_default(),
        quarantine_evicted: subject
            .callbacks
            .as_ref()
            .map_or(0, |callbacks| callbacks.quarantine().evicted()),
        registrations: registrations(&subject),
    })
}

fn outcomes(callbacks: &Callbacks) -> BTreeMap<String, u64> {
    let counts =
        Outcome::ALL.iter().map(|outcome| (outcome.name().to_owned(), callbacks.count(*outcome)));
    counts.filter(|(_, count)| *count > 0).collect()
}

fn registrations(subject: &Subject) -> BTreeMap<String, String> {
    let (Some(callbacks), Some(registration)) = (&subject.callbacks, &subject.registration) else {
        return BTreeMap::new();
    };
    let standings = registration.standings();
    let accounts = callbacks.secrets().accounts();
    let said = |account: &AccountName| {
        standings.get(account).map_or_else(|| "not looked at yet".to_owned(), ToString::to_string)
    };
    accounts.map(|account| (account.to_string(), said(account))).collect()
}
