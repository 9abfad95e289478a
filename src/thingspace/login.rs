//! The two tokens of one set of credentials: the OAuth bearer and the UWS session.
//!
//! Guarantees: at most one token request and one login under way in the whole deployment, whoever
//! waits for them, and neither is aborted by a caller that goes away; a refusal discards only the
//! token it was given for; what the guard stops is not sent, by no process and after no restart;
//! after any other failure nobody asks before its back-off. Tokens are shared through the store, so
//! a restart costs no login. Neither has a clock of its own worth believing: `expires_in` is an
//! upper bound, a session has none at all.

mod cells;
mod files;
pub(super) mod guard;
mod keeper;
mod renewal;
mod secrets;
mod slot;
mod standing;
mod users;
mod vault;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{HeaderMap, HeaderName, header::AUTHORIZATION};
use tokio::sync::{Notify, watch};
use tokio_util::task::TaskTracker;

use self::guard::Terms;
pub use self::guard::{UnblockMode, UnblockRefusal};
pub(super) use self::users::Users;
pub use self::{files::Sent, standing::Standing};
use self::{
    files::{Files, Unread},
    secrets::{Hosts, Secrets},
    slot::{Failed, Fault, Minted, Slot, Token, TokenId, What},
    standing::{Half, Standings},
    vault::{Need, Vault},
};
use super::{
    Error,
    error::LEFT_ALONE,
    http::{transport::Transport, verdict::Stale},
};
use crate::{
    config::{CredentialsConfig, ThingSpaceConfig},
    store::Store,
};

const VZ_M2M_TOKEN: HeaderName = HeaderName::from_static("vz-m2m-token");

#[derive(Debug)]
pub(super) struct Tokens {
    files: Files,
    transport: Arc<Transport>,
    /// Attempts under way, so that a drain waits for them.
    tasks: TaskTracker,
    bearer: Arc<Slot>,
    session: Arc<Slot>,
    /// What guards the user's logins, and the application's token requests.
    users: Arc<Vault>,
    applications: Arc<Vault>,
    standings: Standings,
    users_of_sets: Arc<Users>,
    /// Wakes the keeper.
    kick: Arc<Notify>,
}

/// What all sets of credentials share.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) transport: Arc<Transport>,
    pub(super) store: Arc<dyn Store>,
    pub(super) tasks: TaskTracker,
    /// Of this process: what was claimed in the name of another may be dead.
    pub(super) incarnation: Arc<str>,
    pub(super) users: Arc<Users>,
}

/// What came of an operator's permission to try a set of credentials once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unblocked {
    pub outcome: UnblockOutcome,
    /// Rejected logins in a row that ThingSpace may have counted.
    pub rejections: u32,
    /// Rejected logins in a row after which it locks the user.
    pub lock: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnblockOutcome {
    Done,
    /// Nothing was in the way.
    NotNeeded,
    /// Logins stay stopped.
    Refused(UnblockRefusal),
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

/// How often a call may still renew each token: twice if somebody else had renewed it, which may
/// have been long ago, else once.
#[derive(Debug)]
pub(super) struct Renewals {
    bearer: u8,
    session: u8,
}

impl Default for Renewals {
    fn default() -> Self {
        Self { bearer: 2, session: 2 }
    }
}

impl Renewals {
    /// Of the tokens that were refused, those that may be renewed; `None`: none of them.
    pub(super) fn of(&self, stale: Stale) -> Option<Stale> {
        let due = Stale {
            bearer: stale.bearer && self.bearer > 0,
            session: stale.session && self.session > 0,
        };
        (due.bearer || due.session).then_some(due)
    }

    /// They were.
    pub(super) fn count(&mut self, renewed: Stale, by: &Pair) {
        let left = |left: u8, token: &Token| if token.found { left.saturating_sub(1) } else { 0 };
        if renewed.bearer {
            self.bearer = left(self.bearer, &by.bearer);
        }
        if renewed.session {
            self.session = left(self.session, &by.session);
        }
    }
}

impl Tokens {
    /// Must be called inside a tokio runtime: a small task looks at the files now and then, until
    /// the tokens are gone.
    pub(super) fn new(
        credentials: &CredentialsConfig,
        thingspace: &ThingSpaceConfig,
        shared: Shared,
    ) -> Arc<Self> {
        let Shared { transport, store, tasks, incarnation, users } = shared;
        let vault = |locks| {
            let terms = Terms {
                locks,
                backoff_first: thingspace.login_backoff_first,
                backoff_max: thingspace.login_backoff_max,
            };
            // A host that did not answer is asked something else first.
            let attempt = 2 * thingspace.call_timeout;
            let (store, incarnation) = (Arc::clone(&store), Arc::clone(&incarnation));
            Arc::new(Vault::new(store, terms, attempt, incarnation, tasks.clone()))
        };
        let tokens = Arc::new(Self {
            files: Files::new(credentials.clone(), Hosts::new(thingspace)),
            users: vault(true),
            applications: vault(false),
            transport,
            bearer: Arc::default(),
            session: Arc::default(),
            standings: Standings::new(&credentials.name),
            users_of_sets: users,
            kick: Arc::default(),
            tasks,
        });
        tokio::spawn(keeper::run(Arc::downgrade(&tokens)));
        tokens
    }

    pub(super) fn name(&self) -> &str {
        self.files.name()
    }

    /// From now on a password that is also in this file logs nobody in.
    pub(super) fn keep_apart_from(&self, sent: Sent) {
        self.files.keep_apart_from(sent);
    }

    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standings.subscribe()
    }

    /// Both tokens, from memory or renewed. After a failure that may pass soon, waits and tries
    /// once more, so that one failed login costs no caller an error. Cancel-safe.
    pub(super) async fn pair(self: &Arc<Self>) -> Result<Pair, Error> {
        let mut pair = self.try_pair().await;
        if let Some(wait) = pair.as_ref().err().and_then(Failed::passes_within) {
            tokio::time::sleep(wait).await;
            pair = self.try_pair().await;
        }
        pair.map_err(|failed| self.error(failed))
    }

    /// The session first: while its credentials are rejected, no bearer is asked for.
    async fn try_pair(self: &Arc<Self>) -> Result<Pair, Failed> {
        let session = self.session().await?;
        let bearer = self.bearer().await?;
        Ok(Pair { bearer, session })
    }

    /// Both tokens once these of a pair were refused. One that ThingSpace handed out again a moment
    /// ago is not asked for yet: waits until it may be, since it may have come to its end just now.
    pub(super) async fn renewed(
        self: &Arc<Self>,
        stale: Stale,
        pair: &Pair,
    ) -> Result<Pair, Error> {
        self.invalidate(stale, pair);
        let renewed = self.pair().await?;
        if renewed.headers() != pair.headers() {
            return Ok(renewed);
        }
        tokio::time::sleep(slot::SAME_TOKEN_HOLD).await;
        self.invalidate(stale, &renewed);
        self.pair().await
    }

    /// These tokens of this pair were refused.
    fn invalidate(&self, stale: Stale, pair: &Pair) {
        if stale.bearer {
            self.bearer.invalidate(pair.bearer.id);
        }
        if stale.session {
            self.session.invalidate(pair.session.id);
        }
    }

    /// ThingSpace took both tokens of this pair.
    pub(super) fn worked(&self, pair: &Pair) {
        self.bearer.worked(pair.bearer.id);
        self.session.worked(pair.session.id);
    }

    /// What was refused is what ThingSpace hands out again: it cannot be used, nor is it time to
    /// ask for another.
    pub(super) fn same_again() -> Error {
        Error::NotSent {
            reason: "ThingSpace refuses a token that it still hands out".to_owned(),
            retry_after: Some(slot::SAME_TOKEN_HOLD),
        }
    }

    /// Lets both halves be tried once more. What the operator states is about the user.
    pub(super) async fn unblock(&self, mode: UnblockMode) -> Result<Unblocked, Error> {
        let secrets = self.secrets().await.map_err(|unread| self.unread(&unread))?;
        let user = self.users.unblock(&secrets.login, mode).await.map_err(Error::Store)?;
        let application = self.applications.unblock(&secrets.client, UnblockMode::Retry).await;
        let application = application.map_err(Error::Store)?;
        self.bearer.forget_failure();
        self.session.forget_failure();
        self.kick.notify_one();
        let outcome = match user.outcome {
            UnblockOutcome::NotNeeded => application.outcome,
            outcome => outcome,
        };
        Ok(Unblocked { outcome, ..user })
    }

    async fn session(self: &Arc<Self>) -> Result<Token, Failed> {
        self.session.get(|last| self.login_flight(last, Need::Now)).await
    }

    async fn bearer(self: &Arc<Self>) -> Result<Token, Failed> {
        self.bearer.get(|last| self.bearer_flight(last, Need::Now)).await
    }

    async fn replace_session(self: &Arc<Self>) -> Result<Token, Failed> {
        self.session.replace(|last| self.login_flight(last, Need::Soon)).await
    }

    async fn replace_bearer(self: &Arc<Self>) -> Result<Token, Failed> {
        self.bearer.replace(|last| self.bearer_flight(last, Need::Soon)).await
    }

    fn bearer_flight(
        self: &Arc<Self>,
        last: Option<TokenId>,
        need: Need,
    ) -> impl Future<Output = Result<Minted, Fault>> + Send + 'static {
        let this = Arc::clone(self);
        self.tasks.track_future(async move { this.request_bearer(last, need).await })
    }

    fn login_flight(
        self: &Arc<Self>,
        last: Option<TokenId>,
        need: Need,
    ) -> impl Future<Output = Result<Minted, Fault>> + Send + 'static {
        let this = Arc::clone(self);
        self.tasks.track_future(async move {
            let outcome = this.log_in(last, need).await;
            this.standings.set_session(outcome.is_ok() || this.session.holds().is_some());
            outcome
        })
    }

    fn vault(&self, half: Half) -> &Arc<Vault> {
        match half {
            Half::Client => &self.applications,
            Half::Login => &self.users,
        }
    }

    /// The secrets as the files hold them now. Operators are told about files that cannot be read.
    async fn secrets(&self) -> Result<Arc<Secrets>, Unread> {
        let secrets = self.files.secrets().await;
        match &secrets {
            Ok(secrets) => {
                self.standings.set_files(None);
                self.users_of_sets.set(self.name(), &secrets.login);
            }
            Err(Unread::Unreadable(reason)) => self.standings.set_files(Some(reason.clone())),
            Err(Unread::Passing(reason)) => {
                tracing::warn!(credentials = self.name(), "no token: {reason}");
            }
        }
        secrets
    }

    fn unread(&self, unread: &Unread) -> Error {
        match unread {
            Unread::Unreadable(_) => Error::CredentialsUnreadable { name: self.name().to_owned() },
            Unread::Passing(reason) => {
                Error::NotSent { reason: (*reason).to_owned(), retry_after: None }
            }
        }
    }

    fn error(&self, failed: Failed) -> Error {
        let retry_after = Some(failed.wait());
        let name = self.name().to_owned();
        match failed.fault.what {
            What::Rejected => Error::CredentialsRejected { name },
            What::Stopped => Error::LoginBlocked { name },
            What::Throttled(_) => Error::Throttled { retry_after },
            What::Store(error) => Error::Store(error),
            What::Unreadable => Error::CredentialsUnreadable { name },
            What::LeftAlone(_) => Error::NotSent { reason: LEFT_ALONE.to_owned(), retry_after },
            what @ (What::Unavailable(_) | What::Later(..) | What::Elsewhere(_)) => {
                Error::NotSent { reason: format!("no token: {what}"), retry_after }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
