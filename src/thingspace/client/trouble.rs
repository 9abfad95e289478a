//! Failing calls, in the log: each kind at once, then once a minute with the number of calls it
//! cost, and its end.
//!
//! An outage costs a line a minute, however many requests are open. Who failed is told by whoever
//! asked.

use std::{
    collections::HashMap,
    mem::{self, Discriminant},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::thingspace::Error;

/// Between two lines of the same kind.
const SAY_EVERY: Duration = Duration::from_mins(1);

/// Of one set of credentials.
#[derive(Debug, Default)]
pub(crate) struct Trouble(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By kind of error: when it was said last, and how many calls failed since.
    kinds: HashMap<Discriminant<Error>, (Option<Instant>, u64)>,
    /// Its end is still to be said.
    open: bool,
}

impl Trouble {
    /// A call failed.
    pub(crate) fn failed(&self, credentials: &str, error: &Error) {
        let Some(calls) = self.due(error, Instant::now()) else { return };
        match error {
            Error::CredentialsRejected { .. } => {
                tracing::error!(
                    credentials,
                    calls,
                    "ThingSpace refuses calls, also with renewed tokens: see whether user and application may use the API"
                );
            }
            error => tracing::warn!(credentials, calls, "calls to ThingSpace fail: {error}"),
        }
    }

    /// A call succeeded.
    pub(crate) fn answered(&self, credentials: &str) {
        if mem::take(&mut self.lock().open) {
            tracing::info!(credentials, "ThingSpace answers");
        }
    }

    /// The calls that failed like this and were not told of yet, if it is time to tell.
    fn due(&self, error: &Error, now: Instant) -> Option<u64> {
        let state = &mut *self.lock();
        let (said, calls) = state.kinds.entry(mem::discriminant(error)).or_default();
        *calls += 1;
        if said.is_some_and(|said| now < said + SAY_EVERY) {
            return None;
        }
        // Others may be answered meanwhile: a refusal is about one request.
        state.open |= !matches!(error, Error::Refused(_));
        *said = Some(now);
        Some(mem::take(calls))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_told_at_once_and_then_once_a_minute() {
        let trouble = Trouble::default();
        let now = Instant::now();
        let broken =
            |reason: &str| Error::Ambiguous { reason: reason.to_owned(), retry_after: None };
        assert_eq!(trouble.due(&broken("reset"), now), Some(1));
        for _ in 0..1_000 {
            assert_eq!(trouble.due(&broken("timeout"), now), None);
        }
        assert_eq!(trouble.due(&Error::Throttled { retry_after: None }, now), Some(1));
        assert_eq!(trouble.due(&broken("reset"), now + SAY_EVERY), Some(1_001));
        assert_eq!(trouble.due(&broken("reset"), now + SAY_EVERY), None);
    }
}
