//! Ages in running time.
//!
//! *Running time* is the time for which the store was open, by the monotonic clock. It is stored,
//! so it continues after a restart. A *sample* is a running time with the last sequence and the
//! last cell version at that time. An event is at least as old as the first sample whose sequence
//! is not lower than the event's.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use redb::{ReadTransaction, ReadableTable as _, TableDefinition, TableError, WriteTransaction};

use super::tables::Tail;

/// The interval of stored samples. After a crash the running time continues from the last one.
pub(super) const SAMPLE_EVERY: Duration = Duration::from_mins(10);

/// The approximate limit of stored samples per retention period. For a long period, their interval
/// is longer than [`SAMPLE_EVERY`].
const MAX_STORED: u32 = 8_192;

/// The interval of the samples that are only in memory.
const RECENT_EVERY: Duration = Duration::from_secs(1);

/// The most samples in memory beside the stored ones. It suffices for more than twice
/// [`SAMPLE_EVERY`].
const MAX_RECENT: usize = 4_096;

/// Samples: running time (µs) to sequence and cell version. The table in the file is named "rungs".
const SAMPLES: TableDefinition<u64, (u64, u64)> = TableDefinition::new("rungs");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
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
    stored: VecDeque<Sample>,
    recent: VecDeque<Sample>,
}

impl Ages {
    /// Reads the samples of a file that was just opened. A file of an older gateway has none:
    /// everything in it counts as new.
    pub(super) fn load(txn: &ReadTransaction, tail: &Tail) -> Result<Self, redb::Error> {
        let mut stored = VecDeque::new();
        match txn.open_table(SAMPLES) {
            Ok(samples) => {
                for row in samples.iter()? {
                    let (at, sample) = row?;
                    let (at, (sequence, version)) = (at.value(), sample.value());
                    stored.push_back(Sample { at: Duration::from_micros(at), sequence, version });
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

    fn sample(&self, tail: &Tail) -> Sample {
        Sample { at: self.now(), sequence: tail.sequence, version: tail.version }
    }

    /// Adds a sample for a commit.
    pub(super) fn note(&mut self, tail: &Tail) {
        let sample = self.sample(tail);
        let known = self.recent.back();
        if known
            .is_some_and(|last| (last.sequence, last.version) == (sample.sequence, sample.version))
        {
            return;
        }
        push(&mut self.recent, sample, RECENT_EVERY);
        let stored_to = self.stored.back().map_or(Duration::ZERO, |last| last.at);
        while self.recent.len() > 1
            && (self.recent.len() > MAX_RECENT
                || self.recent[0].at <= stored_to
                    && self.recent[0].at + 2 * SAMPLE_EVERY < sample.at)
        {
            self.recent.pop_front();
        }
    }

    /// Returns a lower bound of an event's age.
    pub(super) fn age(&self, sequence: u64) -> Duration {
        let first_covering = |samples: &VecDeque<Sample>| {
            samples
                .get(samples.partition_point(|sample| sample.sequence < sequence))
                .map(|sample| sample.at)
        };
        let first = [first_covering(&self.stored), first_covering(&self.recent)];
        first.into_iter().flatten().min().map_or(Duration::ZERO, |at| self.now().saturating_sub(at))
    }

    /// Returns the last sample that is older than a retention period. `None`: there is none.
    pub(super) fn older_than(&self, retention: Duration) -> Option<Sample> {
        let cutoff = self.now().checked_sub(retention)?;
        let last = |samples: &VecDeque<Sample>| {
            let older = samples.partition_point(|sample| sample.at <= cutoff);
            older.checked_sub(1).map(|last| samples[last])
        };
        let older = [last(&self.stored), last(&self.recent)].into_iter().flatten();
        older.max_by_key(|sample| (sample.sequence, sample.version))
    }

    /// Writes a sample into the file, and removes those that are no longer needed. Returns the
    /// stored samples, for [`Ages::stored`] after the commit.
    pub(super) fn store(
        &self,
        txn: &WriteTransaction,
        tail: &Tail,
        retention: Duration,
    ) -> Result<VecDeque<Sample>, redb::Error> {
        let sample = self.sample(tail);
        let mut stored = self.stored.clone();
        push(&mut stored, sample, SAMPLE_EVERY.max(retention / MAX_STORED));
        // The last sample older than the retention period is still needed for the sweep.
        let cutoff = sample.at.saturating_sub(retention);
        while stored.get(1).is_some_and(|second| second.at < cutoff) {
            stored.pop_front();
        }
        let mut table = txn.open_table(SAMPLES)?;
        for old in self.stored.iter().filter(|old| !stored.contains(old)) {
            table.remove(micros(old.at))?;
        }
        table.insert(micros(sample.at), (sample.sequence, sample.version))?;
        Ok(stored)
    }

    pub(super) fn stored(&mut self, stored: VecDeque<Sample>) {
        self.stored = stored;
    }
}

/// Adds a sample. It replaces the last one if the second to last one is less than `spacing` older,
/// or if nothing was stored since the second to last one.
fn push(samples: &mut VecDeque<Sample>, sample: Sample, spacing: Duration) {
    if let [.., before, last] = samples.make_contiguous() {
        let idle = |one: &Sample| (one.sequence, one.version) == (sample.sequence, sample.version);
        if sample.at.saturating_sub(before.at) < spacing || idle(before) {
            *last = sample;
            return;
        }
    }
    samples.push_back(sample);
}

fn micros(at: Duration) -> u64 {
    u64::try_from(at.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(at: u64, sequence: u64) -> Sample {
        Sample { at: Duration::from_secs(at), sequence, version: 0 }
    }

    #[test]
    fn idle_time_and_frequent_commits_add_few_samples() {
        let mut samples = VecDeque::new();
        for at in 0..10_000 {
            push(&mut samples, sample(at, at), SAMPLE_EVERY);
        }
        assert!(samples.len() <= 2 * 10_000 / 600 + 2, "{}", samples.len());
        assert_eq!(samples.back(), Some(&sample(9_999, 9_999)));
        let busy = samples.len();
        for at in 10_000..20_000 {
            push(&mut samples, sample(at, 9_999), Duration::from_secs(1));
        }
        assert!(samples.len() <= busy + 2, "{}", samples.len());
        assert_eq!(samples.back(), Some(&sample(19_999, 9_999)));
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// No sample says that an event existed before it was stored.
        #[test]
        fn an_age_is_never_too_high(
            steps in proptest::collection::vec((0..30u64, 0..3u64), 1..200),
            spacing in 0..100u64,
        ) {
            let (mut now, mut last) = (0, 0);
            let (mut samples, mut stored_at) = (VecDeque::new(), vec![0]);
            for (pause, events) in steps {
                now += pause;
                stored_at.extend((0..events).map(|_| now));
                last += events;
                push(&mut samples, sample(now, last), Duration::from_secs(spacing));
                for (sequence, &stored_at) in (0..=last).zip(&stored_at) {
                    let first = samples.iter().find(|sample| sample.sequence >= sequence);
                    let first = first.expect("the last sample has the last sequence");
                    prop_assert!(first.at >= Duration::from_secs(stored_at));
                }
            }
        }
    }
}
