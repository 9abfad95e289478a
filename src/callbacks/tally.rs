//! What became of the requests to the listener: counted, and told in the log, each outcome at once and then once a minute.
//!
//! The port is open to the world: what strangers send costs a line a minute, not a line each.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tracing::{debug, warn};

use super::Outcome;
use crate::identity::AccountName;

/// Between two lines about the same outcome.
const SAY_EVERY: Duration = Duration::from_mins(1);

const OUTCOMES: usize = Outcome::ALL.len();

#[derive(Debug, Default)]
pub(super) struct Tally {
    counts: [AtomicU64; OUTCOMES],
    /// By outcome: when it was told last, and the count then.
    told: Mutex<[Option<(Instant, u64)>; OUTCOMES]>,
}

impl Tally {
    pub(super) fn get(&self, outcome: Outcome) -> u64 {
        self.counts[outcome as usize].load(Ordering::Relaxed)
    }

    /// Counts, and tells if it is time. The account is the last one; it is not known where no path named it.
    pub(super) fn count(&self, outcome: Outcome, account: Option<&AccountName>) {
        self.counts[outcome as usize].fetch_add(1, Ordering::Relaxed);
        if outcome == Outcome::Stored {
            return;
        }
        let Some(times) = self.due(outcome, Instant::now()) else { return };
        let account = account.map(tracing::field::display);
        match outcome {
            Outcome::Stored => {}
            Outcome::Quarantined => {
                warn!(account, times, "callbacks that cannot be understood are in quarantine");
            }
            Outcome::WrongPair => {
                warn!(account, times, "callbacks with a wrong user name or password are refused");
            }
            Outcome::TooMany => warn!(account, times, "more callbacks at once than are taken"),
            Outcome::NotStored => warn!(account, times, "callbacks cannot be stored"),
            Outcome::UnknownPath | Outcome::WrongMethod | Outcome::TooLarge | Outcome::Broken => {
                debug!(account, times, ?outcome, "requests to the callbacks' listener are refused");
            }
        }
    }

    /// How often it happened since it was told last, if it is time to tell.
    fn due(&self, outcome: Outcome, now: Instant) -> Option<u64> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let told = &mut told[outcome as usize];
        let (time, before) = told.map_or((None, 0), |(time, before)| (Some(time), before));
        if time.is_some_and(|time| now < time + SAY_EVERY) {
            return None;
        }
        let count = self.get(outcome);
        *told = Some((now, count));
        Some(count - before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_is_told_at_once_and_then_once_a_minute() {
        let tally = Tally::default();
        let now = Instant::now();
        let happens = |outcome: Outcome, now| {
            tally.counts[outcome as usize].fetch_add(1, Ordering::Relaxed);
            tally.due(outcome, now)
        };
        assert_eq!(happens(Outcome::WrongPair, now), Some(1));
        assert_eq!(happens(Outcome::WrongPair, now), None);
        assert_eq!(happens(Outcome::NotStored, now), Some(1));
        assert_eq!(happens(Outcome::WrongPair, now + SAY_EVERY), Some(2));
        assert_eq!(happens(Outcome::WrongPair, now + SAY_EVERY), None);
        assert_eq!(tally.get(Outcome::WrongPair), 4);
    }

    #[test]
    fn every_outcome_has_its_place() {
        for (place, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, place);
        }
    }
}
