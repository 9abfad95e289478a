//! ThingSpace's callbacks: proved, read, made durable, and only then acknowledged.
//!
//! The last segment of the path proves the sender and tells the account; what stands before it is not looked at, since proxies
//! change it. Without it nothing of a request is read. The user name and the password in the body are the second
//! proof. A callback is answered 200 when it is durable, never before, and 503 when it cannot be, within two seconds, after
//! which ThingSpace sends it again. One that nobody understands is quarantined and answered 200, so that it is not lost.
//!
//! An answer has no body, and no log line anything of one.

pub mod parse;
pub mod quarantine;
pub mod registration;
pub mod secrets;
mod tally;
mod tls;

use std::{collections::HashMap, error::Error, fmt::Display, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::ALLOW};
use http_body::Body;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use secrecy::ExposeSecret;
use tokio::{
    net::TcpListener,
    sync::{Mutex, Semaphore},
    time::{Instant, interval, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    config,
    identity::AccountName,
    requests::Requests,
    server::http::{self as listener, Answer, Listening},
    store::{Store, StoreError},
};
use parse::Callback;
use quarantine::Quarantine;
use secrets::Secrets;
use tally::Tally;
use tls::Tls;

/// Connections at once: half the file descriptors that a process often has. The API and the calls to ThingSpace need some, too.
const LISTENING: Listening = Listening { name: "callbacks", max_connections: 512 };

/// Of a callback.
const MAX_BODY: usize = 256 << 10;

/// For a callback's body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// From a callback's last byte to its answer. ThingSpace sends it again while it waits for one.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1_800);

/// Callbacks of an account being read or stored at once; above it they are asked to come again. Whoever got hold of one account's
/// URL cannot keep others' callbacks out.
const MAX_AT_ONCE: usize = 256;

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
    room: HashMap<AccountName, Semaphore>,
    tally: Tally,
}

/// What became of a request to the listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Stored,
    Quarantined,
    UnknownPath,
    WrongMethod,
    TooLarge,
    /// Its body did not come, or not whole.
    Broken,
    WrongPair,
    TooMany,
    NotStored,
}

impl Outcome {
    pub const ALL: [Self; 9] = [
        Self::Stored,
        Self::Quarantined,
        Self::UnknownPath,
        Self::WrongMethod,
        Self::TooLarge,
        Self::Broken,
        Self::WrongPair,
        Self::TooMany,
        Self::NotStored,
    ];

    fn status(self) -> StatusCode {
        match self {
            Self::Stored | Self::Quarantined => StatusCode::OK,
            Self::UnknownPath => StatusCode::NOT_FOUND,
            Self::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Broken => StatusCode::BAD_REQUEST,
            Self::WrongPair => StatusCode::UNAUTHORIZED,
            Self::TooMany | Self::NotStored => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl Callbacks {
    pub async fn new(
        config: &config::Callbacks,
        store: Arc<dyn Store>,
        accounts: &[AccountName],
        requests: Requests,
    ) -> anyhow::Result<Self> {
        let secrets = Secrets::new(config, Arc::clone(&store), accounts);
        match secrets.refresh().await {
            // Nothing is proved before the store has told the secrets; see `Secrets::reload`.
            Ok(()) | Err(secrets::Error::Store(StoreError::Unavailable(_) | StoreError::Ambiguous(_))) => {}
            Err(error) => return Err(error.into()),
        }
        let tls = match config.tls() {
            Some((cert, key)) => Some(Mutex::new(Tls::load(cert, key).await.map_err(anyhow::Error::msg)?)),
            None => None,
        };
        let quarantine = Quarantine::new(store, secrets.clone());
        let room = accounts.iter().map(|account| (account.clone(), Semaphore::new(MAX_AT_ONCE))).collect();
        let tally = Tally::default();
        Ok(Self(Arc::new(Inner { secrets, quarantine, requests, tls, room, tally })))
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
        tokio::join!(listener::serve(LISTENING, listener, acceptor, self, stop), look);
    }

    /// Follows what may change on disk and in other replicas. A failure is told once, until it is another.
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

    async fn take<B>(&self, account: &AccountName, request: Request<B>) -> Outcome
    where
        B: Body<Data = Bytes, Error: Error + Send + Sync + 'static> + Send + 'static,
    {
        if request.method() != Method::POST {
            return Outcome::WrongMethod;
        }
        let Some(Ok(_permit)) = self.0.room.get(account).map(Semaphore::try_acquire) else {
            return Outcome::TooMany;
        };
        match timeout(BODY_TIMEOUT, read(request.into_body())).await {
            Ok(Ok(body)) => self.store(account, &body, Instant::now() + ANSWER_TIMEOUT).await,
            Ok(Err(refused)) => refused,
            Err(_) => Outcome::Broken,
        }
    }

    async fn store(&self, account: &AccountName, body: &[u8], deadline: Instant) -> Outcome {
        let stored = match parse::parse(body) {
            Ok(callback) => self.append(account, callback, deadline).await,
            Err(why) => {
                let kept =
                    in_time(deadline, account, "quarantine", self.0.quarantine.add(account, body)).await;
                kept.map(|number| {
                    debug!(%account, number, %why, "a callback that cannot be understood");
                    Outcome::Quarantined
                })
            }
        };
        stored.unwrap_or_else(|refused| refused)
    }

    async fn append(
        &self,
        account: &AccountName,
        callback: Callback,
        deadline: Instant,
    ) -> Result<Outcome, Outcome> {
        let Callback { request_id, username, password, called_back } = callback;
        let accepted = || match (&username, &password) {
            (Some(username), Some(password)) => {
                self.0.secrets.accepts(account, username.expose_secret(), password.expose_secret())
            }
            _ => false,
        };
        if !accepted() {
            // Another replica may know a newer pair.
            in_time(deadline, account, "check", self.0.secrets.refresh_pair(account)).await?;
            if !accepted() {
                debug!(%account, request.id = %request_id, "a callback with a wrong user name or password");
                return Err(Outcome::WrongPair);
            }
        }
        let status = called_back.status();
        let appended = self.0.requests.called_back(account, &request_id, called_back);
        in_time(deadline, account, "store", appended).await?;
        debug!(%account, request.id = %request_id, ?status, "a callback");
        Ok(Outcome::Stored)
    }
}

impl Answer for Callbacks {
    type Body = Empty<Bytes>;

    async fn answer(self, request: Request<Incoming>) -> Response<Empty<Bytes>> {
        // ThingSpace may list and call the registered URL with a slash at its end.
        let secret = request.uri().path().trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let account = self.0.secrets.account_of(secret);
        let outcome = match &account {
            Some(account) => self.take(account, request).await,
            None if self.0.secrets.is_loaded() => Outcome::UnknownPath,
            // It may be a right one.
            None => Outcome::NotStored,
        };
        self.0.tally.count(outcome, account.as_ref());
        let mut answer = Response::new(Empty::new());
        *answer.status_mut() = outcome.status();
        if outcome == Outcome::WrongMethod {
            answer.headers_mut().insert(ALLOW, http::HeaderValue::from_static("POST"));
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
