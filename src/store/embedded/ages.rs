//! Ages in running time.
//!
//! *Running time* is the time for which the store was open, by the monotonic clock. It is stored,
//! so that it continues after a restart. It does not grow while the gateway is stopped, and no wall
//! clock changes it. A *rung* is a running time with the last sequence and the last cell version at
//! that time. So an event existed at the time of the first rung whose sequence is not lower than
//! the event's, and the time since then is a lower bound of the event's age.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use redb::{ReadTransaction, ReadableTable as _, TableDefinition, TableError, WriteTransaction};

use super::tables::Tail;

/// The interval of stored rungs. After a crash the running time continues from the last one.
pub(super) const RUNG_EVERY: Duration = Duration::from_mins(10);

/// About the most rungs that are stored per retention period. If that is long, their interval is
/// longer than [`RUNG_EVERY`].
const MAX_STORED: u32 = 8_192;

/// The interval of the rungs that are only in memory, for what this process stored last.
const RECENT_EVERY: Duration = Duration::from_secs(1);

/// The most rungs in memory beside the stored ones: more than two [`RUNG_EVERY`] need.
const MAX_RECENT: usize = 4_096;

/// Running time (µs) to the last sequence and cell version at that time.
const RUNGS: TableDefinition<u64, (u64, u64)> = TableDefinition::new("rungs");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rung {
    /// Running time.
    at: Duration,
    pub(super) sequence: u64,
    pub(super) version: u64,
}

#[derive(Debug)]
pub(super) struct Ages {
    /// The running time when the store was opened.
    before: Duration,
    opened: Instant,
    stored: VecDeque<Rung>,
    recent: VecDeque<Rung>,
}

impl Ages {
    /// Reads the rungs of a file that was just opened. A file of an older gateway has none:
    /// everything in it counts as new.
    pub(super) fn load(txn: &ReadTransaction, tail: &Tail) -> Result<Self, redb::Error> {
        let mut stored = VecDeque::new();
        match txn.open_table(RUNGS) {
            Ok(rungs) => {
                for row in rungs.iter()? {
                    let (at, rung) = row?;
                    let (at, (sequence, version)) = (at.value(), rung.value());
                    stored.push_back(Rung { at: Duration::from_micros(at), sequence, version });
                }
            }
            Err(TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let before = stored.back().map_or(Duration::ZERO, |last| last.at);
        let mut ages = Self { before, opened: Instant::now(), stored, recent: VecDeque::new() };
        ages.note(tail);
        Ok(ages)
    }

    fn now(&self) -> Duration {
        Duration::from_micros(micros(self.before + self.opened.elapsed()))
    }

    fn rung(&self, tail: &Tail) -> Rung {
        Rung { at: self.now(), sequence: tail.sequence, version: tail.version }
    }

    /// Adds a rung for a commit.
    pub(super) fn note(&mut self, tail: &Tail) {
        let rung = self.rung(tail);
        let known = self.recent.back();
        if known.is_some_and(|last| (last.sequence, last.version) == (rung.sequence, rung.version))
        {
            return;
        }
        push(&mut self.recent, rung, RECENT_EVERY);
        let stored_to = self.stored.back().map_or(Duration::ZERO, |last| last.at);
        while self.recent.len() > 1
            && (self.recent.len() > MAX_RECENT
                || self.recent[0].at <= stored_to && self.recent[0].at + 2 * RUNG_EVERY < rung.at)
        {
            self.recent.pop_front();
        }
    }

    /// Returns a lower bound of an event's age.
    pub(super) fn age(&self, sequence: u64) -> Duration {
        let behind = |rungs: &VecDeque<Rung>| {
            rungs.get(rungs.partition_point(|rung| rung.sequence < sequence)).map(|rung| rung.at)
        };
        let first = [behind(&self.stored), behind(&self.recent)].into_iter().flatten().min();
        first.map_or(Duration::ZERO, |at| self.now().saturating_sub(at))
    }

    /// Returns the last rung that is older than a retention period. `None`: there is none.
    pub(super) fn older_than(&self, retention: Duration) -> Option<Rung> {
        let cutoff = self.now().checked_sub(retention)?;
        let last = |rungs: &VecDeque<Rung>| {
            let older = rungs.partition_point(|rung| rung.at <= cutoff);
            older.checked_sub(1).map(|last| rungs[last])
        };
        let older = [last(&self.stored), last(&self.recent)].into_iter().flatten();
        older.max_by_key(|rung| (rung.sequence, rung.version))
    }

    /// Writes a rung into the file, and removes those that are no longer needed. Returns the stored
    /// rungs, for [`Ages::stored`] after the commit.
    pub(super) fn store(
        &self,
        txn: &WriteTransaction,
        tail: &Tail,
        retention: Duration,
    ) -> Result<VecDeque<Rung>, redb::Error> {
        let rung = self.rung(tail);
        let mut stored = self.stored.clone();
        push(&mut stored, rung, RUNG_EVERY.max(retention / MAX_STORED));
        // The last rung older than the retention period is still needed for the sweep.
        let cutoff = rung.at.saturating_sub(retention);
        while stored.get(1).is_some_and(|second| second.at < cutoff) {
            stored.pop_front();
        }
        let mut table = txn.open_table(RUNGS)?;
        for old in self.stored.iter().filter(|old| !stored.contains(old)) {
            table.remove(micros(old.at))?;
        }
        table.insert(micros(rung.at), (rung.sequence, rung.version))?;
        Ok(stored)
    }

    pub(super) fn stored(&mut self, stored: VecDeque<Rung>) {
        self.stored = stored;
    }
}

/// Adds the latest rung. It replaces the last one if the one before that is near enough to it, or
/// if nothing was stored since the one before.
fn push(rungs: &mut VecDeque<Rung>, rung: Rung, spacing: Duration) {
    if let [.., before, last] = rungs.make_contiguous() {
        let idle = |one: &Rung| (one.sequence, one.version) == (rung.sequence, rung.version);
        if rung.at.saturating_sub(before.at) < spacing || idle(before) {
            *last = rung;
            return;
        }
    }
    rungs.push_back(rung);
}

fn micros(at: Duration) -> u64 {
    u64::try_from(at.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rung(at: u64, sequence: u64) -> Rung {
        Rung { at: Duration::from_secs(at), sequence, version: 0 }
    }

    #[test]
    fn idle_time_and_frequent_commits_add_few_rungs() {
        let mut rungs = VecDeque::new();
        for at in 0..10_000 {
            push(&mut rungs, rung(at, at), RUNG_EVERY);
        }
        assert!(rungs.len() <= 2 * 10_000 / 600 + 2, "{}", rungs.len());
        assert_eq!(rungs.back(), Some(&rung(9_999, 9_999)));
        let busy = rungs.len();
        for at in 10_000..20_000 {
            push(&mut rungs, rung(at, 9_999), Duration::from_secs(1));
        }
        assert!(rungs.len() <= busy + 2, "{}", rungs.len());
        assert_eq!(rungs.back(), Some(&rung(19_999, 9_999)));
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// No rung says that an event existed before it was stored.
        #[test]
        fn an_age_is_never_too_high(
            steps in proptest::collection::vec((0..30u64, 0..3u64), 1..200),
            spacing in 0..100u64,
        ) {
            let (mut now, mut last) = (0, 0);
            let (mut rungs, mut stored_at) = (VecDeque::new(), vec![0]);
            for (pause, events) in steps {
                now += pause;
                stored_at.extend((0..events).map(|_| now));
                last += events;
                push(&mut rungs, rung(now, last), Duration::from_secs(spacing));
                for (sequence, &stored_at) in (0..=last).zip(&stored_at) {
                    let first = rungs.iter().find(|rung| rung.sequence >= sequence);
                    let first = first.expect("the last rung has the last sequence");
                    prop_assert!(first.at >= Duration::from_secs(stored_at));
                }
            }
        }
    }
}
