//! A place for one token: renewed by one flight for everyone who waits, invalidated by generation.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::HeaderValue;
use tokio::{sync::watch, time::Instant};

use super::secrets::Fingerprint;
use crate::{store::StoreError, thingspace::error::LEFT_ALONE};

/// `expires_in` is whole seconds, and a token that is asked for too early is the same token again.
const EXPIRY_SLACK: Duration = Duration::from_secs(1);
/// A token that was refused and then handed out again is not invalidated, hence not asked for,
/// before this.
pub(super) const SAME_TOKEN_HOLD: Duration = Duration::from_secs(1);

/// How long a caller waits for another attempt to get a token, at most.
const NEXT_ATTEMPT_MOST: Duration = Duration::from_secs(10);
/// Added to that wait: others measure it from a moment later.
const NEXT_ATTEMPT_SLACK: Duration = Duration::from_millis(100);

/// A token as a header's value. `Debug` does not show it.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) value: HeaderValue,
    pub(super) id: TokenId,
    /// Somebody else had asked for it.
    pub(super) found: bool,
}

/// Tells a token from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TokenId {
    /// Of the credentials it was had for.
    pub(super) fingerprint: Fingerprint,
    /// Grows from each of their tokens to the next.
    pub(super) generation: u64,
}

/// What a renewal brought.
#[derive(Debug)]
pub(super) struct Minted {
    pub(super) token: Token,
    /// At most so long from now.
    pub(super) expires_in: Option<Duration>,
}

/// Why a renewal failed, and how soon another may be tried.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) what: What,
    pub(super) pace: Pace,
}

#[derive(Debug, Clone)]
pub(super) enum What {
    Rejected,
    /// Nothing is tried any more.
    Stopped,
    Throttled(Option<Duration>),
    Unavailable(String),
    /// The host is left alone for so long; nothing was sent, and nothing has to be paced.
    LeftAlone(Duration),
    /// Nothing is tried before.
    Later(String, Instant),
    /// Another attempt is under way, and counts as unanswered then.
    Elsewhere(Instant),
    Store(StoreError),
    /// A credential file cannot be read.
    Unreadable,
}

/// The back-off between failed flights: `first`, doubling to `most`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pace {
    first: Duration,
    most: Duration,
}

/// A failure, held until another flight may begin.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    pub(super) fault: Fault,
    not_before: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Slot {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: Option<Held>,
    /// The last token's, also after it was invalidated.
    last: Option<(TokenId, HeaderValue)>,
    failed: Option<Failed>,
    /// Attempts that failed in a row.
    failures: u32,
    /// Tokens in a row that were refused without ever having been of use.
    useless: u32,
    flight: Option<watch::Receiver<Option<Outcome>>>,
}

#[derive(Debug)]
struct Held {
    token: Token,
    ask_again: Option<Instant>,
    /// It was handed out before, and is not invalidated before this.
    keep_until: Option<Instant>,
    /// ThingSpace took it.
    worked: bool,
}

type Outcome = Result<Token, Failed>;

impl Pace {
    /// For whoever comes next, another answer.
    pub(super) const AT_ONCE: Self = Self { first: Duration::ZERO, most: Duration::ZERO };
    /// While only files and guard are looked at.
    pub(super) const RECHECK: Self =
        Self { first: Duration::from_secs(1), most: Duration::from_secs(1) };
    pub(super) const QUICK: Self =
        Self { first: Duration::from_secs(1), most: Duration::from_mins(1) };
    /// After a defect.
    const BROKEN: Self = Self { first: Duration::from_secs(5), most: Duration::from_mins(15) };

    fn wait(self, failures: u32) -> Duration {
        self.first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.most)
    }
}

impl Failed {
    /// How long a caller waits for the next attempt; `None`: it is told the failure at once.
    pub(super) fn passes_within(&self) -> Option<Duration> {
        let passes =
            matches!(self.fault.what, What::Unavailable(_) | What::Later(..) | What::Elsewhere(_));
        Some(self.wait() + NEXT_ATTEMPT_SLACK).filter(|wait| passes && *wait <= NEXT_ATTEMPT_MOST)
    }

    /// Until it is worth trying again.
    pub(super) fn wait(&self) -> Duration {
        let until = match self.fault.what {
            What::Later(_, until) | What::Elsewhere(until) => until.max(self.not_before),
            _ => self.not_before,
        };
        until.saturating_duration_since(Instant::now())
    }
}

impl Slot {
    /// The token that is held, the failure that is held, or the outcome of the flight under way; if
    /// there is none, `renew` begins one, after the last token. The flight is a task of its own:
    /// whoever stops waiting does not stop it.
    pub(super) async fn get<F>(
        self: &Arc<Self>,
        renew: impl FnOnce(Option<TokenId>) -> F,
    ) -> Outcome
    where
        F: Future<Output = Result<Minted, Fault>> + Send + 'static,
    {
        let flight = {
            let mut state = self.lock();
            if let Some(outcome) = state.current(Instant::now()) {
                return outcome;
            }
            self.board(&mut state, renew)
        };
        outcome(flight).await
    }

    /// The same although a token is held, which others get until there is another. A failure leaves
    /// it.
    pub(super) async fn replace<F>(
        self: &Arc<Self>,
        renew: impl FnOnce(Option<TokenId>) -> F,
    ) -> Outcome
    where
        F: Future<Output = Result<Minted, Fault>> + Send + 'static,
    {
        let flight = {
            let mut state = self.lock();
            if let Some(failed) = state.held_failure(Instant::now()) {
                return Err(failed);
            }
            self.board(&mut state, renew)
        };
        outcome(flight).await
    }

    /// The credentials of the token that is held.
    pub(super) fn holds(&self) -> Option<Fingerprint> {
        let state = self.lock();
        state.valid(Instant::now()).map(|token| token.id.fingerprint)
    }

    /// Another flight may begin at once.
    pub(super) fn forget_failure(&self) {
        self.lock().failed = None;
    }

    fn board<F>(
        self: &Arc<Self>,
        state: &mut State,
        renew: impl FnOnce(Option<TokenId>) -> F,
    ) -> watch::Receiver<Option<Outcome>>
    where
        F: Future<Output = Result<Minted, Fault>> + Send + 'static,
    {
        let last = state.last.as_ref().map(|(id, _)| *id);
        match &state.flight {
            Some(flight) => flight.clone(),
            None => state.flight.insert(self.take_off(renew(last))).clone(),
        }
    }

    fn take_off(
        self: &Arc<Self>,
        renewal: impl Future<Output = Result<Minted, Fault>> + Send + 'static,
    ) -> watch::Receiver<Option<Outcome>> {
        let (landed, flight) = watch::channel(None);
        let slot = Arc::clone(self);
        tokio::spawn(async move {
            // In a task of its own, so that a panic too has an outcome.
            let result = tokio::spawn(renewal).await.unwrap_or_else(|_| Err(Fault::broken()));
            let outcome = slot.lock().land(result, Instant::now());
            landed.send_replace(Some(outcome));
        });
        flight
    }

    /// This token was refused. Another one stays. If it was never of use, nor the one before it,
    /// the next one waits, longer each time.
    pub(super) fn invalidate(&self, id: TokenId) {
        let mut state = self.lock();
        let now = Instant::now();
        let refused = |held: &mut Held| {
            held.token.id == id && held.keep_until.is_none_or(|until| until <= now)
        };
        let Some(held) = state.held.take_if(refused) else { return };
        if held.worked || held.token.found || held.keep_until.is_some() {
            return;
        }
        state.useless = state.useless.saturating_add(1);
        if state.useless > 1 {
            let reason = "ThingSpace refuses each token as soon as it has handed it out".to_owned();
            let fault = Fault { what: What::Unavailable(reason), pace: Pace::QUICK };
            let not_before = now + fault.pace.wait(state.useless - 1);
            state.failed = Some(Failed { fault, not_before });
        }
    }

    /// ThingSpace took this token.
    pub(super) fn worked(&self, id: TokenId) {
        let mut state = self.lock();
        if let Some(held) = state.held.as_mut().filter(|held| held.token.id == id) {
            held.worked = true;
            state.useless = 0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of a flight under way.
async fn outcome(mut flight: watch::Receiver<Option<Outcome>>) -> Outcome {
    let outcome = flight.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
    // Without an outcome the runtime is being shut down, and nobody reads this.
    outcome.unwrap_or_else(|| Err(Failed { fault: Fault::broken(), not_before: Instant::now() }))
}

impl State {
    fn current(&self, now: Instant) -> Option<Outcome> {
        let token = self.valid(now).map(|token| Ok(token.clone()));
        token.or_else(|| self.held_failure(now).map(Err))
    }

    fn valid(&self, now: Instant) -> Option<&Token> {
        let held = self.held.as_ref().filter(|held| held.ask_again.is_none_or(|at| now < at));
        held.map(|held| &held.token)
    }

    fn held_failure(&self, now: Instant) -> Option<Failed> {
        self.failed.clone().filter(|failed| now < failed.not_before)
    }

    fn land(&mut self, result: Result<Minted, Fault>, now: Instant) -> Outcome {
        self.flight = None;
        match result {
            Ok(Minted { token, expires_in }) => {
                let same = self.last.as_ref().is_some_and(|(_, value)| *value == token.value);
                self.last = Some((token.id, token.value.clone()));
                self.failures = 0;
                self.failed = None;
                self.held = Some(Held {
                    token: token.clone(),
                    ask_again: expires_in.map(|lifetime| now + lifetime + EXPIRY_SLACK),
                    keep_until: same.then(|| now + SAME_TOKEN_HOLD),
                    worked: false,
                });
                Ok(token)
            }
            Err(fault) => {
                let wait = if let What::LeftAlone(wait) = fault.what {
                    wait
                } else if let Some(left) = fault.left(now) {
                    left.min(Pace::RECHECK.first)
                } else {
                    // Looking at files and guard is no attempt.
                    let attempted = fault.pace != Pace::RECHECK;
                    self.failures = if attempted { self.failures.saturating_add(1) } else { 0 };
                    let asked = match fault.what {
                        What::Throttled(retry_after) => retry_after.unwrap_or_default(),
                        _ => Duration::ZERO,
                    };
                    fault.pace.wait(self.failures).max(asked)
                };
                let not_before = now + wait;
                let failed = Failed { fault, not_before };
                self.failed = Some(failed.clone());
                Err(failed)
            }
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected => f.write_str("ThingSpace rejects the credentials"),
            Self::Stopped => f.write_str("nothing is tried any more"),
            Self::Throttled(_) => f.write_str("throttled by ThingSpace"),
            Self::LeftAlone(_) => f.write_str(LEFT_ALONE),
            Self::Unavailable(reason) | Self::Later(reason, _) => f.write_str(reason),
            Self::Elsewhere(_) => {
                f.write_str("another gateway's login or token request is unanswered so far")
            }
            Self::Store(error) => error.fmt(f),
            Self::Unreadable => f.write_str("a credential file cannot be read"),
        }
    }
}

impl Fault {
    /// For how long nothing is tried, if that is known.
    fn left(&self, now: Instant) -> Option<Duration> {
        match self.what {
            What::Later(_, until) | What::Elsewhere(until) => {
                until.checked_duration_since(now).filter(|left| !left.is_zero())
            }
            _ => None,
        }
    }

    fn broken() -> Self {
        Self { what: What::Unavailable("the renewal broke".to_owned()), pace: Pace::BROKEN }
    }
}

#[cfg(test)]
mod tests;
