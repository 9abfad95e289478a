//! The random pauses before the retries of a failed call: at most two.
//!
//! `exchange` decides which calls may be retried: those without an effect, and those that were
//! certainly not sent. Logins and token requests have a back-off of their own.

use std::time::Duration;

/// Attempts after the first.
const RETRIES: u32 = 2;

/// The first pause is a random part of this, and the second one of twice this (full jitter).
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// If ThingSpace asks for a longer pause, the call fails.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The retries of one call.
#[derive(Debug, Default)]
pub(crate) struct Retries {
    count: u32,
}

impl Retries {
    /// Returns the pause before the next attempt, or `None` if there is none. It is not shorter
    /// than the pause that ThingSpace `asked` for.
    pub(crate) fn next(&mut self, asked: Option<Duration>) -> Option<Duration> {
        self.pause(asked, fastrand::f64())
    }

    fn pause(&mut self, asked: Option<Duration>, random: f64) -> Option<Duration> {
        let asked = asked.unwrap_or_default();
        if self.count == RETRIES || asked > LONGEST_PAUSE {
            return None;
        }
        let cap = FIRST_PAUSE * 2_u32.pow(self.count);
        self.count += 1;
        Some(asked + cap.mul_f64(random))
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
        for (random, first, second) in table {
            let mut retries = Retries::default();
            assert_eq!(retries.pause(None, random), Some(first));
            assert_eq!(retries.pause(None, random), Some(second));
            assert_eq!(retries.pause(None, random), None);
        }
    }

    #[test]
    fn a_requested_pause_is_kept_if_it_is_short() {
        let mut retries = Retries::default();
        assert_eq!(retries.pause(Some(LONGEST_PAUSE), 0.5), Some(LONGEST_PAUSE + 125 * MS));
        assert_eq!(retries.pause(Some(LONGEST_PAUSE + MS), 0.5), None);
    }
}
