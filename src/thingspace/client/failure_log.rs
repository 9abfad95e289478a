//! Logs failing calls: each kind of failure at once, then once a minute with the number of calls
//! that failed, and the end of the failures.
//!
//! So an outage costs one line a minute with any number of open requests. These lines do not say
//! which call failed: its caller logs that.

use std::{
    collections::HashMap,
    mem::{self, Discriminant},
    sync::Mutex,
};

use crate::{lock::lock, log_throttle::LogThrottle, thingspace::Error};

/// The failures of one set of credentials.
#[derive(Debug, Default)]
pub(super) struct FailureLog(Mutex<FailureLogState>);

#[derive(Debug, Default)]
struct FailureLogState {
    kinds: HashMap<Discriminant<Error>, LogThrottle>,
    /// A failure was logged, and its end was not.
    failing: bool,
}

impl FailureLog {
    pub(super) fn failed(&self, credentials: &str, error: &Error) {
        let Some(calls) = self.due(error) else { return };
        match error {
            Error::CredentialsRejected { .. } => tracing::error!(
                credentials,
                calls,
                "ThingSpace refuses calls, also with renewed tokens: check whether the user \
                 and the application may use the API"
            ),
            error => tracing::warn!(credentials, calls, "calls to ThingSpace fail: {error}"),
        }
    }

    pub(super) fn succeeded(&self, credentials: &str) {
        if mem::take(&mut lock(&self.0).failing) {
            tracing::info!(credentials, "calls to ThingSpace succeed again");
        }
    }

    /// Returns how many calls failed like this since the last line, if a line is due.
    fn due(&self, error: &Error) -> Option<u64> {
        let mut state = lock(&self.0);
        let calls = state.kinds.entry(mem::discriminant(error)).or_default().count()?;
        // A refusal concerns one request. Other calls may succeed meanwhile.
        state.failing |= !matches!(error, Error::Refused(_));
        Some(calls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_logged_at_once_and_not_again_soon() {
        let log = FailureLog::default();
        let broken =
            |reason: &str| Error::OutcomeUnknown { reason: reason.to_owned(), retry_after: None };
        assert_eq!(log.due(&broken("reset")), Some(1));
        assert_eq!(log.due(&broken("timeout")), None);
        assert_eq!(log.due(&Error::Throttled { retry_after: None }), Some(1));
        assert_eq!(log.due(&broken("reset")), None);
    }
}
