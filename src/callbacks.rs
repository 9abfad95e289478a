//! The listener for ThingSpace's callbacks.
//!
//! 1. The last segment of the path must be an account's path secret. Otherwise the answer is 404,
//!    and the body is not read. Earlier segments are ignored, because proxies change them.
//! 2. The user name and password in the body must be the account's [pair](secrets::Pair).
//! 3. A callback becomes an event of the request that it names. A callback that cannot be read,
//!    names no request or names another account goes to the [`quarantine`].
//!
//! The answer is 200 only after the callback is durable. It is 503 if the store fails or needs
//! longer than [`ANSWER_TIMEOUT`]; then ThingSpace sends the callback again. Answers have no body,
//! and no log line contains any part of a callback's body.

mod bodies;
mod outcome;
pub(crate) mod parse;
pub mod quarantine;
pub mod registration;
mod reload;
pub mod secrets;

use std::{
    collections::HashMap,
    fmt::Display,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response,
    header::{ALLOW, CONNECTION},
};
use http_body_util::Empty;
use hyper::body::Incoming;

use secrecy::{ExposeSecret, SecretString};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use crate::{
    certificate::Validity,
    config::{CallbacksConfig, Network},
    identity::AccountName,
    lock::lock,
    reload::UsedVersion,
    requests::Requests,
    server::{
        ListenerOptions, Peer,
        http1::{self, Handler},
        tls::{Tls, TlsOptions},
    },
    store::{Store, StoreError},
};
use bodies::Bodies;
pub use outcome::CallbackOutcome;
use outcome::OutcomeCounters;
use parse::{Callback, QuarantineReason};
use quarantine::Quarantine;
use secrets::{CallbackSecrets, SecretsChange, SecretsError};

/// The listener's name in the log.
const LISTENER: &str = "callbacks";

/// The most open connections: half of the usual limit of file descriptors, because the API and the
/// calls to ThingSpace need the rest.
const MAX_CONNECTIONS: usize = 512;

const MAX_CONNECTIONS_OF_ADDRESS: usize = 256;

/// The listener uses at most one part in this many of the process's file descriptors.
const DESCRIPTORS_PART: usize = 4;

const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest time from a callback's last byte to its answer. It is short, because ThingSpace
/// sends a callback again if it waits too long for the answer.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1_800);

/// The most callbacks of one account that are stored at the same time. More are refused, so that a
/// sender with the URL of one account does not delay the callbacks of other accounts.
const MAX_STORING: usize = 256;

/// The most callbacks of one account that are added to the quarantine, or whose pair is looked up
/// in the store, at the same time.
const MAX_DOUBTFUL: usize = 32;

/// The listener for callbacks of all accounts. Clones share everything.
#[derive(Debug, Clone)]
pub struct Callbacks(Arc<CallbacksInner>);

#[derive(Debug)]
struct CallbacksInner {
    secrets: CallbackSecrets,
    quarantine: Quarantine,
    requests: Requests,
    tls: Option<Tls>,
    networks: Vec<Network>,
    bodies: Bodies,
    capacities: HashMap<AccountName, Capacity>,
    counters: OutcomeCounters,
    /// Why the files of the pair are not in use. `None`: they are, or there are none.
    pair_problem: Mutex<Option<String>>,
}

/// How many more callbacks of an account may be handled at once.
#[derive(Debug)]
struct Capacity {
    storing: Semaphore,
    doubtful: Semaphore,
}

impl Callbacks {
    /// Reads the certificate, and the secrets of the accounts if the store answers. Fails if a file
    /// cannot be used.
    pub async fn new(
        config: &CallbacksConfig,
        store: Arc<dyn Store>,
        accounts: &[AccountName],
        requests: Requests,
    ) -> anyhow::Result<Self> {
        let secrets = CallbackSecrets::new(config, Arc::clone(&store), accounts);
        match secrets.refresh().await {
            // Every callback is refused until the store answers; see `CallbackSecrets::reload`.
            Ok(())
            | Err(SecretsError::Store(
                StoreError::Unavailable(_) | StoreError::UnknownOutcome(_),
            )) => {}
            Err(error) => return Err(error.into()),
        }
        let tls = match config.tls() {
            Some((cert, key)) => {
                let options = TlsOptions {
                    listener: LISTENER,
                    cert_file: cert.to_owned(),
                    key_file: key.to_owned(),
                    clients: None,
                    protocol: b"http/1.1",
                };
                Some(Tls::load(options).await.map_err(anyhow::Error::msg)?)
            }
            None => None,
        };
        let networks = Network::parse_list(&config.networks)
            .map_err(|what| anyhow::Error::msg(format!("callbacks.networks: {what}")))?;
        let capacities = accounts.iter().map(|account| {
            let (storing, doubtful) = (Semaphore::new(MAX_STORING), Semaphore::new(MAX_DOUBTFUL));
            (account.clone(), Capacity { storing, doubtful })
        });
        Ok(Self(Arc::new(CallbacksInner {
            quarantine: Quarantine::new(store, secrets.clone()),
            secrets,
            requests,
            tls,
            networks,
            bodies: Bodies::default(),
            capacities: capacities.collect(),
            counters: OutcomeCounters::new(accounts),
            pair_problem: Mutex::default(),
        })))
    }

    /// Returns the secrets that identify senders.
    pub fn secrets(&self) -> &CallbackSecrets {
        &self.0.secrets
    }

    /// Returns the callbacks that are kept for an operator.
    pub fn quarantine(&self) -> &Quarantine {
        &self.0.quarantine
    }

    /// Returns how long the certificate in use is valid; `None` without HTTPS.
    pub(crate) fn certificate_validity(&self) -> Option<Validity> {
        self.0.tls.as_ref().map(Tls::validity)
    }

    /// Returns which version of the certificate is in use; `None` without HTTPS.
    pub(crate) fn used_certificate(&self) -> Option<UsedVersion> {
        self.0.tls.as_ref().map(Tls::used)
    }

    /// Returns why the newest content of the pair's files is not in use. `None`: it is.
    pub(crate) fn pair_problem(&self) -> Option<String> {
        lock(&self.0.pair_problem).clone()
    }

    /// Returns the number of requests to the listener with this outcome since the start.
    pub fn count(&self, outcome: CallbackOutcome) -> u64 {
        self.0.counters.get(outcome)
    }

    /// Returns for how long each account had no callback, since the start of this process.
    pub(crate) fn silences(&self) -> Vec<(AccountName, Duration)> {
        self.0.counters.silences()
    }

    /// Serves until `stop`, then finishes the open requests.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let tls = self.0.tls.clone();
        let (followed, stopping) = (tls.clone(), stop.clone());
        let following = async {
            if let Some(tls) = followed {
                tls.follow(stopping).await;
            }
        };
        let reloading = stop.clone().run_until_cancelled_owned(self.clone().reload());
        let options = ListenerOptions {
            name: LISTENER,
            max_connections: MAX_CONNECTIONS,
            max_connections_of_address: MAX_CONNECTIONS_OF_ADDRESS,
            descriptors_part: DESCRIPTORS_PART,
            networks: self.0.networks.clone(),
            connections: TaskTracker::new(),
        };
        tokio::join!(http1::serve(options, listener, tls, self, stop), reloading, following);
    }

    async fn receive(
        &self,
        account: &AccountName,
        request: Request<Incoming>,
    ) -> Result<CallbackOutcome, CallbackOutcome> {
        if request.method() != Method::POST {
            return Err(CallbackOutcome::WrongMethod);
        }
        let peer = request.extensions().get::<Peer>().cloned().expect("the listener adds it");
        let arriving = self.0.bodies.begin(account, peer.source);
        let read = timeout(BODY_TIMEOUT, bodies::read(request.into_body()));
        let body = match arriving.evicted.run_until_cancelled(read).await {
            Some(Ok(body)) => body?,
            Some(Err(_)) | None => return Err(CallbackOutcome::TooSlow),
        };
        drop(arriving);
        let _protection = peer.protect();
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        match parse::parse(&body, account) {
            Ok(callback) => {
                self.store(account, callback, deadline).await?;
                peer.trust();
                Ok(CallbackOutcome::Stored)
            }
            Err(reason) => {
                self.keep(account, &body, reason, deadline).await?;
                Ok(CallbackOutcome::Quarantined)
            }
        }
    }

    /// Stores a callback as an event of its request.
    async fn store(
        &self,
        account: &AccountName,
        callback: Callback,
        deadline: Instant,
    ) -> Result<(), CallbackOutcome> {
        let Callback { request_id, username, password, called_back } = callback;
        let (Some(username), Some(password)) = (username, password) else {
            return Err(CallbackOutcome::WrongPair);
        };
        self.check_pair(account, &username, &password, deadline).await?;
        let _permit = self.acquire(account, |capacity| &capacity.storing)?;
        let status = called_back.status();
        let stored = self.0.requests.called_back(account, &request_id, called_back);
        in_time(deadline, account, "store", stored).await?;
        debug!(%account, request.id = %request_id, ?status, "stored a callback");
        Ok(())
    }

    /// Adds a callback to the quarantine. Refuses it if it has a pair that is not the account's.
    async fn keep(
        &self,
        account: &AccountName,
        body: &[u8],
        reason: QuarantineReason,
        deadline: Instant,
    ) -> Result<(), CallbackOutcome> {
        let pair = parse::pair(body);
        if let Some((username, password)) = &pair {
            self.check_pair(account, username, password, deadline).await?;
        }
        let _permit = self.acquire(account, |capacity| &capacity.doubtful)?;
        let added = self.0.quarantine.add(account, body, pair.is_some());
        let number = in_time(deadline, account, "quarantine", added).await?;
        let number = number.ok_or(CallbackOutcome::NotKept)?;
        debug!(%account, number, %reason, "quarantined a callback");
        Ok(())
    }

    /// Checks that the pair is the account's. Reads the store for an unknown pair, because another
    /// replica may have replaced the pair.
    async fn check_pair(
        &self,
        account: &AccountName,
        username: &SecretString,
        password: &SecretString,
        deadline: Instant,
    ) -> Result<(), CallbackOutcome> {
        let secrets = &self.0.secrets;
        let accepted =
            || secrets.accepts(account, username.expose_secret(), password.expose_secret());
        if accepted() {
            return Ok(());
        }
        let _permit = self.acquire(account, |capacity| &capacity.doubtful)?;
        in_time(deadline, account, "check", secrets.update(account, SecretsChange::None)).await?;
        if accepted() {
            return Ok(());
        }
        debug!(%account, "refused a callback with a wrong user name or password");
        Err(CallbackOutcome::WrongPair)
    }

    fn acquire(
        &self,
        account: &AccountName,
        select: impl Fn(&Capacity) -> &Semaphore,
    ) -> Result<SemaphorePermit<'_>, CallbackOutcome> {
        let capacity = self.0.capacities.get(account).ok_or(CallbackOutcome::TooMany)?;
        select(capacity).try_acquire().map_err(|_| CallbackOutcome::TooMany)
    }
}

impl Handler for Callbacks {
    type Body = Empty<Bytes>;

    async fn handle(self, request: Request<Incoming>) -> Response<Empty<Bytes>> {
        let began = std::time::Instant::now();
        // ThingSpace may list and call the registered URL with a slash at its end.
        let secret =
            request.uri().path().trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let (account, received) = match timeout(ANSWER_TIMEOUT, self.0.secrets.find(secret)).await {
            Ok(Ok(Some(account))) => {
                let received = self.receive(&account, request).await;
                (Some(account), received)
            }
            Ok(Ok(None)) => (None, Err(CallbackOutcome::UnknownPath)),
            // Without the store it is unknown whether the secret is right.
            Ok(Err(_)) | Err(_) => (None, Err(CallbackOutcome::NotStored)),
        };
        let outcome = received.unwrap_or_else(|refused| refused);
        self.0.counters.count(outcome, account.as_ref(), began);
        let mut answer = Response::new(Empty::new());
        *answer.status_mut() = outcome.status();
        if outcome == CallbackOutcome::WrongMethod {
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        }
        // The rest of the body is not read, so the connection cannot be used again.
        if outcome == CallbackOutcome::TooSlow {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }
}

/// Waits until the deadline for an operation of the store.
async fn in_time<T, E: Display>(
    deadline: Instant,
    account: &AccountName,
    action: &str,
    operation: impl Future<Output = Result<T, E>>,
) -> Result<T, CallbackOutcome> {
    match timeout_at(deadline, operation).await {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(error)) => debug!(%account, %error, "cannot {action} a callback"),
        Err(_) => debug!(%account, "cannot {action} a callback in time"),
    }
    Err(CallbackOutcome::NotStored)
}
