//! A place for one token: renewed by one flight for everyone who waits, invalidated by generation.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::HeaderValue;
use tokio::{sync::watch, time::Instant};

use super::secrets::Fingerprint;

/// `expires_in` is whole seconds, and a token that is asked for too early is the same token again.
const EXPIRY_SLACK: Duration = Duration::from_secs(1);
/// A token that was refused and then handed out again is not invalidated, hence not asked for, before this.
pub(super) const SAME_TOKEN_HOLD: Duration = Duration::from_secs(1);

/// A token as a header's value. `Debug` does not show it.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) value: HeaderValue,
    pub(super) generation: u64,
    fingerprint: Fingerprint,
}

/// What a renewal brought.
#[derive(Debug)]
pub(super) struct Minted {
    pub(super) value: HeaderValue,
    /// Of the credentials it was had for.
    pub(super) fingerprint: Fingerprint,
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
    Throttled(Option<Duration>),
    Unavailable(String),
    /// The host is left alone for so long; nothing was sent, and nothing has to be paced.
    LeftAlone(Duration),
}

/// The back-off between failed flights: `first`, doubling to `most`.
#[derive(Debug, Clone, Copy)]
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
    held: Held,
    /// The last token's, also after it was invalidated.
    value: Option<HeaderValue>,
    generation: u64,
    failures: u32,
    flight: Option<watch::Receiver<Option<Outcome>>>,
}

#[derive(Debug, Default)]
enum Held {
    #[default]
    Nothing,
    Token {
        token: Token,
        ask_again: Option<Instant>,
        keep_until: Option<Instant>,
    },
    Failure(Failed),
}

type Outcome = Result<Token, Failed>;

impl Pace {
    /// While rejected credentials are only compared with their files.
    pub(super) const RECHECK: Self = Self { first: Duration::from_secs(1), most: Duration::from_secs(1) };
    pub(super) const QUICK: Self = Self { first: Duration::from_secs(1), most: Duration::from_mins(1) };
    /// After a login that may have counted.
    pub(super) const CAREFUL: Self = Self { first: Duration::from_secs(5), most: Duration::from_mins(15) };

    fn wait(self, failures: u32) -> Duration {
        self.first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.most)
    }
}

impl Failed {
    pub(super) fn wait(&self) -> Duration {
        self.not_before.saturating_duration_since(Instant::now())
    }
}

impl Slot {
    /// The token that is held, the failure that is held, or the outcome of the flight under way; if there is none,
    /// `renew` begins one. The flight is a task of its own: whoever stops waiting does not stop it.
    pub(super) async fn get<F>(self: &Arc<Self>, renew: impl FnOnce() -> F) -> Outcome
    where
        F: Future<Output = Result<Minted, Fault>> + Send + 'static,
    {
        let mut flight = {
            let mut state = self.lock();
            if let Some(outcome) = state.current(Instant::now()) {
                return outcome;
            }
            match &state.flight {
                Some(flight) => flight.clone(),
                None => state.flight.insert(self.take_off(renew())).clone(),
            }
        };
        let outcome = flight.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
        // Without an outcome the runtime is being shut down, and nobody reads this.
        outcome.unwrap_or_else(|| Err(Failed { fault: Fault::broken(), not_before: Instant::now() }))
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

    /// The token of this generation was refused. A newer one stays.
    pub(super) fn invalidate(&self, generation: u64) {
        let mut state = self.lock();
        if let Held::Token { token, keep_until, .. } = &state.held
            && token.generation == generation
            && keep_until.is_none_or(|until| until <= Instant::now())
        {
            state.held = Held::Nothing;
        }
    }

    /// Discards a token that was had for other credentials.
    pub(super) fn keep_only(&self, fingerprint: Fingerprint) {
        let mut state = self.lock();
        if matches!(&state.held, Held::Token { token, .. } if token.fingerprint != fingerprint) {
            state.held = Held::Nothing;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn current(&self, now: Instant) -> Option<Outcome> {
        match &self.held {
            Held::Token { token, ask_again, .. } if ask_again.is_none_or(|at| now < at) => {
                Some(Ok(token.clone()))
            }
            Held::Failure(failed) if now < failed.not_before => Some(Err(failed.clone())),
            _ => None,
        }
    }

    fn land(&mut self, result: Result<Minted, Fault>, now: Instant) -> Outcome {
        self.flight = None;
        match result {
            Ok(minted) => {
                let same = self.value.as_ref() == Some(&minted.value);
                self.value = Some(minted.value.clone());
                self.generation += 1;
                self.failures = 0;
                let token = Token {
                    value: minted.value,
                    generation: self.generation,
                    fingerprint: minted.fingerprint,
                };
                self.held = Held::Token {
                    token: token.clone(),
                    ask_again: minted.expires_in.map(|lifetime| now + lifetime + EXPIRY_SLACK),
                    keep_until: same.then(|| now + SAME_TOKEN_HOLD),
                };
                Ok(token)
            }
            Err(fault) => {
                let wait = if let What::LeftAlone(wait) = fault.what {
                    wait
                } else {
                    self.failures = self.failures.saturating_add(1);
                    let asked = match fault.what {
                        What::Throttled(retry_after) => retry_after.unwrap_or_default(),
                        What::Rejected | What::Unavailable(_) | What::LeftAlone(_) => Duration::ZERO,
                    };
                    fault.pace.wait(self.failures).max(asked)
                };
                let not_before = now + wait;
                let failed = Failed { fault, not_before };
                self.held = Held::Failure(failed.clone());
                Err(failed)
            }
        }
    }
}

impl Fault {
    pub(super) fn left_alone(wait: Duration) -> Self {
        Self { what: What::LeftAlone(wait), pace: Pace::QUICK }
    }

    fn broken() -> Self {
        Self { what: What::Unavailable("the renewal broke".to_owned()), pace: Pace::CAREFUL }
    }
}

#[cfg(test)]
mod tests;
