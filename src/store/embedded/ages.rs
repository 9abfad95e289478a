//! How old an entry is, measured in the store's own time.
//!
//! *Running time* is the time during which the store was open, by the monotonic clock. It is
//! stored, so it continues after a restart. No wall clock can move it, and it stands still while
//! the gateway is stopped. A *rung* says that everything up to a sequence and a cell version
//! existed at a point in running time. The first rung behind an entry gives a lower bound of the
//! entry's age.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use redb::{ReadTransaction, ReadableTable as _, TableDefinition, TableError, WriteTransaction};

use super::tables::Tail;

/// How often a rung is stored. After a crash the running time continues from the last one.
pub(super) const RUNG_EVERY: Duration = Duration::from_mins(10);

/// About as many rungs are stored for one retention period; a longer one has wider rungs.
const MAX_STORED: u32 = 8_192;

/// How fine the rungs in memory are, which date what this process stored lately.
const RECENT_EVERY: Duration = Duration::from_secs(1);

/// The most rungs in memory beside the stored ones: more than two `RUNG_EVERY` need.
const MAX_RECENT: usize = 4_096;

/// Running time (µs) to the last sequence and the last cell version at that time. A gateway that
/// does not know this table ignores it.
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
    /// The ages of everything in a file that has just been opened. A file of an older gateway has
    /// no rungs: everything in it counts as new.
    pub(super) fn load(txn: &ReadTransaction, tail: &Tail) -> Result<Self, redb::Error> {
        let mut stored = VecDeque::new();
        match txn.open_table(RUNGS) {
            Ok(rungs) => {
                for row in rungs.iter()? {
                    let (at, rung) = row?;
                    let (sequence, version) = rung.value();
                    stored.push_back(Rung {
                        at: Duration::from_micros(at.value()),
                        sequence,
                        version,
                    });
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
        // In microseconds, as the table has it.
        let running = self.before + self.opened.elapsed();
        Duration::from_micros(u64::try_from(running.as_micros()).unwrap_or(u64::MAX))
    }

    fn rung(&self, tail: &Tail) -> Rung {
        Rung { at: self.now(), sequence: tail.sequence, version: tail.version }
    }

    /// Dates what was just committed.
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

    /// How old an event is at least.
    pub(super) fn age(&self, sequence: u64) -> Duration {
        let behind = |rungs: &VecDeque<Rung>| {
            rungs.get(rungs.partition_point(|rung| rung.sequence < sequence)).map(|rung| rung.at)
        };
        let first = [behind(&self.stored), behind(&self.recent)].into_iter().flatten().min();
        first.map_or(Duration::ZERO, |at| self.now().saturating_sub(at))
    }

    /// The last rung that is older than a retention period; `None`: nothing is as old.
    pub(super) fn older_than(&self, retention: Duration) -> Option<Rung> {
        let cutoff = self.now().checked_sub(retention)?;
        let last = |rungs: &VecDeque<Rung>| {
            let older = rungs.partition_point(|rung| rung.at <= cutoff);
            older.checked_sub(1).map(|last| rungs[last])
        };
        let older = [last(&self.stored), last(&self.recent)].into_iter().flatten();
        older.max_by_key(|rung| (rung.sequence, rung.version))
    }

    /// Puts a rung into the file, and removes those that are no longer needed. What it returns
    /// holds once the transaction is committed.
    pub(super) fn store(
        &self,
        txn: &WriteTransaction,
        tail: &Tail,
        retention: Duration,
    ) -> Result<VecDeque<Rung>, redb::Error> {
        let rung = self.rung(tail);
        let mut stored = self.stored.clone();
        push(&mut stored, rung, RUNG_EVERY.max(retention / MAX_STORED));
        // The last of those older than the retention period still dates what is about to be
        // removed.
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

/// Adds the latest rung. It takes the place of the last one where that is not needed: its
/// neighbours are close enough, or nothing happened in between.
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
    fn idle_time_and_frequent_rungs_do_not_make_the_ladder_longer() {
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
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// However rungs are thinned out, none claims an event earlier than it was stored.
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
                    let first = first.expect("the last rung is behind everything");
                    prop_assert!(first.at >= Duration::from_secs(stored_at));
                }
            }
        }
    }
}
