//! The circuit breaker of one host: whether it is called at all.
//!
//! It opens after `breaker_failures` calls in a row that brought no answer (no connection, reset,
//! time-out, a cut body) or a 5xx. While it is open every call fails at once and says when to come
//! back. Then exactly one call probes, one without effect; an answer closes the breaker, a failure
//! opens it for longer: each time twice as long, up to `breaker_max`, and a random half to the
//! whole of that, or as long as the probe was told in `Retry-After`. How long is forgotten only
//! after as many answers in a row as failures open it, so that a host which answers probes and
//! nothing else is left alone ever longer all the same.
//!
//! An answer is whatever the host itself said, refusals of tokens and credentials too. Being
//! throttled neither opens nor closes: who throttles works, and whether what is behind it does, it
//! did not say. A throttled probe is repeated, not earlier than it was told. A probe whose caller
//! goes away tells nothing; the next is the breaker's own, which nobody can stop, lest impatient
//! callers keep it open for ever. What became of a call that began before the last change is not
//! looked at.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::config::ThingSpaceConfig;

/// The longest `Retry-After` that is respected, for a host as for a single call.
pub(crate) const LONGEST_RETRY_AFTER: Duration = Duration::from_mins(5);

/// What a call tells of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Answered,
    Throttled(Option<Duration>),
    Failed(Option<Duration>),
}

/// How a host is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostHealth {
    pub host: String,
    /// Calls fail at once, at least for so long. `None`: it is called.
    pub left_alone: Option<Duration>,
}

#[derive(Debug)]
pub(crate) struct Breaker {
    host: String,
    settings: Settings,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    failures: u32,
    first: Duration,
    most: Duration,
}

/// The right to one call. Dropped without a word, the call told nothing.
#[derive(Debug)]
pub(crate) struct Pass {
    breaker: Arc<Breaker>,
    era: u64,
    told: bool,
}

/// Whether a call may be made.
#[derive(Debug)]
pub(crate) enum Admission {
    Pass(Pass),
    /// This call is not to be the probe: one without effect, that comes to an end by itself, has to
    /// go first, with this pass.
    ProbeFirst(Pass),
    /// Not before so long.
    Refused(Duration),
}

/// Knows no clock and no randomness.
#[derive(Debug)]
struct State {
    phase: Phase,
    /// Grows with each change of phase.
    era: u64,
    /// In a row, while closed.
    failures: u32,
    answers: u32,
    /// The last; zero: none that is remembered.
    penalty: Duration,
    /// The last probe told nothing.
    given_up: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Closed,
    /// From then on, whoever comes first is the probe.
    Open {
        until: Instant,
    },
    Probing,
}

/// What is worth a line in the log.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Opened(Duration),
    StillOpen(Duration),
    Closed,
}

impl Settings {
    pub(crate) fn new(config: &ThingSpaceConfig) -> Self {
        Self {
            failures: config.breaker_failures,
            first: config.breaker_first,
            most: config.breaker_max,
        }
    }
}

impl Breaker {
    pub(crate) fn new(host: String, settings: Settings) -> Arc<Self> {
        let state = State {
            phase: Phase::Closed,
            era: 0,
            failures: 0,
            answers: 0,
            penalty: Duration::ZERO,
            given_up: false,
        };
        Arc::new(Self { host, settings, state: Mutex::new(state) })
    }

    /// The next call, which may be the probe if it has no effect.
    pub(crate) fn admit(self: &Arc<Self>, has_no_effect: bool) -> Admission {
        let mut state = self.lock();
        if let Some(wait) = state.closed_to(&self.settings, Instant::now()) {
            return Admission::Refused(wait);
        }
        let probes = state.phase != Phase::Closed;
        if probes {
            state.enter(Phase::Probing);
        }
        let pass = Pass { breaker: Arc::clone(self), era: state.era, told: false };
        let may_probe = has_no_effect && !state.given_up;
        if probes && !may_probe { Admission::ProbeFirst(pass) } else { Admission::Pass(pass) }
    }

    /// For how long calls would be refused now.
    pub(crate) fn refuses(&self) -> Option<Duration> {
        self.lock().closed_to(&self.settings, Instant::now())
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn health(&self) -> HostHealth {
        let state = self.lock();
        let left_alone = match state.phase {
            Phase::Closed => None,
            Phase::Open { until } => Some(until.saturating_duration_since(Instant::now())),
            Phase::Probing => Some(Duration::ZERO),
        };
        HostHealth { host: self.host.clone(), left_alone }
    }

    fn report(&self, era: u64, outcome: Option<Outcome>) {
        let change =
            self.lock().report(&self.settings, era, outcome, Instant::now(), fastrand::f64());
        let host = &self.host;
        match change {
            Some(Change::Opened(wait)) => {
                let failures = self.settings.failures;
                tracing::warn!(
                    host,
                    failures,
                    ?wait,
                    "a host of ThingSpace does not answer; calls to it fail at once"
                );
            }
            Some(Change::StillOpen(wait)) => {
                tracing::debug!(host, ?wait, "a host still does not answer");
            }
            Some(Change::Closed) => tracing::info!(host, "a host of ThingSpace answers again"),
            None => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass {
    /// What became of the call.
    pub(crate) fn report(mut self, outcome: Outcome) {
        self.told = true;
        self.breaker.report(self.era, Some(outcome));
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if !self.told {
            self.breaker.report(self.era, None);
        }
    }
}

impl State {
    fn closed_to(&self, settings: &Settings, now: Instant) -> Option<Duration> {
        match self.phase {
            Phase::Closed => None,
            Phase::Open { until } => {
                Some(until.saturating_duration_since(now)).filter(|wait| !wait.is_zero())
            }
            // Nobody knows how long the probe takes.
            Phase::Probing => Some(settings.first),
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.era += 1;
        (self.failures, self.answers) = (0, 0);
        self.given_up &= phase == Phase::Probing;
    }

    /// `roll` is a random number from 0 to 1.
    fn report(
        &mut self,
        settings: &Settings,
        era: u64,
        outcome: Option<Outcome>,
        now: Instant,
        roll: f64,
    ) -> Option<Change> {
        if era != self.era {
            return None;
        }
        match (self.phase, outcome) {
            (Phase::Closed, Some(Outcome::Answered)) => {
                self.failures = 0;
                self.answers = self.answers.saturating_add(1);
                if self.answers >= settings.failures {
                    self.penalty = Duration::ZERO;
                }
                None
            }
            (Phase::Closed, Some(Outcome::Failed(_))) => {
                self.answers = 0;
                self.failures += 1;
                // Whatever this call was told: a probe finds out soon.
                (self.failures >= settings.failures)
                    .then(|| Change::Opened(self.open(settings, None, now, roll)))
            }
            (Phase::Probing, Some(Outcome::Answered)) => {
                self.enter(Phase::Closed);
                Some(Change::Closed)
            }
            (Phase::Probing, Some(Outcome::Failed(told))) => {
                Some(Change::StillOpen(self.open(settings, told, now, roll)))
            }
            (Phase::Probing, Some(Outcome::Throttled(told))) => {
                let wait = jittered(self.penalty, roll)
                    .max(told.unwrap_or_default().min(LONGEST_RETRY_AFTER));
                self.enter(Phase::Open { until: now + wait });
                Some(Change::StillOpen(wait))
            }
            (Phase::Probing, None) => {
                let wait =
                    if self.given_up { jittered(self.penalty, roll) } else { Duration::ZERO };
                self.enter(Phase::Open { until: now + wait });
                self.given_up = true;
                None
            }
            (Phase::Closed, Some(Outcome::Throttled(_)) | None) | (Phase::Open { .. }, _) => None,
        }
    }

    fn open(
        &mut self,
        settings: &Settings,
        told: Option<Duration>,
        now: Instant,
        roll: f64,
    ) -> Duration {
        self.penalty = (self.penalty * 2).clamp(settings.first, settings.most);
        let wait =
            jittered(self.penalty, roll).max(told.unwrap_or_default().min(LONGEST_RETRY_AFTER));
        self.enter(Phase::Open { until: now + wait });
        wait
    }
}

/// A random half to the whole of it, so that replicas do not meet again and again. `roll` is a
/// random number from 0 to 1.
pub(crate) fn jittered(penalty: Duration, roll: f64) -> Duration {
    penalty.mul_f64(f64::midpoint(1.0, roll))
}

#[cfg(test)]
mod tests;
