//! The outcomes of requests to the callbacks' listener: their answers, counts and log lines.
//!
//! The port may be open to the internet, so each outcome is logged when it first occurs and then at
//! most once a minute.

use std::{
    collections::HashMap,
    slice,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::StatusCode;
use opentelemetry::KeyValue;
use tracing::{debug, warn};

use crate::{
    identity::AccountName,
    lock::lock,
    log_throttle::LogThrottle,
    telemetry::{attribute, metrics, names},
};

/// The outcome of a request to the listener. `status` shows how often each occurred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say all")]
pub enum CallbackOutcome {
    Stored,
    Quarantined,
    UnknownPath,
    WrongMethod,
    TooLarge,
    /// The body ended too early.
    Broken,
    /// The body did not arrive in time, or was evicted for another one.
    TooSlow,
    WrongPair,
    /// Too many callbacks of the account came at once.
    TooMany,
    /// It has no pair, and too many such callbacks were added to the quarantine recently.
    NotKept,
    NotStored,
}

/// Each outcome with the name that operators see, and the status of the answer.
const OUTCOMES: [(CallbackOutcome, &str, StatusCode); 11] = [
    (CallbackOutcome::Stored, "stored", StatusCode::OK),
    (CallbackOutcome::Quarantined, "quarantined", StatusCode::OK),
    (CallbackOutcome::UnknownPath, "unknown_path", StatusCode::NOT_FOUND),
    (CallbackOutcome::WrongMethod, "wrong_method", StatusCode::METHOD_NOT_ALLOWED),
    (CallbackOutcome::TooLarge, "too_large", StatusCode::PAYLOAD_TOO_LARGE),
    (CallbackOutcome::Broken, "broken", StatusCode::BAD_REQUEST),
    (CallbackOutcome::TooSlow, "too_slow", StatusCode::REQUEST_TIMEOUT),
    (CallbackOutcome::WrongPair, "wrong_pair", StatusCode::UNAUTHORIZED),
    (CallbackOutcome::TooMany, "too_many", StatusCode::SERVICE_UNAVAILABLE),
    (CallbackOutcome::NotKept, "not_kept", StatusCode::SERVICE_UNAVAILABLE),
    (CallbackOutcome::NotStored, "not_stored", StatusCode::SERVICE_UNAVAILABLE),
];

/// The outcomes that metrics show with 0 from the start for each account, so that the first one is
/// an increase. The others occur only with wrong or hostile senders.
const STARTED: [CallbackOutcome; 4] = [
    CallbackOutcome::Stored,
    CallbackOutcome::Quarantined,
    CallbackOutcome::WrongPair,
    CallbackOutcome::NotStored,
];

impl CallbackOutcome {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        OUTCOMES.into_iter().map(|(outcome, _, _)| outcome)
    }

    pub(crate) fn name(self) -> &'static str {
        OUTCOMES[self as usize].1
    }

    pub(super) fn status(self) -> StatusCode {
        OUTCOMES[self as usize].2
    }

    /// Returns the text of a warning; `None`: the outcome is logged with DEBUG.
    fn warning(self) -> Option<&'static str> {
        Some(match self {
            Self::Quarantined => {
                "callbacks that cannot be read, name no request or name another account are in \
                 quarantine; read them with `quarantine show`"
            }
            Self::WrongPair => {
                "refused callbacks with a wrong user name or password; ThingSpace sends what is \
                 registered, see `callbacks list`"
            }
            Self::NotKept => {
                "refused callbacks without a password, because the quarantine keeps few of them; \
                 if they are not ThingSpace's, replace the URL with `callbacks rotate --path`"
            }
            Self::TooMany => "refused callbacks, because too many of the account came at once",
            Self::TooSlow => "refused callbacks whose bodies arrived too slowly",
            Self::NotStored => {
                "refused callbacks that could not be stored; ThingSpace sends them again"
            }
            Self::Stored
            | Self::UnknownPath
            | Self::WrongMethod
            | Self::TooLarge
            | Self::Broken => return None,
        })
    }
}

/// Counts outcomes, and logs all but [`CallbackOutcome::Stored`].
#[derive(Debug)]
pub(super) struct OutcomeCounters {
    outcomes: [(AtomicU64, LogThrottle); OUTCOMES.len()],
    /// When the last callback of each account was stored, or when this was created.
    stored: Mutex<HashMap<AccountName, Instant>>,
}

impl OutcomeCounters {
    pub(super) fn new(accounts: &[AccountName]) -> Self {
        let now = Instant::now();
        let stored = accounts.iter().map(|account| (account.clone(), now)).collect();
        for outcome in STARTED {
            for account in accounts {
                metrics().callbacks.start(&count_attributes(outcome, Some(account)));
            }
        }
        metrics().callbacks.start(&count_attributes(CallbackOutcome::UnknownPath, None));
        Self { outcomes: Default::default(), stored: Mutex::new(stored) }
    }

    pub(super) fn get(&self, outcome: CallbackOutcome) -> u64 {
        self.outcomes[outcome as usize].0.load(Ordering::Relaxed)
    }

    /// Returns for how long each account had no callback.
    pub(super) fn silences(&self) -> Vec<(AccountName, Duration)> {
        let stored = lock(&self.stored);
        stored.iter().map(|(account, at)| (account.clone(), at.elapsed())).collect()
    }

    /// Counts a request that began at this time. Its account is known only if its path named one.
    pub(super) fn count(
        &self,
        outcome: CallbackOutcome,
        account: Option<&AccountName>,
        began: Instant,
    ) {
        let (count, lines) = &self.outcomes[outcome as usize];
        count.fetch_add(1, Ordering::Relaxed);
        let named = attribute(names::OUTCOME, outcome.name());
        metrics().callback_duration.record(began.elapsed(), slice::from_ref(&named));
        metrics().callbacks.add(&count_attributes(outcome, account));
        if outcome == CallbackOutcome::Stored {
            if let Some(account) = account {
                lock(&self.stored).insert(account.clone(), Instant::now());
            }
            return;
        }
        let Some(times) = lines.count() else { return };
        let account = account.map(tracing::field::display);
        if let Some(warning) = outcome.warning() {
            warn!(account, times, "{warning}");
        } else {
            debug!(account, times, ?outcome, "refused requests to the callbacks' listener");
        }
    }
}

fn count_attributes(outcome: CallbackOutcome, account: Option<&AccountName>) -> Vec<KeyValue> {
    let account = account.map(|account| attribute(names::ACCOUNT, account.to_string()));
    account.into_iter().chain([attribute(names::OUTCOME, outcome.name())]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_place() {
        for (place, outcome) in CallbackOutcome::all().enumerate() {
            assert_eq!(outcome as usize, place);
        }
    }
}
