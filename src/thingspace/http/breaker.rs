//! The circuit breaker of one host: decides whether calls to it are sent.
//!
//! The breaker opens after `breaker_failures` calls in a row that failed: no connection, a reset, a
//! time-out, a cut body or a 5xx. While it is open, every call fails at once with the time to wait.
//! Then exactly one call without an effect is sent as a probe. An answer closes the breaker. A
//! failure opens it again for twice as long as before, up to `breaker_max`, with a random reduction
//! of up to a half. A longer `Retry-After` of the probe counts instead. The doubling starts over
//! only after `breaker_failures` answers in a row, so a host that answers only probes is called
//! less and less.
//!
//! Every reply of the host itself is an answer, also a refusal of tokens or credentials. Throttling
//! neither opens nor closes the breaker, because it says nothing about the servers behind the API
//! manager. A throttled probe is repeated after its `Retry-After`. If the caller of a probe stops
//! waiting, the transport sends the next probe itself, in a task that no caller can cancel. The
//! outcome of a call that began before the last change of phase is ignored.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    backoff::jittered,
    lock::lock,
    telemetry::{attribute, metrics, names},
};

/// The longest `Retry-After` that is respected, for a host and for a single call.
pub(crate) const LONGEST_RETRY_AFTER: Duration = Duration::from_mins(5);

/// What a call shows about its host. The durations are those of `Retry-After`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallOutcome {
    Answered,
    Throttled(Option<Duration>),
    Failed(Option<Duration>),
}

/// How a call to a host failed, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostFailure {
    /// Such as "GET /m2m/v1/…: HTTP 500". Contains no value of the request or its answer.
    pub(crate) what: String,
    /// Whether the host answered, with a server error.
    pub(crate) answered: bool,
}

/// How long a failure that opened the breaker is shown after the breaker has closed. If only some
/// calls fail, others close it again and again.
const FAILURE_SHOWN: Duration = Duration::from_mins(10);

/// The state of a host's breaker, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostHealth {
    pub(crate) host: String,
    /// For how long calls fail at once, at least. `None`: the breaker is closed.
    pub(crate) open_for: Option<Duration>,
    /// The last failure that opened the breaker or kept it open, and how long ago it was. `None`:
    /// it is closed, and has been for a while.
    pub(crate) failure: Option<(HostFailure, Duration)>,
}

#[derive(Debug)]
pub(crate) struct Breaker {
    pub(super) host: String,
    settings: BreakerSettings,
    state: Mutex<BreakerState>,
    failure: Mutex<Option<(HostFailure, Instant)>>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct BreakerSettings {
    pub(super) failures: u32,
    pub(super) first: Duration,
    pub(super) most: Duration,
}

/// The right to send one call. If it is dropped without a report, the call had no outcome.
#[derive(Debug)]
pub(crate) struct Pass {
    breaker: Arc<Breaker>,
    era: u64,
    outcome: Option<CallOutcome>,
    failure: Option<HostFailure>,
}

/// Whether a call may be sent.
#[derive(Debug)]
pub(crate) enum Admission {
    Pass(Pass),
    /// A probe has to be sent first, with this pass, because this call cannot be the probe.
    ProbeFirst(Pass),
    /// No call may be sent for this long.
    Refused(Duration),
}

/// A pure state machine: time and randomness are arguments.
#[derive(Debug)]
struct BreakerState {
    phase: BreakerPhase,
    /// Counts the changes of phase.
    era: u64,
    /// Failures in a row while closed.
    failures: u32,
    /// Answers in a row while closed.
    answers: u32,
    /// How long the breaker opened last, before the random reduction. Zero: doubling starts over.
    penalty: Duration,
    /// The last probe ended without an outcome.
    probe_cancelled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BreakerPhase {
    /// Calls are sent.
    Closed,
    /// After `until`, the next call is the probe.
    Open { until: Instant },
    /// The probe has no outcome yet.
    Probing,
}

/// A change that is logged.
#[derive(Debug, PartialEq, Eq)]
enum BreakerChange {
    Opened(Duration),
    StillOpen(Duration),
    Closed,
}

impl Breaker {
    pub(crate) fn new(host: String, settings: BreakerSettings) -> Arc<Self> {
        let state = BreakerState {
            phase: BreakerPhase::Closed,
            era: 0,
            failures: 0,
            answers: 0,
            penalty: Duration::ZERO,
            probe_cancelled: false,
        };
        metrics().breaker_opened.start(&[attribute(names::HOST, host.clone())]);
        Arc::new(Self { host, settings, state: Mutex::new(state), failure: Mutex::default() })
    }

    /// Admits or refuses the next call. Only a call without an effect may be the probe.
    pub(crate) fn admit(self: &Arc<Self>, has_no_effect: bool) -> Admission {
        let mut state = lock(&self.state);
        if let Some(wait) = state.remaining(&self.settings, Instant::now()) {
            return Admission::Refused(wait);
        }
        let is_probe = state.phase != BreakerPhase::Closed;
        if is_probe {
            state.enter(BreakerPhase::Probing);
        }
        let (breaker, era) = (Arc::clone(self), state.era);
        let pass = Pass { breaker, era, outcome: None, failure: None };
        let may_probe = has_no_effect && !state.probe_cancelled;
        if is_probe && !may_probe { Admission::ProbeFirst(pass) } else { Admission::Pass(pass) }
    }

    /// Returns for how long calls are refused from now on, or `None` if they are sent.
    pub(crate) fn refused_for(&self) -> Option<Duration> {
        lock(&self.state).remaining(&self.settings, Instant::now())
    }

    pub(crate) fn health(&self) -> HostHealth {
        let open_for = match lock(&self.state).phase {
            BreakerPhase::Closed => None,
            BreakerPhase::Open { until } => Some(until.saturating_duration_since(Instant::now())),
            BreakerPhase::Probing => Some(Duration::ZERO),
        };
        let failure = lock(&self.failure).clone();
        let failure = failure.map(|(failure, at)| (failure, at.elapsed()));
        let is_shown = |(_, ago): &_| open_for.is_some() || *ago < FAILURE_SHOWN;
        HostHealth { host: self.host.clone(), open_for, failure: failure.filter(is_shown) }
    }

    fn report(&self, era: u64, outcome: Option<CallOutcome>, failure: Option<HostFailure>) {
        let mut state = lock(&self.state);
        let change = state.report(&self.settings, era, outcome, Instant::now(), fastrand::f64());
        drop(state);
        let (host, failures) = (&self.host, self.settings.failures);
        let last = failure.as_ref().map(|failure| failure.what.clone());
        if matches!(change, Some(BreakerChange::Opened(_) | BreakerChange::StillOpen(_)))
            && let Some(failure) = failure
        {
            *lock(&self.failure) = Some((failure, Instant::now()));
        }
        match change {
            Some(BreakerChange::Opened(wait)) => {
                metrics().breaker_opened.add(&[attribute(names::HOST, host.clone())]);
                tracing::warn!(
                    host,
                    failures,
                    last,
                    ?wait,
                    "calls to a host of ThingSpace failed in a row; calls to it fail at once until \
                     a probe is answered. If this lasts, check the network and the status of \
                     ThingSpace"
                );
            }
            Some(BreakerChange::StillOpen(wait)) => {
                tracing::debug!(host, last, ?wait, "a probe of a host of ThingSpace failed");
            }
            Some(BreakerChange::Closed) => {
                tracing::info!(host, "a host of ThingSpace answers again");
            }
            None => {}
        }
    }
}

impl Pass {
    /// Notes how the call failed, if it did.
    pub(crate) fn with_failure(mut self, failure: Option<HostFailure>) -> Self {
        self.failure = failure;
        self
    }

    pub(crate) fn report(mut self, outcome: CallOutcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.breaker.report(self.era, self.outcome, self.failure.take());
    }
}

impl BreakerState {
    fn remaining(&self, settings: &BreakerSettings, now: Instant) -> Option<Duration> {
        match self.phase {
            BreakerPhase::Closed => None,
            BreakerPhase::Open { until } => {
                Some(until.saturating_duration_since(now)).filter(|wait| !wait.is_zero())
            }
            // It is not known how long the probe takes.
            BreakerPhase::Probing => Some(settings.first),
        }
    }

    fn enter(&mut self, phase: BreakerPhase) {
        self.phase = phase;
        self.era += 1;
        (self.failures, self.answers) = (0, 0);
        self.probe_cancelled &= phase == BreakerPhase::Probing;
    }

    /// Applies the outcome of a call that began in `era`. `random` is between 0 and 1.
    fn report(
        &mut self,
        settings: &BreakerSettings,
        era: u64,
        outcome: Option<CallOutcome>,
        now: Instant,
        random: f64,
    ) -> Option<BreakerChange> {
        use CallOutcome::{Answered, Failed, Throttled};
        if era != self.era {
            return None;
        }
        match (self.phase, outcome) {
            (BreakerPhase::Closed, Some(Answered)) => {
                self.failures = 0;
                self.answers = self.answers.saturating_add(1);
                if self.answers >= settings.failures {
                    self.penalty = Duration::ZERO;
                }
                None
            }
            (BreakerPhase::Closed, Some(Failed(_))) => {
                self.answers = 0;
                self.failures += 1;
                // The `Retry-After` may concern this call only, so a probe is sent soon.
                (self.failures >= settings.failures)
                    .then(|| BreakerChange::Opened(self.open(settings, None, now, random)))
            }
            (BreakerPhase::Probing, Some(Answered)) => {
                self.enter(BreakerPhase::Closed);
                Some(BreakerChange::Closed)
            }
            (BreakerPhase::Probing, Some(Failed(retry_after))) => {
                Some(BreakerChange::StillOpen(self.open(settings, retry_after, now, random)))
            }
            (BreakerPhase::Probing, Some(Throttled(retry_after))) => {
                Some(BreakerChange::StillOpen(self.wait(retry_after, now, random)))
            }
            (BreakerPhase::Probing, None) => {
                let wait = if self.probe_cancelled {
                    jittered(self.penalty, random)
                } else {
                    Duration::ZERO
                };
                self.enter(BreakerPhase::Open { until: now + wait });
                self.probe_cancelled = true;
                None
            }
            (BreakerPhase::Closed, Some(Throttled(_)) | None) | (BreakerPhase::Open { .. }, _) => {
                None
            }
        }
    }

    /// Opens for twice as long as the last time.
    fn open(
        &mut self,
        settings: &BreakerSettings,
        retry_after: Option<Duration>,
        now: Instant,
        random: f64,
    ) -> Duration {
        self.penalty = (self.penalty * 2).clamp(settings.first, settings.most);
        self.wait(retry_after, now, random)
    }

    fn wait(&mut self, retry_after: Option<Duration>, now: Instant, random: f64) -> Duration {
        let wait = jittered(self.penalty, random)
            .max(retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER));
        self.enter(BreakerPhase::Open { until: now + wait });
        wait
    }
}

#[cfg(test)]
mod tests;
