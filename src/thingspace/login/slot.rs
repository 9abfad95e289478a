//! Holds one token. One renewal serves all callers that wait for it.
//!
//! A refusal of a token discards only that token, never a newer one. The error of a failed renewal
//! is kept, and no other renewal begins before its back-off ends. A renewal is a task of its own:
//! it continues when its callers stop waiting.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::HeaderValue;
use tokio::{sync::watch, time::Instant};
use tracing::{Instrument, info_span};

use super::{
    error::{LoginError, Problem},
    secrets::Fingerprint,
    vault::Need,
};
use crate::{backoff::doubled, lock::lock};

/// Added to `expires_in`, which is rounded: a token request that is too early returns the same
/// token.
const EXPIRY_SLACK: Duration = Duration::from_secs(1);

/// How long a token that was refused and then issued again is kept before it may be renewed.
pub(super) const SAME_TOKEN_HOLD: Duration = Duration::from_secs(1);

/// How long an error of the guard, the store or the files is kept. Checking them again is cheap.
const RECHECK: Duration = Duration::from_secs(1);

/// The back-off after failed renewals, which doubles.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_mins(1);

/// A token as the value of a header. `Debug` does not show it.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) value: HeaderValue,
    pub(super) id: TokenId,
    /// Whether it was found in the store, where it may be old.
    pub(super) found: bool,
    /// It expires after this time at the latest; `None`: ThingSpace does not say.
    pub(super) expires_in: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TokenId {
    /// The credentials for which it was issued.
    pub(super) fingerprint: Fingerprint,
    /// Grows with each token of these credentials.
    pub(super) generation: u64,
}

/// What operators measure of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenMeasures {
    /// How long this process has had it.
    pub(crate) age: Duration,
    /// Until it expires; `None`: ThingSpace does not say.
    pub(crate) remaining: Option<Duration>,
}

#[derive(Debug, Default)]
pub(super) struct Slot {
    state: Mutex<SlotState>,
}

#[derive(Debug, Default)]
struct SlotState {
    held: Option<HeldToken>,
    /// The last token, also after it was discarded.
    last: Option<(TokenId, HeaderValue)>,
    /// The error of the last renewal, until the next one may begin.
    failed: Option<(LoginError, Instant)>,
    /// Renewals that failed in a row.
    failures: u32,
    /// Tokens in a row that were refused before any call succeeded with them.
    useless: u32,
    renewal: Option<watch::Receiver<Option<Renewed>>>,
}

#[derive(Debug)]
struct HeldToken {
    token: Token,
    since: Instant,
    expires: Option<Instant>,
    /// ThingSpace issued it before, so it is not discarded before this time.
    keep_until: Option<Instant>,
    /// Whether a call succeeded with it.
    worked: bool,
}

type Renewed = Result<Token, LoginError>;

impl Slot {
    /// Returns the held token, the kept error, or the result of the renewal in progress. If none of
    /// them exists, `renew` begins a renewal; it gets the id of the last token. For a rotation the
    /// held token is not returned. Calls still get it until there is a new one, also if the
    /// rotation fails.
    pub(super) async fn get<F: Future<Output = Renewed> + Send + 'static>(
        self: &Arc<Self>,
        need: Need,
        renew: impl FnOnce(Option<TokenId>) -> F,
    ) -> Renewed {
        let mut renewal = {
            let mut state = lock(&self.state);
            let now = Instant::now();
            if let Some(token) = state.token(now).filter(|_| need == Need::Call) {
                return Ok(token.clone());
            }
            if let Some((error, until)) = &state.failed
                && now < *until
            {
                return Err(error.clone());
            }
            match &state.renewal {
                Some(renewal) => renewal.clone(),
                None => self.begin(&mut state, renew),
            }
        };
        let renewed =
            renewal.wait_for(Option::is_some).await.ok().and_then(|result| result.clone());
        // Without a result, the runtime is being shut down.
        renewed.unwrap_or_else(|| Err(aborted()))
    }

    /// Returns the fingerprint of the credentials of the held token.
    pub(super) fn holds(&self) -> Option<Fingerprint> {
        lock(&self.state).token(Instant::now()).map(|token| token.id.fingerprint)
    }

    /// Returns what operators measure of the held token.
    pub(super) fn measures(&self) -> Option<TokenMeasures> {
        let (state, now) = (lock(&self.state), Instant::now());
        state.token(now)?;
        let held = state.held.as_ref()?;
        Some(TokenMeasures {
            age: now.saturating_duration_since(held.since),
            remaining: held.expires.map(|at| at.saturating_duration_since(now)),
        })
    }

    /// Lets the next renewal begin at once.
    pub(super) fn forget_failure(&self) {
        lock(&self.state).failed = None;
    }

    fn begin<F: Future<Output = Renewed> + Send + 'static>(
        self: &Arc<Self>,
        state: &mut SlotState,
        renew: impl FnOnce(Option<TokenId>) -> F,
    ) -> watch::Receiver<Option<Renewed>> {
        let (done, renewal) = watch::channel(None);
        let slot = Arc::clone(self);
        let renewing = renew(state.last.as_ref().map(|(id, _)| *id));
        // A trace of its own, because several calls may wait for it.
        let renewing = renewing.instrument(info_span!(parent: None, "renewal"));
        tokio::spawn(async move {
            // In a task of its own, so that a panic has a result as well.
            let renewed = tokio::spawn(renewing).await.unwrap_or_else(|_| Err(aborted()));
            let renewed = lock(&slot.state).finish(renewed, Instant::now());
            done.send_replace(Some(renewed));
        });
        state.renewal.insert(renewal).clone()
    }

    /// Discards the held token if it is the one that was refused. If two tokens in a row were
    /// refused before any call succeeded with them, the next renewal is delayed, longer each time.
    pub(super) fn invalidate(&self, id: TokenId) {
        let mut state = lock(&self.state);
        let now = Instant::now();
        let refused = |held: &mut HeldToken| {
            held.token.id == id && held.keep_until.is_none_or(|until| until <= now)
        };
        let Some(held) = state.held.take_if(refused) else { return };
        if held.worked || held.token.found || held.keep_until.is_some() {
            return;
        }
        state.useless = state.useless.saturating_add(1);
        if state.useless > 1 {
            let reason = "ThingSpace refuses each token as soon as it has issued it".to_owned();
            let wait = backoff(state.useless - 1);
            let error = LoginError::new(Problem::Unavailable(reason), wait);
            state.failed = Some((error, now + wait));
        }
    }

    /// Notes that a call succeeded with this token.
    pub(super) fn worked(&self, id: TokenId) {
        let mut state = lock(&self.state);
        if let Some(held) = state.held.as_mut().filter(|held| held.token.id == id) {
            held.worked = true;
            state.useless = 0;
        }
    }
}

fn aborted() -> LoginError {
    LoginError::unavailable("the renewal was aborted")
}

fn backoff(failures: u32) -> Duration {
    doubled(BACKOFF_FIRST, failures.saturating_sub(1), BACKOFF_MAX)
}

impl SlotState {
    fn token(&self, now: Instant) -> Option<&Token> {
        let held = self.held.as_ref().filter(|held| held.expires.is_none_or(|at| now < at));
        held.map(|held| &held.token)
    }

    fn finish(&mut self, renewed: Renewed, now: Instant) -> Renewed {
        self.renewal = None;
        match renewed {
            Ok(token) => {
                let same = self.last.as_ref().is_some_and(|(_, value)| *value == token.value);
                self.last = Some((token.id, token.value.clone()));
                self.failures = 0;
                self.failed = None;
                self.held = Some(HeldToken {
                    token: token.clone(),
                    since: now,
                    expires: token.expires_in.map(|lifetime| now + lifetime + EXPIRY_SLACK),
                    keep_until: same.then(|| now + SAME_TOKEN_HOLD),
                    worked: false,
                });
                Ok(token)
            }
            Err(mut error) => {
                let held_until = now + self.hold(&error, now);
                error.not_before = error.not_before.max(held_until);
                self.failed = Some((error.clone(), held_until));
                Err(error)
            }
        }
    }

    /// Returns how long an error is kept.
    fn hold(&mut self, error: &LoginError, now: Instant) -> Duration {
        let left = error.not_before.saturating_duration_since(now);
        match error.problem {
            Problem::Throttled | Problem::Unavailable(_) => {
                self.failures = self.failures.saturating_add(1);
                backoff(self.failures).max(left)
            }
            Problem::HostUnavailable => left,
            // The guard may allow the next renewal before that time.
            Problem::Rejected
            | Problem::RejectedOnce
            | Problem::Elsewhere
            | Problem::Delayed(_) => left.min(RECHECK),
            Problem::Stopped(_)
            | Problem::GuardUnreadable(_)
            | Problem::FileUnusable(_)
            | Problem::Store(_) => {
                self.failures = 0;
                RECHECK
            }
        }
    }
}

#[cfg(test)]
mod tests;
