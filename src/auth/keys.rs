//! The key set of an issuer, from a file or a URL.
//!
//! A set from a URL is fetched in the background. A token with an unknown key id makes the gateway
//! fetch it earlier, at most once a minute, so that tokens that nobody signed cause no load. Only
//! the background fetches, so no caller can cancel a fetch.
//! A set that cannot be fetched or used never replaces the set in use.

use std::{path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use reqwest::{Certificate, Client, Url, redirect::Policy};
use rustls::pki_types::CertificateDer;
use secrecy::ExposeSecret;
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{Instant, sleep_until, timeout},
};
use tracing::{info, warn};

use super::jwt::Keys;
use crate::{
    certificate,
    log_throttle::LogThrottle,
    reload::{Reloaded, UsedVersion},
    secret_file,
};

/// What the files of authorities are, for metrics.
const AUTHORITIES: &str = "key_set_authorities";

/// How often the set is fetched.
const REFRESH: Duration = Duration::from_mins(5);

/// How soon after a failure, and at the earliest for an unknown key id.
const RETRY: Duration = Duration::from_mins(1);

/// At start, until the set has been fetched once.
const FIRST_RETRY: Duration = Duration::from_secs(2);

/// The longest time for a fetch, and for a call that waits for one.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest set, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// The most calls that wait for a fetch. Tokens that nobody signed can make calls wait.
const MAX_WAITING: usize = 100;

/// Where the keys come from.
#[derive(Debug)]
pub(crate) struct KeySource(Source);

/// The URL of a key set, and how to reach it.
#[derive(Debug)]
pub(crate) struct KeySetUrl {
    /// `https://`, or `http://` on this machine.
    pub(crate) url: String,
    /// The authorities of its certificate; `None`: those of the system.
    pub(crate) ca_file: Option<PathBuf>,
    /// Sent as a bearer token, which the Kubernetes API server asks for.
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Debug)]
enum Source {
    File(Reloaded<Keys>),
    Url(Box<FetchedKeys>),
}

impl KeySource {
    /// Reads the set from a file.
    pub(crate) async fn file(file: PathBuf) -> Result<Self, String> {
        Reloaded::load_one("key_set", file, Keys::parse).await.map(|keys| Self(Source::File(keys)))
    }

    /// Prepares to fetch the set.
    pub(crate) async fn url(location: KeySetUrl) -> Result<Self, String> {
        FetchedKeys::new(location).await.map(|keys| Self(Source::Url(Box::new(keys))))
    }

    /// The keys in use. `None`: they have not been fetched yet.
    pub(super) fn current(&self) -> Option<Arc<Keys>> {
        match &self.0 {
            Source::File(file) => Some(file.current()),
            Source::Url(url) => url.state.borrow().keys.clone(),
        }
    }

    /// Returns the configuration key of the source, and which keys are in use.
    pub(super) fn used(&self) -> (&'static str, UsedVersion) {
        match &self.0 {
            Source::File(file) => ("auth.jwt.jwks_file", file.used()),
            Source::Url(url) => {
                let state = url.state.borrow();
                let used = UsedVersion { since: state.fetched, problem: state.problem.clone() };
                ("auth.jwt.jwks_url", used)
            }
        }
    }

    /// Waits until there are keys.
    pub(super) async fn ready(&self) {
        if let Source::Url(url) = &self.0 {
            let mut state = url.state.subscribe();
            let fetched = state.wait_for(|state| state.keys.is_some()).await;
            drop(fetched.expect("the sender lives as long as the source"));
        }
    }

    /// Keeps the keys up to date. Never ends.
    pub(super) async fn follow(&self) {
        match &self.0 {
            Source::File(file) => file.follow().await,
            Source::Url(url) => {
                tokio::join!(url.follow(), url.client.follow());
            }
        }
    }

    /// Returns keys that are newer than these, which lack the key of a token. Waits for a fetch if
    /// one is permitted now or in progress.
    pub(super) async fn newer_than(&self, old: &Arc<Keys>) -> Option<Arc<Keys>> {
        if let Source::Url(url) = &self.0 {
            url.fetch_for_unknown_key().await;
        }
        self.current().filter(|keys| !Arc::ptr_eq(keys, old))
    }
}

/// A set from a URL.
#[derive(Debug)]
struct FetchedKeys {
    client: Reloaded<Client>,
    url: Url,
    token_file: Option<PathBuf>,
    state: watch::Sender<FetchState>,
    /// Notified if a token has an unknown key id and a fetch is permitted.
    wanted: Notify,
    waiting: Semaphore,
    failures: LogThrottle,
}

#[derive(Debug, Default)]
struct FetchState {
    keys: Option<Arc<Keys>>,
    /// When the keys were fetched.
    fetched: Option<Timestamp>,
    /// Why the last fetch failed. `None`: it has not.
    problem: Option<String>,
    /// The number of fetches that have ended.
    fetches: u64,
    /// Before this time, an unknown key id causes no fetch. `None`: a fetch is in progress.
    earliest: Option<Instant>,
}

impl FetchedKeys {
    async fn new(location: KeySetUrl) -> Result<Self, String> {
        let KeySetUrl { url, ca_file, token_file } = location;
        let url = url.parse().map_err(|_| format!("{url} is no URL"))?;
        let client = match ca_file {
            None => Reloaded::load(AUTHORITIES, Vec::new(), |_| client(None)).await,
            Some(file) => {
                let files = vec![file.clone()];
                Reloaded::load(AUTHORITIES, files, move |contents| {
                    client(Some(certificate::authorities(&file, &contents[0])?))
                })
                .await
                .map_err(|why| format!("jwks_ca_file: {why}"))
            }
        };
        Ok(Self {
            client: client?,
            url,
            token_file,
            state: watch::Sender::default(),
            wanted: Notify::new(),
            waiting: Semaphore::new(MAX_WAITING),
            failures: LogThrottle::default(),
        })
    }

    /// Fetches the set at intervals, and earlier for unknown key ids. Never ends.
    async fn follow(&self) {
        loop {
            let began = Instant::now();
            self.state.send_modify(|state| state.earliest = None);
            let fetched = self.fetch().await;
            let mut pause = REFRESH;
            self.state.send_modify(|state| {
                match fetched {
                    Ok(keys) => {
                        state.keys = Some(keys);
                        (state.fetched, state.problem) = (Some(Timestamp::now()), None);
                    }
                    Err(why) => {
                        pause = if state.keys.is_some() { RETRY } else { FIRST_RETRY };
                        state.problem = Some(why);
                    }
                }
                state.fetches += 1;
                state.earliest = Some(began + RETRY.min(pause));
            });
            // A call may have asked for the fetch that has just ended, so its wish waits, too.
            let wanted = async {
                sleep_until(began + RETRY.min(pause)).await;
                self.wanted.notified().await;
            };
            tokio::select! {
                () = sleep_until(began + pause) => {}
                () = wanted => {}
            }
        }
    }

    /// Makes [`follow`](Self::follow) fetch the set if that is permitted, and waits until a fetch
    /// has ended.
    async fn fetch_for_unknown_key(&self) {
        let Ok(_waiting) = self.waiting.try_acquire() else { return };
        let mut state = self.state.subscribe();
        let fetches = {
            let state = state.borrow_and_update();
            match state.earliest {
                Some(earliest) if Instant::now() < earliest => return,
                Some(_) => self.wanted.notify_one(),
                None => {}
            }
            state.fetches
        };
        // After this time, the call fails like one with an unknown key id.
        let _ = timeout(FETCH_TIMEOUT, state.wait_for(|state| state.fetches > fetches)).await;
    }

    async fn fetch(&self) -> Result<Arc<Keys>, String> {
        match self.get().await {
            Ok(keys) => {
                if self.state.borrow().keys.is_none() {
                    info!(url = %self.url, "fetched the key set of the callers' tokens");
                }
                Ok(Arc::new(keys))
            }
            Err(why) => {
                if let Some(times) = self.failures.count() {
                    warn!(
                        url = %self.url,
                        times,
                        "cannot fetch the key set of the callers' tokens; the last one stays in \
                         use, and without one, calls with such tokens fail: {why}"
                    );
                }
                Err(why)
            }
        }
    }

    async fn get(&self) -> Result<Keys, String> {
        let mut request = self.client.current().get(self.url.clone());
        if let Some(file) = &self.token_file {
            request = request.bearer_auth(secret_file::read(file).await?.expose_secret());
        }
        let mut answer = request.send().await.map_err(failed)?;
        if !answer.status().is_success() {
            return Err(format!("the answer is {}", answer.status()));
        }
        let mut body = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(failed)? {
            body.extend_from_slice(&part);
            if body.len() > MAX_BYTES {
                return Err(format!("the answer is larger than {MAX_BYTES} bytes"));
            }
        }
        Keys::parse(&body).map_err(|why| format!("the answer {why}"))
    }
}

/// Fetches a key set once, and checks that it has a usable key.
pub(crate) async fn probe(location: KeySetUrl) -> Result<(), String> {
    FetchedKeys::new(location).await?.get().await.map(drop)
}

/// Returns a client that trusts these authorities; `None`: those of the system.
fn client(authorities: Option<Vec<CertificateDer<'static>>>) -> Result<Client, String> {
    let mut client = Client::builder().redirect(Policy::none()).no_proxy().timeout(FETCH_TIMEOUT);
    if let Some(authorities) = authorities {
        let authorities = authorities.iter().map(|der| Certificate::from_der(der));
        client = client.tls_certs_only(authorities.collect::<Result<Vec<_>, _>>().map_err(failed)?);
    }
    client.build().map_err(failed)
}

/// Returns the causes of an error, too, such as the problem of a certificate.
fn failed(error: reqwest::Error) -> String {
    format!("{:#}", anyhow::Error::new(error.without_url()))
}

#[cfg(test)]
mod tests;
