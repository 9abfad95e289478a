//! The bounds of the quarantine, and which callbacks are evicted at a bound.
//!
//! A callback with the account's pair is *proved* to be ThingSpace's. Anyone who knows the URL can
//! send an *unproved* one. Therefore each account has a quota of unproved callbacks and a low rate
//! for them. Above the quota, the account's oldest unproved callback is evicted. If the whole
//! quarantine is full, unproved callbacks are evicted before proved ones. The newest callback is
//! never evicted.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::{MAX_BYTES, MAX_ENTRIES};
use crate::{identity::AccountName, lock::lock, proto::storage::QuarantineEntry};

/// The most unproved callbacks of an account.
const MAX_UNPROVED: usize = 50;

/// The most bytes of the bodies of an account's unproved callbacks.
const MAX_UNPROVED_BYTES: u64 = 1 << 20;

/// The most unproved callbacks of an account that a replica may add at once.
const UNPROVED_BURST: u32 = 50;

/// The time after which a replica may add one more unproved callback.
const UNPROVED_INTERVAL: Duration = Duration::from_mins(1);

/// The number of unproved callbacks of each account that may be added now.
#[derive(Debug, Default)]
pub(super) struct Allowances(Mutex<HashMap<AccountName, Allowance>>);

#[derive(Debug)]
struct Allowance {
    left: u32,
    refilled: Instant,
}

impl Allowances {
    /// Uses up one addition. Returns false if the account has none left.
    pub(super) fn take(&self, account: &AccountName) -> bool {
        self.take_at(account, Instant::now())
    }

    fn take_at(&self, account: &AccountName, now: Instant) -> bool {
        let mut allowances = lock(&self.0);
        let full = Allowance { left: UNPROVED_BURST, refilled: now };
        let allowance = allowances.entry(account.clone()).or_insert(full);
        while allowance.left < UNPROVED_BURST && now >= allowance.refilled + UNPROVED_INTERVAL {
            allowance.left += 1;
            allowance.refilled += UNPROVED_INTERVAL;
        }
        if allowance.left == UNPROVED_BURST {
            allowance.refilled = now;
        }
        let taken = allowance.left.checked_sub(1);
        allowance.left = taken.unwrap_or_default();
        taken.is_some()
    }
}

/// Removes and returns the entries that are evicted to make room for the last one.
pub(super) fn evict(entries: &mut Vec<QuarantineEntry>) -> Vec<QuarantineEntry> {
    let mut evicted = Vec::new();
    while let Some(oldest) = above_quota(entries) {
        evicted.push(entries.remove(oldest));
    }
    while let Some(index) = above_bounds(entries) {
        evicted.push(entries.remove(index));
    }
    evicted
}

/// Returns the oldest unproved callback of the last entry's account, if the account has too many.
fn above_quota(entries: &[QuarantineEntry]) -> Option<usize> {
    let newest = entries.last()?;
    let alike = |entry: &&QuarantineEntry| entry.unproved && entry.account == newest.account;
    let count = entries.iter().filter(alike).count();
    let bytes: u64 = entries.iter().filter(alike).map(size).sum();
    let oldest = entries.iter().position(|entry| alike(&entry))?;
    let too_many = count > MAX_UNPROVED || bytes > MAX_UNPROVED_BYTES;
    (too_many && oldest + 1 < entries.len()).then_some(oldest)
}

/// Returns the callback to evict if there are too many in total. Prefers unproved callbacks, then
/// those of the account with the most callbacks or bytes, then the oldest.
fn above_bounds(entries: &[QuarantineEntry]) -> Option<usize> {
    let (_newest, others) = entries.split_last()?;
    let too_large = entries.iter().map(size).sum::<u64>() > MAX_BYTES;
    if !too_large && entries.len() <= MAX_ENTRIES {
        return None;
    }
    let mut totals: HashMap<&str, u64> = HashMap::new();
    for entry in entries {
        *totals.entry(&entry.account).or_default() += if too_large { size(entry) } else { 1 };
    }
    let rank =
        |entry: &QuarantineEntry| (entry.unproved, totals.get(entry.account.as_str()).copied());
    let most = others.iter().map(rank).max()?;
    others.iter().position(|entry| rank(entry) == most)
}

fn size(entry: &QuarantineEntry) -> u64 {
    entry.size.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "0000123456-00001";
    const OTHER: &str = "0000123456-00002";

    fn entries(account: &str, number: usize, size: u32, unproved: bool) -> Vec<QuarantineEntry> {
        let entry = |n| QuarantineEntry {
            number: n,
            account: account.to_owned(),
            size,
            unproved,
            ..QuarantineEntry::default()
        };
        (1..).map(entry).take(number).collect()
    }

    /// Returns the account of each entry that `new` evicts, and whether it is unproved.
    fn evicted_by(mut entries: Vec<QuarantineEntry>, new: QuarantineEntry) -> Vec<(String, bool)> {
        entries.push(new);
        let evicted = evict(&mut entries).into_iter();
        evicted.map(|entry| (entry.account, entry.unproved)).collect()
    }

    fn new(account: &str, size: u32, unproved: bool) -> QuarantineEntry {
        entries(account, 1, size, unproved).remove(0)
    }

    #[test]
    fn number_and_size_are_bounded() {
        let proved = |number, size| entries(ONE, number, size, false);
        assert_eq!(evicted_by(proved(MAX_ENTRIES - 1, 1), new(ONE, 1, false)), []);
        assert_eq!(evicted_by(proved(MAX_ENTRIES, 1), new(ONE, 1, false)).len(), 1);
        assert_eq!(evicted_by(proved(19, 1 << 20), new(ONE, 1 << 20, false)).len(), 4);
        let mut full = proved(MAX_ENTRIES, 1);
        full.push(new(ONE, 1, false));
        let oldest = evict(&mut full).remove(0);
        assert_eq!((oldest.number, full.len()), (1, MAX_ENTRIES));
    }

    #[test]
    fn unproved_callbacks_are_evicted_first() {
        let mut held = entries(ONE, MAX_UNPROVED, 1, true);
        held.extend(entries(ONE, MAX_ENTRIES - MAX_UNPROVED - 10, 1, false));
        held.extend(entries(OTHER, 10, 1, true));
        let unproved = |account: &str| vec![(account.to_owned(), true)];
        assert_eq!(evicted_by(held.clone(), new(ONE, 1, true)), unproved(ONE));
        assert_eq!(evicted_by(held.clone(), new(OTHER, 1, true)), unproved(ONE));
        assert_eq!(evicted_by(held, new(OTHER, 1, false)), unproved(ONE));
        let large = entries(ONE, 10, 100 << 10, true);
        assert_eq!(evicted_by(large, new(ONE, 100 << 10, true)), unproved(ONE));
    }

    #[test]
    fn a_callback_of_the_account_with_most_is_evicted() {
        let mut held = entries(OTHER, 10, 1, false);
        held.extend(entries(ONE, MAX_ENTRIES - 10, 1, false));
        assert_eq!(evicted_by(held, new(OTHER, 1, false)), [(ONE.to_owned(), false)]);
    }

    #[test]
    fn unproved_callbacks_are_added_at_a_low_rate() {
        let (allowances, now) = (Allowances::default(), Instant::now());
        let account = |text| AccountName::parse(text).unwrap();
        let taken =
            |text, now| (0..100).filter(|_| allowances.take_at(&account(text), now)).count();
        let burst = UNPROVED_BURST as usize;
        assert_eq!((taken(ONE, now), taken(OTHER, now)), (burst, burst));
        assert_eq!(taken(ONE, now + UNPROVED_INTERVAL / 2), 0);
        assert_eq!(taken(ONE, now + UNPROVED_INTERVAL * 5 / 2), 2);
        assert_eq!(taken(ONE, now + UNPROVED_INTERVAL * 3), 1);
        assert_eq!(taken(ONE, now + UNPROVED_INTERVAL * 1_000), burst);
    }
}
