//! Limits log lines that one caller or one bad minute could repeat thousands of times.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::lock::lock;

/// The least time between two lines of a kind.
const INTERVAL: Duration = Duration::from_mins(1);

/// One kind of log line. The first is due at once, later ones once a minute with a count.
#[derive(Debug, Default)]
pub(crate) struct LogThrottle(Mutex<LogThrottleState>);

#[derive(Debug, Default)]
struct LogThrottleState {
    logged: Option<Instant>,
    /// Events since the last line.
    unlogged: u64,
}

impl LogThrottle {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(LogThrottleState { logged: None, unlogged: 0 }))
    }

    /// Counts one event. Returns the number of events that a line has to report, if one is due.
    pub(crate) fn count(&self) -> Option<u64> {
        self.count_at(Instant::now())
    }

    fn count_at(&self, now: Instant) -> Option<u64> {
        let mut state = lock(&self.0);
        state.unlogged += 1;
        if state.logged.is_some_and(|logged| now < logged + INTERVAL) {
            return None;
        }
        state.logged = Some(now);
        Some(std::mem::take(&mut state.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_logged_at_once_and_the_others_are_counted() {
        let (kind, now) = (LogThrottle::new(), Instant::now());
        assert_eq!(kind.count_at(now), Some(1));
        for _ in 0..119_999 {
            assert_eq!(kind.count_at(now + INTERVAL / 2), None);
        }
        assert_eq!(kind.count_at(now + INTERVAL), Some(120_000));
        assert_eq!(kind.count_at(now + INTERVAL), None);
    }
}
