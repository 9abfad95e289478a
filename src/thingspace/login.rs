//! The two tokens of a set of credentials: the bearer token of the application and the session
//! token of the user.
//!
//! - [`guard`]: pure rules that decide whether a login may be sent.
//! - [`cells`] and [`vault`]: the guard and the tokens in the store; one claim at a time.
//! - [`files`] and [`secrets`]: what the credential files contain, and the keys derived from it.
//! - [`slot`], [`renewal`] and [`keeper`]: one renewal for all callers, on demand and after a
//!   change of the files.
//! - [`health`], [`users`] and [`error`]: reports for operators, and errors for callers.
//!
//! Guarantees: in the whole deployment, at most one token request for an application and one login
//! for a user are in progress. Both continue when their callers stop waiting. A refusal discards
//! only the token that was refused. No process sends a login that the guard stops, not even after a
//! restart. After a failure no renewal begins before its back-off ends. Tokens are shared through
//! the store, so a restart needs no login.
//!
//! Never relies on ThingSpace's lifetimes: `expires_in` is an upper bound, and a session token has
//! none.

mod cells;
mod error;
mod files;
mod guard;
mod health;
mod keeper;
mod renewal;
mod secrets;
mod slot;
mod users;
mod vault;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, header::AUTHORIZATION};
use opentelemetry::KeyValue;
use tokio::sync::{Notify, watch};
use tokio_util::task::TaskTracker;

pub(super) use self::users::Users;
use self::{
    error::{LoginError, Problem},
    files::Files,
    guard::GuardSettings,
    health::HealthTracker,
    secrets::{CredentialSecrets, Half, Hosts},
    slot::{Slot, Token, TokenId},
    vault::{Need, Vault},
};
pub(crate) use self::{
    files::CallbackPasswords,
    guard::{UnblockMode, UnblockRefusal},
    health::{LoginHealth, LoginState},
    slot::TokenMeasures,
};
use super::{
    Error,
    http::{transport::Transport, verdict::Stale},
};
use crate::{
    config::{CredentialsConfig, ThingSpaceConfig},
    store::Store,
    telemetry::{attribute, metrics, names},
};

const VZ_M2M_TOKEN: HeaderName = HeaderName::from_static("vz-m2m-token");

/// The tokens of one set of credentials.
#[derive(Debug)]
pub(super) struct Tokens {
    files: Files,
    transport: Arc<Transport>,
    /// Renewals in progress. A drain waits for them.
    tasks: TaskTracker,
    application: TokenSource,
    user: TokenSource,
    health: HealthTracker,
    users: Arc<Users>,
    /// Wakes the keeper.
    wake: Arc<Notify>,
}

/// Where one of the two tokens comes from: memory, then the store and ThingSpace.
#[derive(Debug)]
struct TokenSource {
    slot: Arc<Slot>,
    vault: Arc<Vault>,
}

/// What all sets of credentials share.
#[derive(Debug)]
pub(super) struct LoginContext {
    pub(super) transport: Arc<Transport>,
    pub(super) store: Arc<dyn Store>,
    pub(super) tasks: TaskTracker,
    /// Identifies this run of the process in its claims.
    pub(super) incarnation: Arc<str>,
    pub(super) users: Arc<Users>,
}

/// The result of an operator's `unblock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unblocked {
    pub(crate) outcome: UnblockOutcome,
    /// Rejected logins in a row that ThingSpace may have counted.
    pub(crate) rejections: u32,
    /// Rejected logins in a row after which it locks the user.
    pub(crate) lock: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnblockOutcome {
    Done,
    /// No attempt was stopped.
    NotNeeded,
    /// Logins stay stopped.
    Refused(UnblockRefusal),
}

/// What operators measure of a set of credentials.
#[derive(Debug, Clone)]
pub(crate) struct LoginMeasures {
    pub(crate) credentials: String,
    /// The name of each token, and what is known of it. `None`: there is none.
    pub(crate) tokens: [(&'static str, Option<TokenMeasures>); 2],
    /// Rejected logins that the guard still allows with the password in the file. `None`: the guard
    /// was not read yet.
    pub(crate) rejections_left: Option<u32>,
    pub(crate) state: LoginState,
}

/// The tokens of one call.
#[derive(Debug)]
pub(super) struct TokenPair {
    bearer: Token,
    session: Token,
}

impl TokenPair {
    pub(super) fn headers(&self) -> HeaderMap {
        HeaderMap::from_iter([
            (AUTHORIZATION, self.bearer.value.clone()),
            (VZ_M2M_TOKEN, self.session.value.clone()),
        ])
    }
}

/// How often a call may still renew each token: once, or twice if the first new token was found in
/// the store, where it may be old.
#[derive(Debug)]
pub(super) struct RenewalsLeft {
    bearer: u8,
    session: u8,
}

impl Default for RenewalsLeft {
    fn default() -> Self {
        Self { bearer: 2, session: 2 }
    }
}

impl RenewalsLeft {
    /// Returns which of the refused tokens may be renewed; `None`: none of them.
    pub(super) fn allow(&self, stale: Stale) -> Option<Stale> {
        let due = Stale {
            bearer: stale.bearer && self.bearer > 0,
            session: stale.session && self.session > 0,
        };
        (due.bearer || due.session).then_some(due)
    }

    /// Counts a renewal of these tokens. `pair` is its result.
    pub(super) fn count(&mut self, renewed: Stale, pair: &TokenPair) {
        let left = |left: u8, token: &Token| if token.found { left.saturating_sub(1) } else { 0 };
        if renewed.bearer {
            self.bearer = left(self.bearer, &pair.bearer);
        }
        if renewed.session {
            self.session = left(self.session, &pair.session);
        }
    }
}

impl Tokens {
    /// Starts the keeper, which ends when the tokens are dropped. Must be called inside a tokio
    /// runtime.
    pub(super) fn new(
        credentials: &CredentialsConfig,
        thingspace: &ThingSpaceConfig,
        context: &LoginContext,
    ) -> Arc<Self> {
        let source = |locks| {
            let settings = GuardSettings {
                locks,
                backoff_first: thingspace.login_backoff_first,
                backoff_max: thingspace.login_backoff_max,
            };
            // If the host's breaker is open, a probe comes before the attempt and may take as long.
            let vault = Vault::new(context, settings, 2 * thingspace.call_timeout);
            TokenSource { slot: Arc::default(), vault: Arc::new(vault) }
        };
        let tokens = Arc::new(Self {
            files: Files::new(credentials.clone(), Hosts::new(thingspace)),
            application: source(false),
            user: source(true),
            transport: Arc::clone(&context.transport),
            health: HealthTracker::new(&credentials.name),
            users: Arc::clone(&context.users),
            wake: Arc::default(),
            tasks: context.tasks.clone(),
        });
        for half in [Half::Application, Half::User] {
            for outcome in ["renewed", Problem::Rejected.name()] {
                metrics().renewals.start(&renewal_attributes(&credentials.name, half, outcome));
            }
        }
        tokio::spawn(keeper::run(Arc::downgrade(&tokens)));
        tokens
    }

    pub(super) fn name(&self) -> &str {
        self.files.name()
    }

    pub(super) fn refuse(&self, callbacks: CallbackPasswords) {
        self.files.refuse(callbacks);
    }

    pub(super) fn health(&self) -> watch::Receiver<LoginHealth> {
        self.health.subscribe()
    }

    /// Returns both tokens, from memory or renewed. After a temporary failure it waits and tries
    /// once more, so that one failed renewal fails no call. Cancel-safe.
    pub(super) async fn pair(self: &Arc<Self>) -> Result<TokenPair, Error> {
        let mut pair = self.try_pair().await;
        if let Some(wait) = pair.as_ref().err().and_then(LoginError::worth_waiting) {
            tokio::time::sleep(wait).await;
            pair = self.try_pair().await;
        }
        pair.map_err(|error| error.into_call_error(self.name()))
    }

    /// Gets the session token first, so that no bearer token is requested for a rejected user.
    async fn try_pair(self: &Arc<Self>) -> Result<TokenPair, LoginError> {
        let session = self.token(Half::User, Need::Call).await?;
        let bearer = self.token(Half::Application, Need::Call).await?;
        Ok(TokenPair { bearer, session })
    }

    /// Renews the `stale` tokens of a pair, which were refused, and returns both tokens. If
    /// ThingSpace returns the same token, which may be about to expire, waits and renews it again.
    pub(super) async fn renewed(
        self: &Arc<Self>,
        stale: Stale,
        pair: &TokenPair,
    ) -> Result<TokenPair, Error> {
        self.invalidate(stale, pair);
        let renewed = self.pair().await?;
        if renewed.headers() != pair.headers() {
            return Ok(renewed);
        }
        tokio::time::sleep(slot::SAME_TOKEN_HOLD).await;
        self.invalidate(stale, &renewed);
        self.pair().await
    }

    fn invalidate(&self, stale: Stale, pair: &TokenPair) {
        if stale.bearer {
            self.application.slot.invalidate(pair.bearer.id);
        }
        if stale.session {
            self.user.slot.invalidate(pair.session.id);
        }
    }

    /// Notes that a call succeeded with these tokens.
    pub(super) fn worked(&self, pair: &TokenPair) {
        self.application.slot.worked(pair.bearer.id);
        self.user.slot.worked(pair.session.id);
    }

    /// Returns the error of a call whose token is refused although ThingSpace still issues it.
    pub(super) fn same_token_refused() -> Error {
        Error::NotSent {
            reason: "ThingSpace refuses a token that it still issues".to_owned(),
            retry_after: Some(slot::SAME_TOKEN_HOLD),
        }
    }

    /// Permits one more attempt with each half. `mode` applies to the user only.
    pub(super) async fn unblock(&self, mode: UnblockMode) -> Result<Unblocked, Error> {
        let secrets = self.secrets().await;
        let secrets = secrets.map_err(|error| error.into_call_error(self.name()))?;
        let (user, application) = (&self.user, &self.application);
        let unblocked = user.vault.unblock(&secrets.user, mode).await.map_err(Error::Store)?;
        let other = application.vault.unblock(&secrets.application, UnblockMode::Retry).await;
        let other = other.map_err(Error::Store)?;
        application.slot.forget_failure();
        user.slot.forget_failure();
        self.wake.notify_one();
        let outcome = match unblocked.outcome {
            UnblockOutcome::NotNeeded => other.outcome,
            outcome => outcome,
        };
        Ok(Unblocked { outcome, ..unblocked })
    }

    async fn token(self: &Arc<Self>, half: Half, need: Need) -> Result<Token, LoginError> {
        self.source(half).slot.get(need, |last| self.renewal(half, last, need)).await
    }

    fn renewal(
        self: &Arc<Self>,
        half: Half,
        last: Option<TokenId>,
        need: Need,
    ) -> BoxFuture<'static, Result<Token, LoginError>> {
        let this = Arc::clone(self);
        Box::pin(self.tasks.track_future(async move {
            let renewed = match half {
                Half::Application => this.request_bearer(last, need).await,
                Half::User => {
                    let renewed = this.log_in(last, need).await;
                    let session = renewed.is_ok() || this.user.slot.holds().is_some();
                    this.health.update(|state| state.session = session);
                    renewed
                }
            };
            this.count_renewal(half, &renewed);
            renewed
        }))
    }

    fn count_renewal(&self, half: Half, renewed: &Result<Token, LoginError>) {
        let outcome = match renewed {
            Ok(token) if token.found => "shared",
            Ok(_) => "renewed",
            Err(error) => error.problem.name(),
        };
        metrics().renewals.add(&renewal_attributes(self.name(), half, outcome));
    }

    /// Returns what operators measure.
    pub(super) fn measures(&self) -> LoginMeasures {
        let tokens = [Half::Application, Half::User];
        let tokens = tokens.map(|half| (half.token(), self.source(half).slot.measures()));
        let state = self.health.subscribe().borrow().state;
        let left = self.user.vault.rejections_left();
        // Logins are also stopped if the guard cannot be read.
        let rejections_left = if state == LoginState::Stopped { Some(0) } else { left };
        LoginMeasures { credentials: self.name().to_owned(), tokens, rejections_left, state }
    }

    fn source(&self, half: Half) -> &TokenSource {
        match half {
            Half::Application => &self.application,
            Half::User => &self.user,
        }
    }

    /// Returns what the files contain now. Updates the health.
    async fn secrets(&self) -> Result<Arc<CredentialSecrets>, LoginError> {
        let secrets = self.files.secrets().await;
        match &secrets {
            Ok(secrets) => {
                self.health.set_files(None);
                self.users.set(self.name(), &secrets.user);
            }
            Err(LoginError { problem: Problem::FileUnusable(reason), .. }) => {
                self.health.set_files(Some(reason.clone()));
            }
            Err(error) => {
                tracing::warn!(
                    credentials = self.name(),
                    "no token; the gateway tries again: {}",
                    error.problem
                );
            }
        }
        secrets
    }
}

fn renewal_attributes(credentials: &str, half: Half, outcome: &'static str) -> [KeyValue; 3] {
    [
        attribute(names::CREDENTIALS, credentials.to_owned()),
        attribute(names::TOKEN, half.token()),
        attribute(names::OUTCOME, outcome),
    ]
}
