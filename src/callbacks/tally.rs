//! What became of the requests to the listener: counted, and told in the log, each outcome at once
//! and then once a minute.
//!
//! The port is open to the world: what strangers send costs a line a minute, not a line each.

use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{debug, warn};

use super::Outcome;
use crate::{identity::AccountName, log_throttle::LogThrottle};

const OUTCOMES: usize = Outcome::ALL.len();

#[derive(Debug, Default)]
pub(super) struct Tally {
    counts: [AtomicU64; OUTCOMES],
    /// By outcome.
    lines: [LogThrottle; OUTCOMES],
}

impl Tally {
    pub(super) fn get(&self, outcome: Outcome) -> u64 {
        self.counts[outcome as usize].load(Ordering::Relaxed)
    }

    /// Counts, and tells if it is time. The account is the last one; it is not known where no path
    /// named it.
    pub(super) fn count(&self, outcome: Outcome, account: Option<&AccountName>) {
        self.counts[outcome as usize].fetch_add(1, Ordering::Relaxed);
        if outcome == Outcome::Stored {
            return;
        }
        let Some(times) = self.lines[outcome as usize].count() else { return };
        let account = account.map(tracing::field::display);
        match outcome {
            Outcome::Stored => {}
            Outcome::Quarantined => {
                warn!(account, times, "callbacks that cannot be understood are in quarantine");
            }
            Outcome::WrongPair => {
                warn!(account, times, "callbacks with a wrong user name or password are refused");
            }
            Outcome::NotKept => {
                warn!(
                    account,
                    times, "callbacks that cannot be understood and show no password are refused"
                );
            }
            Outcome::TooMany => warn!(account, times, "more callbacks at once than are taken"),
            Outcome::TooSlow => {
                warn!(
                    account,
                    times, "callbacks are given up because their bodies arrive too slowly"
                );
            }
            Outcome::NotStored => warn!(account, times, "callbacks cannot be stored"),
            Outcome::UnknownPath | Outcome::WrongMethod | Outcome::TooLarge | Outcome::Broken => {
                debug!(account, times, ?outcome, "requests to the callbacks' listener are refused");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_place() {
        for (place, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, place);
        }
    }
}
