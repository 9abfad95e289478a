//! Merges what a process remembers, or an earlier release wrote, with what the store has.

use super::{COUNT_LIMIT, DERIVATION, GuardSettings, settled};
use crate::proto::storage::{Guard, GuardCandidate};

/// Returns the guard to store, or `None` if the store has lost nothing that this process remembers.
///
/// The store may also have lost attempts of other processes, which this one does not know. So the
/// guard of a user stops all logins until an operator has logged in elsewhere. The tokens are kept.
pub(in crate::thingspace::login) fn merged(
    held: Option<&Guard>,
    remembered: &Guard,
    settings: &GuardSettings,
) -> Option<Guard> {
    let mut guard = settled(remembered.clone(), settings);
    if let Some(held) = held {
        if (held.resets, held.counted()) >= (remembered.resets, remembered.counted()) {
            return None;
        }
        guard.attempt.clone_from(&held.attempt);
        for theirs in &held.candidates {
            let ours = guard.candidate(&theirs.fingerprint);
            let strikes = ours.map_or(0, |ours| ours.strikes).saturating_add(theirs.strikes);
            let newer = ours.filter(|ours| ours.generation > theirs.generation);
            let newer = newer.unwrap_or(theirs).clone();
            guard.put(GuardCandidate { strikes, ..newer });
        }
        // An operator may have used `--force` since.
        guard.forced |= held.forced;
        if !held.accepted_last.is_empty() {
            guard.accepted_last.clone_from(&held.accepted_last);
        }
    }
    if settings.locks {
        guard.rejections = guard.rejections.max(COUNT_LIMIT);
    }
    Some(guard)
}

/// Returns one guard in place of several of the same user; `None`: there is none. A damaged guard
/// is `None`. Then, and if the store `lost` guards, the count is at the limit.
pub(in crate::thingspace::login) fn strictest(
    guards: Vec<Option<Guard>>,
    lost: bool,
) -> Option<Guard> {
    if guards.is_empty() {
        return None;
    }
    let is_uncertain = lost || guards.contains(&None);
    let guards: Vec<_> = guards.into_iter().flatten().collect();
    let forced = guards.iter().any(|guard| guard.forced);
    let set_aside = guards.iter().map(|guard| guard.set_aside).max().unwrap_or_default();
    let strictest = guards.into_iter().max_by_key(Guard::counted).unwrap_or_default();
    let least = if is_uncertain { COUNT_LIMIT } else { 0 };
    let rejections = strictest.rejections.max(least);
    Some(Guard { forced, set_aside, rejections, ..strictest })
}

/// Returns the guard with a secret's present fingerprint in place of an earlier one.
pub(in crate::thingspace::login) fn renamed(mut guard: Guard, earlier: &[u8], now: &[u8]) -> Guard {
    if guard.accepted_last == earlier {
        guard.accepted_last = now.to_vec();
    }
    if let Some(attempt) = guard.attempt.as_mut().filter(|attempt| attempt.fingerprint == earlier) {
        attempt.fingerprint = now.to_vec();
    }
    if let Some(index) = guard.candidates.iter().position(|other| other.fingerprint == earlier) {
        let old = guard.candidates.remove(index);
        let new = guard.candidate(now).cloned();
        // A replica of an earlier release may have counted rejections in the old one meanwhile.
        let strikes = new.as_ref().map_or(0, |new| new.strikes).saturating_add(old.strikes);
        let newer = new.filter(|new| new.generation >= old.generation).unwrap_or(old);
        let fingerprint = now.to_vec();
        guard.put(GuardCandidate { fingerprint, strikes, derivation: DERIVATION, ..newer });
    }
    guard
}
