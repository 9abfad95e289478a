//! Limits log lines that could be repeated thousands of times in a minute.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::lock::lock;

/// The minimum time between two lines of a kind.
const INTERVAL: Duration = Duration::from_mins(1);

/// One kind of log line. The first event is logged at once. Later events are counted and logged at
/// most once a minute.
#[derive(Debug, Default)]
pub(crate) struct LogThrottle(Mutex<LogThrottleState>);

#[derive(Debug, Default)]
struct LogThrottleState {
    /// When the last line was logged.
    last_line: Option<Instant>,
    /// Events since the last line.
    unlogged: u64,
}

impl LogThrottle {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(LogThrottleState { last_line: None, unlogged: 0 }))
    }

    /// Counts one event. Returns the number of events that a line has to report, if one is due.
    pub(crate) fn count(&self) -> Option<u64> {
        self.count_at(Instant::now())
    }

    fn count_at(&self, now: Instant) -> Option<u64> {
        let mut state = lock(&self.0);
        state.unlogged += 1;
        if state.last_line.is_some_and(|last_line| now < last_line + INTERVAL) {
            return None;
        }
        state.last_line = Some(now);
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
