//! Logs failing calls: each kind of failure at once, then once a minute with the number of calls
//! that failed, and the end of the failures.
//!
//! So an outage costs one line a minute, however many requests are open. Which call failed is
//! logged by its caller.

use std::{
    collections::HashMap,
    mem::{self, Discriminant},
    sync::Mutex,
    time::Duration,
};

use tokio::time::Instant;

use crate::{lock::lock, thingspace::Error};

/// Between two lines of the same kind.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// The failures of one set of credentials.
#[derive(Debug, Default)]
pub(super) struct FailureLog(Mutex<FailureLogState>);

#[derive(Debug, Default)]
struct FailureLogState {
    /// By kind of error: when it was logged last, and how many calls failed since.
    kinds: HashMap<Discriminant<Error>, (Option<Instant>, u64)>,
    /// Its end is not logged yet.
    failing: bool,
}

impl FailureLog {
    pub(super) fn failed(&self, credentials: &str, error: &Error) {
        let Some(calls) = self.due(error, Instant::now()) else { return };
        match error {
            Error::CredentialsRejected { .. } => tracing::error!(
                credentials,
                calls,
                "ThingSpace refuses calls, also with renewed tokens: see whether user and \
                 application may use the API"
            ),
            error => tracing::warn!(credentials, calls, "calls to ThingSpace fail: {error}"),
        }
    }

    pub(super) fn succeeded(&self, credentials: &str) {
        if mem::take(&mut lock(&self.0).failing) {
            tracing::info!(credentials, "ThingSpace answers");
        }
    }

    /// Returns how many calls failed like this since the last line, if a line is due.
    fn due(&self, error: &Error, now: Instant) -> Option<u64> {
        let state = &mut *lock(&self.0);
        let (logged, calls) = state.kinds.entry(mem::discriminant(error)).or_default();
        *calls += 1;
        if logged.is_some_and(|logged| now < logged + LOG_INTERVAL) {
            return None;
        }
        // A refusal is about one request: other calls may succeed meanwhile.
        state.failing |= !matches!(error, Error::Refused(_));
        *logged = Some(now);
        Some(mem::take(calls))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_logged_at_once_and_then_once_a_minute() {
        let log = FailureLog::default();
        let now = Instant::now();
        let broken =
            |reason: &str| Error::OutcomeUnknown { reason: reason.to_owned(), retry_after: None };
        assert_eq!(log.due(&broken("reset"), now), Some(1));
        for _ in 0..1_000 {
            assert_eq!(log.due(&broken("timeout"), now), None);
        }
        assert_eq!(log.due(&Error::Throttled { retry_after: None }, now), Some(1));
        assert_eq!(log.due(&broken("reset"), now + LOG_INTERVAL), Some(1_001));
        assert_eq!(log.due(&broken("reset"), now + LOG_INTERVAL), None);
    }
}
