//! ThingSpace's callbacks: proved, read, made durable, and only then acknowledged.
//!
//! The last segment of the path proves the sender and tells the account; what stands before it is
//! not looked at, since proxies change it. Without it nothing of a request is read. The user name
//! and the password in the body are the second proof. A callback is answered 200 when it is
//! durable, never before, and 503 when it cannot be, within two seconds, after which ThingSpace
//! sends it again. One that nobody understands is quarantined and answered 200, so that it is not
//! lost.
//!
//! An answer has no body, and no log line anything of one.

mod arrivals;
mod outcome;
pub mod parse;
pub mod quarantine;
pub mod registration;
pub mod secrets;
mod tally;
mod tls;

use std::{collections::HashMap, error::Error, fmt::Display, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response,
    header::{ALLOW, CONNECTION},
};
use http_body::Body;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    net::TcpListener,
    sync::{Mutex, Semaphore, SemaphorePermit},
    time::{Instant, interval, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    config::{CallbacksConfig, Network},
    identity::AccountName,
    requests::Requests,
    server::http::{self as listener, Handler, ListenerOptions, Peer},
    store::{Store, StoreError},
};
use arrivals::Arrivals;
pub use outcome::Outcome;
use parse::{Callback, Unintelligible};
use quarantine::Quarantine;
use secrets::Secrets;
use tally::Tally;
use tls::Tls;

/// Connections at once: half the file descriptors that a process often has. The API and the calls
/// to ThingSpace need some, too.
const MAX_CONNECTIONS: usize = 512;

/// Of these, from one address: two cannot take all.
const MAX_CONNECTIONS_OF_ADDRESS: usize = 256;

/// Bytes of a callback's body.
const MAX_BODY: usize = 256 << 10;

/// For a callback's body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// From a callback's last byte to its answer. ThingSpace sends it again while it waits for one.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1_800);

/// Callbacks of an account being stored at once; above it senders are asked to come again. Whoever
/// got hold of one account's URL cannot keep others' callbacks out.
const MAX_AT_ONCE: usize = 256;

/// Callbacks of an account at once that need more of the store: with a pair that is not known, or
/// not understood. They leave the room above to the others.
const MAX_DOUBTFUL: usize = 32;

/// How often certificate and pairs are looked at.
const LOOK: Duration = Duration::from_secs(30);

/// How long before the certificate expires a warning says so.
const EXPIRY_NOTICE: Duration = Duration::from_hours(24 * 14);

#[derive(Debug, Clone)]
pub struct Callbacks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    secrets: Secrets,
    quarantine: Quarantine,
    requests: Requests,
    tls: Option<Mutex<Tls>>,
    networks: Vec<Network>,
    arrivals: Arrivals,
    rooms: HashMap<AccountName, Room>,
    tally: Tally,
}

/// What is done at once for an account.
#[derive(Debug)]
struct Room {
    storing: Semaphore,
    doubtful: Semaphore,
}

impl Default for Room {
    fn default() -> Self {
        Self { storing: Semaphore::new(MAX_AT_ONCE), doubtful: Semaphore::new(MAX_DOUBTFUL) }
    }
}

impl Callbacks {
    pub async fn new(
        config: &CallbacksConfig,
        store: Arc<dyn Store>,
        accounts: &[AccountName],
        requests: Requests,
    ) -> anyhow::Result<Self> {
        let secrets = Secrets::new(config, Arc::clone(&store), accounts);
        match secrets.refresh().await {
            // Nothing is proved before the store has told the secrets; see `Secrets::reload`.
            Ok(())
            | Err(secrets::Error::Store(
                StoreError::Unavailable(_) | StoreError::UnknownOutcome(_),
            )) => {}
            Err(error) => return Err(error.into()),
        }
        let tls = match config.tls() {
            Some((cert, key)) => {
                Some(Mutex::new(Tls::load(cert, key).await.map_err(anyhow::Error::msg)?))
            }
            None => None,
        };
        let quarantine = Quarantine::new(store, secrets.clone());
        let rooms = accounts.iter().map(|account| (account.clone(), Room::default())).collect();
        let networks = Network::parse_list(&config.networks)
            .map_err(|what| anyhow::Error::msg(format!("callbacks.networks: {what}")))?;
        let (arrivals, tally) = (Arrivals::default(), Tally::default());
        let inner = Inner { secrets, quarantine, requests, tls, networks, arrivals, rooms, tally };
        Ok(Self(Arc::new(inner)))
    }

    pub fn secrets(&self) -> &Secrets {
        &self.0.secrets
    }

    pub fn quarantine(&self) -> &Quarantine {
        &self.0.quarantine
    }

    /// When the certificate in use expires, with HTTPS.
    pub async fn certificate_expires(&self) -> Option<Timestamp> {
        match &self.0.tls {
            Some(tls) => Some(tls.lock().await.expires),
            None => None,
        }
    }

    /// How many requests to the listener had this outcome.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.0.tally.get(outcome)
    }

    /// Serves until `stop`, then finishes what is open.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let acceptor = match &self.0.tls {
            Some(tls) => Some(tls.lock().await.acceptor.clone()),
            None => None,
        };
        let look = stop.clone().run_until_cancelled_owned(self.clone().look());
        let options = ListenerOptions {
            name: "callbacks",
            max_connections: MAX_CONNECTIONS,
            max_connections_of_address: MAX_CONNECTIONS_OF_ADDRESS,
            networks: self.0.networks.clone(),
        };
        tokio::join!(listener::serve(options, listener, acceptor, self, stop), look);
    }

    /// Follows what may change on disk and in other replicas. A failure is told once, until it is
    /// another.
    async fn look(self) {
        let mut tick = interval(LOOK);
        let (mut last_tls, mut last_pairs) = (None, None);
        let mut notified = None;
        loop {
            tick.tick().await;
            if let Some(tls) = &self.0.tls {
                let failure = match tls.lock().await.reload().await {
                    Ok(new) => {
                        if new {
                            info!("the callbacks' certificate is a new one");
                        }
                        None
                    }
                    Err(error) => Some(error),
                };
                if let (Some(error), true) = (&failure, failure != last_tls) {
                    warn!(error, "the callbacks' certificate stays as it was");
                }
                last_tls = failure;
            }
            if let Some(expires) = self.certificate_expires().await
                && Timestamp::now() + EXPIRY_NOTICE > expires
                && notified != Some(expires)
            {
                warn!(%expires, "the callbacks' certificate expires soon or has expired; renew its files");
                notified = Some(expires);
            }
            let failed = self.0.secrets.refresh().await.err();
            let failure = failed.as_ref().map(ToString::to_string);
            if let (Some(error), true) = (&failure, failure != last_pairs) {
                if let Some(secrets::Error::Login { .. }) = failed {
                    error!(error, "the callbacks' user names and passwords stay as they were");
                } else {
                    warn!(error, "the callbacks' user names and passwords stay as they were");
                }
            }
            last_pairs = failure;
        }
    }

    async fn take(&self, account: &AccountName, request: Request<Incoming>) -> Outcome {
        if request.method() != Method::POST {
            return Outcome::WrongMethod;
        }
        let peer = request.extensions().get::<Peer>().cloned().expect("the listener adds it");
        let arrival = self.0.arrivals.begin(account, peer.source);
        let read = timeout(BODY_TIMEOUT, read(request.into_body()));
        let body = match arrival.given_up.run_until_cancelled(read).await {
            Some(Ok(Ok(body))) => body,
            Some(Ok(Err(refused))) => return refused,
            Some(Err(_)) | None => return Outcome::TooSlow,
        };
        drop(arrival);
        let _protection = peer.protect();
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let outcome = match parse::parse(&body, account) {
            Ok(callback) => self.append(account, callback, deadline).await,
            Err(why) => self.quarantined(account, &body, why, deadline).await,
        };
        if outcome == Ok(Outcome::Stored) {
            peer.trust();
        }
        outcome.unwrap_or_else(|refused| refused)
    }

    async fn append(
        &self,
        account: &AccountName,
        callback: Callback,
        deadline: Instant,
    ) -> Result<Outcome, Outcome> {
        let Callback { request_id, username, password, called_back } = callback;
        let (Some(username), Some(password)) = (username, password) else {
            return Err(Outcome::WrongPair);
        };
        self.check(account, &username, &password, deadline).await?;
        let _room = self.room(account, |room| &room.storing)?;
        let status = called_back.status();
        let appended = self.0.requests.called_back(account, &request_id, called_back);
        in_time(deadline, account, "store", appended).await?;
        debug!(%account, request.id = %request_id, ?status, "a callback");
        Ok(Outcome::Stored)
    }

    /// Keeps what cannot be understood. What can be read of its pair has to be right.
    async fn quarantined(
        &self,
        account: &AccountName,
        body: &[u8],
        why: Unintelligible,
        deadline: Instant,
    ) -> Result<Outcome, Outcome> {
        let pair = parse::pair(body);
        if let Some((username, password)) = &pair {
            self.check(account, username, password, deadline).await?;
        }
        let _room = self.room(account, |room| &room.doubtful)?;
        let added = self.0.quarantine.add(account, body, pair.is_some());
        let number =
            in_time(deadline, account, "quarantine", added).await?.ok_or(Outcome::NotKept)?;
        debug!(%account, number, %why, "a callback that cannot be understood");
        Ok(Outcome::Quarantined)
    }

    /// Whether the pair is the account's.
    async fn check(
        &self,
        account: &AccountName,
        username: &SecretString,
        password: &SecretString,
        deadline: Instant,
    ) -> Result<(), Outcome> {
        let secrets = &self.0.secrets;
        let accepted =
            || secrets.accepts(account, username.expose_secret(), password.expose_secret());
        if accepted() {
            return Ok(());
        }
        // Another replica may know a newer pair.
        let _room = self.room(account, |room| &room.doubtful)?;
        in_time(deadline, account, "check", secrets.refresh_pair(account)).await?;
        if accepted() {
            return Ok(());
        }
        debug!(%account, "a callback with a wrong user name or password");
        Err(Outcome::WrongPair)
    }

    fn room(
        &self,
        account: &AccountName,
        of: impl Fn(&Room) -> &Semaphore,
    ) -> Result<SemaphorePermit<'_>, Outcome> {
        let room = self.0.rooms.get(account).ok_or(Outcome::TooMany)?;
        of(room).try_acquire().map_err(|_| Outcome::TooMany)
    }
}

impl Handler for Callbacks {
    type Body = Empty<Bytes>;

    async fn handle(self, request: Request<Incoming>) -> Response<Empty<Bytes>> {
        // ThingSpace may list and call the registered URL with a slash at its end.
        let secret =
            request.uri().path().trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let account = match timeout(ANSWER_TIMEOUT, self.0.secrets.find(secret)).await {
            Ok(Ok(account)) => Ok(account),
            // The store cannot say whether it is a right one.
            Ok(Err(_)) | Err(_) => Err(Outcome::NotStored),
        };
        let outcome = match &account {
            Ok(Some(account)) => self.take(account, request).await,
            Ok(None) => Outcome::UnknownPath,
            Err(refused) => *refused,
        };
        let account = account.ok().flatten();
        self.0.tally.count(outcome, account.as_ref());
        let mut answer = Response::new(Empty::new());
        *answer.status_mut() = outcome.status();
        if outcome == Outcome::WrongMethod {
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        }
        // What is left of the body is not read.
        if outcome == Outcome::TooSlow {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }
}

/// What needs the store, or that it could not be done.
async fn in_time<T, E: Display>(
    deadline: Instant,
    account: &AccountName,
    what: &str,
    doing: impl Future<Output = Result<T, E>>,
) -> Result<T, Outcome> {
    match timeout_at(deadline, doing).await {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(error)) => debug!(%account, %error, "cannot {what} a callback"),
        Err(_) => debug!(%account, "cannot {what} a callback in time"),
    }
    Err(Outcome::NotStored)
}

/// A whole body, or why there is none.
async fn read<B>(body: B) -> Result<Bytes, Outcome>
where
    B: Body<Data = Bytes, Error: Error + Send + Sync + 'static>,
{
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(Outcome::TooLarge);
    }
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Outcome::TooLarge),
        Err(_) => Err(Outcome::Broken),
    }
}
