//! Limits log lines that could be repeated thousands of times in a minute.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::lock::lock;

/// The time for which lines are counted.
const INTERVAL: Duration = Duration::from_mins(1);

/// One kind of log line. The first events of a minute are logged at once, usually one. Later events
/// are counted, and the next line reports their number.
#[derive(Debug)]
pub(crate) struct LogThrottle {
    /// The most lines in a minute.
    lines: u32,
    state: Mutex<LogThrottleState>,
}

#[derive(Debug)]
struct LogThrottleState {
    /// When the first line of this minute was logged.
    began: Option<Instant>,
    /// The lines since then.
    lines: u32,
    /// Events since the last line.
    unlogged: u64,
}

impl Default for LogThrottle {
    fn default() -> Self {
        Self::new()
    }
}

impl LogThrottle {
    /// At most one line a minute.
    pub(crate) const fn new() -> Self {
        Self::with_lines(1)
    }

    /// At most so many lines a minute.
    pub(crate) const fn with_lines(lines: u32) -> Self {
        Self { lines, state: Mutex::new(LogThrottleState { began: None, lines: 0, unlogged: 0 }) }
    }

    /// Counts one event. Returns the number of events that a line has to report, if one is due.
    pub(crate) fn count(&self) -> Option<u64> {
        self.count_at(Instant::now())
    }

    /// Returns the number of events that no line has reported, for a last line.
    pub(crate) fn take(&self) -> u64 {
        std::mem::take(&mut lock(&self.state).unlogged)
    }

    fn count_at(&self, now: Instant) -> Option<u64> {
        let mut state = lock(&self.state);
        state.unlogged += 1;
        if state.began.is_none_or(|began| now >= began + INTERVAL) {
            state.began = Some(now);
            state.lines = 0;
        }
        if state.lines == self.lines {
            return None;
        }
        state.lines += 1;
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
        assert_eq!((kind.take(), kind.take()), (1, 0));
    }

    #[test]
    fn some_lines_a_minute_are_logged_at_once() {
        let (kind, now) = (LogThrottle::with_lines(2), Instant::now());
        let counted =
            [0, 1, 2, 3, 60, 61, 62].map(|at| kind.count_at(now + Duration::from_secs(at)));
        assert_eq!(counted, [Some(1), Some(1), None, None, Some(3), Some(1), None]);
    }
}
