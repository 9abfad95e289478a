//! The two tokens of one set of credentials: the OAuth bearer and the UWS session.
//!
//! Guarantees: at most one token request and one login under way, whoever waits for them, and neither is aborted by a
//! caller that goes away; a refusal discards only the token it was given for; a rejected key or password is not sent
//! again by this process until the credential files change; after any other failure nobody asks before its back-off.
//! Neither token has a clock of its own worth believing: `expires_in` is an upper bound, a session has none at all.

mod secrets;
mod slot;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use secrecy::{ExposeSecret, SecretString};
use tokio_util::task::TaskTracker;

use self::{
    secrets::{Fingerprint, Secrets},
    slot::{Failed, Fault, Minted, Pace, Slot, Token, What},
};
use super::{
    Error, code,
    error::LEFT_ALONE,
    transport::{Endpoint, Failure, Transport},
    verdict::{Stale, Verdict, judge},
    wire,
};
use crate::{config, store::Store};

const VZ_M2M_TOKEN: HeaderName = HeaderName::from_static("vz-m2m-token");

#[derive(Debug)]
pub(super) struct Tokens {
    credentials: config::Credentials,
    transport: Arc<Transport>,
    #[expect(dead_code, reason = "the guard counts in it")]
    store: Arc<dyn Store>,
    /// Logins under way, so that a drain waits for them.
    tasks: TaskTracker,
    bearer: Arc<Slot>,
    session: Arc<Slot>,
    /// Credentials that ThingSpace rejected.
    rejected: Mutex<Option<Fingerprint>>,
}

/// What authenticates one call.
#[derive(Debug)]
pub(super) struct Pair {
    bearer: Token,
    session: Token,
}

impl Pair {
    pub(super) fn headers(&self) -> HeaderMap {
        HeaderMap::from_iter([
            (AUTHORIZATION, self.bearer.value.clone()),
            (VZ_M2M_TOKEN, self.session.value.clone()),
        ])
    }
}

impl Tokens {
    pub(super) fn new(
        credentials: &config::Credentials,
        transport: Arc<Transport>,
        store: Arc<dyn Store>,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            credentials: credentials.clone(),
            transport,
            store,
            tasks,
            bearer: Arc::default(),
            session: Arc::default(),
            rejected: Mutex::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.credentials.name
    }

    /// Both tokens, from memory or renewed. The session first: while its credentials are rejected, no bearer is asked for.
    pub(super) async fn pair(self: &Arc<Self>) -> Result<Pair, Error> {
        let session = self.session().await.map_err(|failed| self.error(failed))?;
        let bearer = self.bearer().await.map_err(|failed| self.error(failed))?;
        Ok(Pair { bearer, session })
    }

    /// The bearer of this pair was refused.
    pub(super) fn invalidate_bearer(&self, pair: &Pair) {
        self.bearer.invalidate(pair.bearer.generation);
    }

    /// The session of this pair was refused.
    pub(super) fn invalidate_session(&self, pair: &Pair) {
        self.session.invalidate(pair.session.generation);
    }

    /// What was refused is what ThingSpace hands out again: it cannot be used, nor is it time to ask for another.
    pub(super) fn same_again() -> Error {
        Error::NotSent {
            reason: "ThingSpace refuses a token that it still hands out".to_owned(),
            retry_after: Some(slot::SAME_TOKEN_HOLD),
        }
    }

    async fn session(self: &Arc<Self>) -> Result<Token, Failed> {
        let this = Arc::clone(self);
        let tasks = self.tasks.clone();
        self.session.get(|| tasks.track_future(async move { this.log_in().await })).await
    }

    async fn bearer(self: &Arc<Self>) -> Result<Token, Failed> {
        let this = Arc::clone(self);
        self.bearer.get(|| async move { this.request_bearer().await }).await
    }

    async fn request_bearer(self: Arc<Self>) -> Result<Minted, Fault> {
        let secrets = self.secrets().await?;
        let headers = HeaderMap::from_iter([(AUTHORIZATION, secrets.basic())]);
        let body = Bytes::from_static(b"grant_type=client_credentials");
        let bearer = match self.transport.send(Endpoint::Token, headers, body).await {
            Ok(reply) => match judge(&reply, wire::bearer) {
                Verdict::Done(bearer) => bearer,
                verdict => return Err(self.fault("client credentials", &secrets, verdict, Pace::QUICK)),
            },
            Err(Failure::NotConnected(reason) | Failure::Broken(reason)) => {
                return Err(self.unavailable(reason, Pace::QUICK));
            }
            Err(Failure::LeftAlone(wait)) => return Err(Fault::left_alone(wait)),
        };
        tracing::debug!(credentials = self.name(), "bearer received");
        self.session.keep_only(secrets.fingerprint);
        Ok(Minted {
            value: sensitive("Bearer ", &bearer.token),
            fingerprint: secrets.fingerprint,
            expires_in: bearer.expires_in,
        })
    }

    /// A login that meets a stale bearer is repeated once with a new one: the password was not looked at.
    async fn log_in(self: Arc<Self>) -> Result<Minted, Fault> {
        let secrets = self.secrets().await?;
        self.bearer.keep_only(secrets.fingerprint);
        let bearer = self.bearer().await.map_err(|failed| failed.fault)?;
        let verdict = match self.try_login(&secrets, &bearer).await? {
            Verdict::Stale(Stale::BEARER) => {
                self.bearer.invalidate(bearer.generation);
                let renewed = self.bearer().await.map_err(|failed| failed.fault)?;
                match self.try_login(&secrets, &renewed).await? {
                    Verdict::Stale(Stale::BEARER) => {
                        let reason = "the login refuses a new bearer".to_owned();
                        return Err(self.unavailable(reason, Pace::CAREFUL));
                    }
                    verdict => verdict,
                }
            }
            verdict => verdict,
        };
        let Verdict::Done(session) = verdict else {
            return Err(self.fault("user name or password", &secrets, verdict, Pace::CAREFUL));
        };
        tracing::info!(credentials = self.name(), "logged in");
        Ok(Minted { value: sensitive("", &session), fingerprint: secrets.fingerprint, expires_in: None })
    }

    /// One login. It may have counted with ThingSpace even when no answer comes.
    async fn try_login(&self, secrets: &Secrets, bearer: &Token) -> Result<Verdict<SecretString>, Fault> {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, bearer.value.clone())]);
        match self.transport.send(Endpoint::Login, headers, secrets.login()).await {
            Ok(reply) => Ok(judge(&reply, wire::session)),
            Err(Failure::NotConnected(reason)) => Err(self.unavailable(reason, Pace::QUICK)),
            Err(Failure::Broken(reason)) => Err(self.unavailable(reason, Pace::CAREFUL)),
            Err(Failure::LeftAlone(wait)) => Err(Fault::left_alone(wait)),
        }
    }

    /// The secrets as the files hold them now, unless ThingSpace has rejected just these.
    async fn secrets(&self) -> Result<Secrets, Fault> {
        let secrets =
            Secrets::read(&self.credentials).await.map_err(|reason| self.unavailable(reason, Pace::QUICK))?;
        if *self.rejected() == Some(secrets.fingerprint) {
            return Err(Fault { what: What::Rejected, pace: Pace::RECHECK });
        }
        Ok(secrets)
    }

    /// What a failed attempt means. Whatever could be a rejection is taken for one, since five of them lock the user out;
    /// only a failure of the API manager, of the path or of the server is not.
    fn fault<T>(&self, of: &str, secrets: &Secrets, verdict: Verdict<T>, pace: Pace) -> Fault {
        match verdict {
            Verdict::Throttled(retry_after) => {
                tracing::warn!(credentials = self.name(), "no token: throttled by ThingSpace");
                Fault { what: What::Throttled(retry_after), pace }
            }
            Verdict::Refused(refusal) if code::is_by_api_manager(&refusal) => {
                self.unavailable(refusal.to_string(), pace)
            }
            Verdict::Unclear { status, reason } if !matches!(status, 400 | 401 | 403) => {
                self.unavailable(reason, pace)
            }
            _ => {
                tracing::error!(
                    credentials = self.name(),
                    "ThingSpace rejects the {of}; not tried again until a credential file changes"
                );
                *self.rejected() = Some(secrets.fingerprint);
                Fault { what: What::Rejected, pace: Pace::RECHECK }
            }
        }
    }

    fn unavailable(&self, reason: String, pace: Pace) -> Fault {
        tracing::warn!(credentials = self.name(), "no token: {reason}");
        Fault { what: What::Unavailable(reason), pace }
    }

    fn rejected(&self) -> MutexGuard<'_, Option<Fingerprint>> {
        self.rejected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, failed: Failed) -> Error {
        let retry_after = Some(failed.wait());
        match failed.fault.what {
            What::Rejected => Error::CredentialsRejected { name: self.name().to_owned() },
            What::Throttled(_) => Error::Throttled { retry_after },
            What::Unavailable(reason) => {
                Error::NotSent { reason: format!("no token: {reason}"), retry_after }
            }
            What::LeftAlone(_) => Error::NotSent { reason: LEFT_ALONE.to_owned(), retry_after },
        }
    }
}

fn sensitive(prefix: &str, secret: &SecretString) -> HeaderValue {
    let mut value = HeaderValue::try_from(format!("{prefix}{}", secret.expose_secret()))
        .expect("a token was checked to be visible ASCII");
    value.set_sensitive(true);
    value
}
