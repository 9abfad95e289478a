//! The key set of an issuer, from a file or a URL.
//!
//! A set from a URL is fetched in the background. A token with an unknown key id makes the gateway
//! fetch it earlier, at most once a minute, so that tokens that nobody signed cause no load.
//! A set that cannot be fetched or used never replaces the set in use.

use std::{
    path::PathBuf,
    sync::{Arc, RwLock},
    time::Duration,
};

use reqwest::{Certificate, Client, Url, header::AUTHORIZATION, redirect::Policy};
use secrecy::ExposeSecret;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use super::jwt::Keys;
use crate::{certificate, lock, log_throttle::LogThrottle, reload::Reloaded, secret_file};

/// How often the set is fetched.
const REFRESH: Duration = Duration::from_mins(5);

/// How soon after a failure, and at the earliest for an unknown key id.
const RETRY: Duration = Duration::from_mins(1);

/// At start, until the set has been fetched once.
const FIRST_RETRY: Duration = Duration::from_secs(2);

const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest set, in bytes.
const MAX_BYTES: usize = 1 << 20;

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
    Url(FetchedKeys),
}

impl KeySource {
    /// Reads the set from a file.
    pub(crate) async fn file(file: PathBuf) -> Result<Self, String> {
        Reloaded::load_one(file, Keys::parse).await.map(|keys| Self(Source::File(keys)))
    }

    /// Prepares to fetch the set.
    pub(crate) fn url(location: KeySetUrl) -> Result<Self, String> {
        FetchedKeys::new(location).map(|keys| Self(Source::Url(keys)))
    }

    /// The keys in use. `None`: they have not been fetched yet.
    pub(super) fn current(&self) -> Option<Arc<Keys>> {
        match &self.0 {
            Source::File(file) => Some(file.current()),
            Source::Url(url) => lock::read(&url.current).clone(),
        }
    }

    /// Keeps the keys up to date. Never ends.
    pub(super) async fn follow(&self) {
        match &self.0 {
            Source::File(file) => file.follow().await,
            Source::Url(url) => url.follow().await,
        }
    }

    /// Fetches the set if that is permitted now. Returns whether there may be new keys.
    pub(super) async fn look_for_new(&self) -> bool {
        match &self.0 {
            Source::File(_) => false,
            Source::Url(url) => timeout(FETCH_TIMEOUT, url.look_for_new()).await.unwrap_or(false),
        }
    }
}

/// A set from a URL.
#[derive(Debug)]
struct FetchedKeys {
    client: Client,
    url: Url,
    token_file: Option<PathBuf>,
    current: RwLock<Option<Arc<Keys>>>,
    /// When a fetch began last. Locked while one is in progress.
    began: Mutex<Option<Instant>>,
    failures: LogThrottle,
}

impl FetchedKeys {
    fn new(location: KeySetUrl) -> Result<Self, String> {
        let KeySetUrl { url, ca_file, token_file } = location;
        let text = |error: reqwest::Error| error.to_string();
        let mut client =
            Client::builder().redirect(Policy::none()).no_proxy().timeout(FETCH_TIMEOUT);
        if let Some(ca_file) = ca_file {
            let authorities = certificate::check_authorities(&ca_file)?;
            let authorities = authorities.iter().map(|der| Certificate::from_der(der));
            client =
                client.tls_certs_only(authorities.collect::<Result<Vec<_>, _>>().map_err(text)?);
        }
        Ok(Self {
            client: client.build().map_err(text)?,
            url: url.parse().map_err(|_| format!("{url} is no URL"))?,
            token_file,
            current: RwLock::default(),
            began: Mutex::default(),
            failures: LogThrottle::default(),
        })
    }

    async fn follow(&self) {
        loop {
            let fetched = self.fetch(&mut *self.began.lock().await).await;
            let known = lock::read(&self.current).is_some();
            sleep(match (fetched, known) {
                (true, _) => REFRESH,
                (false, true) => RETRY,
                (false, false) => FIRST_RETRY,
            })
            .await;
        }
    }

    async fn look_for_new(&self) -> bool {
        let asked = Instant::now();
        let mut began = self.began.lock().await;
        match *began {
            // Another call has fetched it while this one waited.
            Some(began) if began >= asked => true,
            Some(began) if began.elapsed() < RETRY => false,
            _ => self.fetch(&mut began).await,
        }
    }

    async fn fetch(&self, began: &mut Option<Instant>) -> bool {
        *began = Some(Instant::now());
        match self.get().await {
            Ok(keys) => {
                let first = lock::write(&self.current).replace(Arc::new(keys)).is_none();
                if first {
                    info!(url = %self.url, "fetched the key set of the callers' tokens");
                }
                true
            }
            Err(why) => {
                if let Some(times) = self.failures.count() {
                    warn!(
                        url = %self.url,
                        times,
                        "cannot fetch the key set of the callers' tokens: {why}"
                    );
                }
                false
            }
        }
    }

    async fn get(&self) -> Result<Keys, String> {
        let mut request = self.client.get(self.url.clone());
        if let Some(file) = &self.token_file {
            let token = secret_file::read(file).await?;
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose_secret()));
        }
        let failed = |error: reqwest::Error| error.without_url().to_string();
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
