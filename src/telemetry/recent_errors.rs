//! How often calls ended with which reason in the last hour, for the page `/status`.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::lock::lock;

/// The time that is counted, in minutes.
const MINUTES: i64 = 60;

/// The most reasons that are counted. The gateway has fewer.
const MAX_REASONS: usize = 64;

static RECENT: Mutex<BTreeMap<String, ReasonCount>> = Mutex::new(BTreeMap::new());

/// The calls that ended with one reason.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RecentError {
    pub(crate) reason: String,
    /// In the last hour.
    pub(crate) calls: u64,
    pub(crate) last: Timestamp,
}

/// The calls of each minute, oldest first, without minutes that have none.
#[derive(Debug, Default)]
struct ReasonCount {
    minutes: VecDeque<(i64, u64)>,
    last: Timestamp,
}

/// Counts a call that ended with this reason.
pub(super) fn count(reason: &str) {
    let mut recent = lock(&RECENT);
    if !recent.contains_key(reason) {
        if recent.len() >= MAX_REASONS {
            return;
        }
        recent.insert(reason.to_owned(), ReasonCount::default());
    }
    if let Some(counted) = recent.get_mut(reason) {
        counted.add(Timestamp::now());
    }
}

/// Returns the reasons of the last hour, the most frequent first.
pub(crate) fn list() -> Vec<RecentError> {
    let now = Timestamp::now();
    let mut recent = lock(&RECENT);
    let mut listed: Vec<_> = recent
        .iter_mut()
        .map(|(reason, counted)| RecentError {
            reason: reason.clone(),
            calls: counted.since(now),
            last: counted.last,
        })
        .filter(|error| error.calls > 0)
        .collect();
    drop(recent);
    listed.sort_by(|a, b| (b.calls, &a.reason).cmp(&(a.calls, &b.reason)));
    listed
}

impl ReasonCount {
    fn add(&mut self, now: Timestamp) {
        self.last = now;
        let minute = now.as_second() / 60;
        match self.minutes.back_mut() {
            Some((last, calls)) if *last == minute => *calls += 1,
            _ => self.minutes.push_back((minute, 1)),
        }
        self.drop_old(now);
    }

    fn since(&mut self, now: Timestamp) -> u64 {
        self.drop_old(now);
        self.minutes.iter().map(|(_, calls)| calls).sum()
    }

    fn drop_old(&mut self, now: Timestamp) {
        let oldest = now.as_second() / 60 - MINUTES;
        while self.minutes.front().is_some_and(|(minute, _)| *minute <= oldest) {
            self.minutes.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_for_an_hour() {
        let at = |minute: i64| Timestamp::from_second(minute * 60 + 7).unwrap();
        let mut counted = ReasonCount::default();
        for minute in [0, 0, 30, 59] {
            counted.add(at(minute));
        }
        assert_eq!((counted.since(at(59)), counted.minutes.len()), (4, 3));
        assert_eq!(counted.since(at(60)), 2);
        assert_eq!(counted.since(at(118)), 1);
        assert_eq!((counted.since(at(119)), counted.minutes.len()), (0, 0));
    }
}
