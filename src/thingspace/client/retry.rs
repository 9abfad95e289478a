//! The pauses before the retries of a failed call: at most two, growing and random.
//!
//! Whether a call may be retried is decided elsewhere: only calls without an effect, and calls that
//! were certainly not sent. Logins and token requests have a back-off of their own.

use std::time::Duration;

/// Attempts after the first.
const RETRIES: u32 = 2;

/// The pause is a random part of this (full jitter), which doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// If ThingSpace asks for a longer pause, the call fails.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The retries of one call.
#[derive(Debug, Default)]
pub(crate) struct Retries {
    made: u32,
}

impl Retries {
    /// Returns how long to wait before the next attempt, at least as long as ThingSpace `asked`
    /// for; `None`: there is none.
    pub(crate) fn next(&mut self, asked: Option<Duration>) -> Option<Duration> {
        self.pause(asked, fastrand::f64())
    }

    fn pause(&mut self, asked: Option<Duration>, roll: f64) -> Option<Duration> {
        let asked = asked.unwrap_or_default();
        if self.made == RETRIES || asked > LONGEST_PAUSE {
            return None;
        }
        let cap = FIRST_PAUSE * 2_u32.pow(self.made);
        self.made += 1;
        Some(asked + cap.mul_f64(roll))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn two_retries_with_full_jitter() {
        let table = [
            (0.0, Duration::ZERO, Duration::ZERO),
            (0.5, 125 * MS, 250 * MS),
            (1.0, 250 * MS, 500 * MS),
        ];
        for (roll, first, second) in table {
            let mut retries = Retries::default();
            assert_eq!(retries.pause(None, roll), Some(first));
            assert_eq!(retries.pause(None, roll), Some(second));
            assert_eq!(retries.pause(None, roll), None);
        }
    }

    #[test]
    fn a_requested_pause_is_kept_if_it_is_short() {
        let mut retries = Retries::default();
        assert_eq!(retries.pause(Some(LONGEST_PAUSE), 0.5), Some(LONGEST_PAUSE + 125 * MS));
        assert_eq!(retries.pause(Some(LONGEST_PAUSE + MS), 0.5), None);
    }
}
