//! The rate of calls of one set of credentials, by the generic cell rate algorithm. Uses no clock.

use std::{num::NonZeroU32, time::Duration};

use tokio::time::Instant;

/// The number of calls that may begin at once after a pause.
pub(super) const BURST: u32 = 3;

/// Timers are late by up to a few milliseconds. Calls that became due meanwhile may begin at once.
/// This matters only if more than [`BURST`] calls become due in that time.
const TIMER_DELAY: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct Rate {
    pub(super) interval: Duration,
    /// The time from which the next call needs no burst.
    due: Instant,
}

impl Rate {
    pub(super) fn new(per_second: NonZeroU32, now: Instant) -> Self {
        Self { interval: Duration::from_secs(1) / per_second.get(), due: now }
    }

    pub(super) fn wait(&self, now: Instant) -> Duration {
        let ahead = (self.interval * BURST).max(TIMER_DELAY);
        (self.due.max(now) + self.interval).saturating_duration_since(now + ahead)
    }

    pub(super) fn take(&mut self, now: Instant) {
        self.due = self.due.max(now) + self.interval;
    }

    /// Returns a call's share that was not used.
    pub(super) fn give_back(&mut self) {
        self.due -= self.interval;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Begins calls after these pauses as soon as the rate allows. Returns when each began.
    fn taken(per_second: u32, pauses: &[u64]) -> Vec<Duration> {
        let began = Instant::now();
        let (mut rate, mut now) = (Rate::new(per_second.try_into().unwrap(), began), began);
        let mut taken = Vec::new();
        for pause in pauses {
            now += Duration::from_millis(*pause);
            while rate.wait(now).is_zero() {
                rate.take(now);
                taken.push(now - began);
            }
        }
        taken
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn no_second_has_more_than_the_rate_and_a_burst(
            per_second in 1_u32..200,
            pauses in proptest::collection::vec(0_u64..3_000, 1..100),
        ) {
            let taken = taken(per_second, &pauses);
            for (at, first) in taken.iter().enumerate() {
                let end = *first + Duration::from_secs(1);
                let within = taken[at..].iter().take_while(|time| **time < end);
                prop_assert!(within.count() <= (per_second + BURST) as usize);
            }
        }

        #[test]
        fn a_caller_that_never_pauses_gets_the_rate(
            per_second in 1_u32..10_000,
            seconds in 1_u32..10,
        ) {
            let steps = vec![5; 200 * seconds as usize];
            let expected = per_second * seconds;
            let taken = u32::try_from(taken(per_second, &steps).len()).unwrap();
            let most = expected + BURST + per_second / 50;
            prop_assert!(taken >= expected && taken <= most, "{taken}");
        }
    }
}
