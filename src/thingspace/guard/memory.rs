//! Guards that went back: what a process remembers, or an earlier release wrote, is brought together
//! with what the store holds.

use super::{DERIVATION, Terms, settled};
use crate::proto::storage::{Guard, GuardCandidate};

/// What is to be stored if the store has forgotten something that this process remembers; `None`:
/// it has not.
///
/// Other processes may have made attempts since, so the counts are added.
pub(in crate::thingspace) fn merged(
    held: Option<&Guard>,
    remembered: &Guard,
    terms: &Terms,
) -> Option<Guard> {
    let Some(held) = held else { return Some(settled(remembered.clone(), terms)) };
    if (held.resets, held.counted()) >= (remembered.resets, remembered.counted()) {
        return None;
    }
    let mut guard = settled(remembered.clone(), terms);
    guard.rejections = guard.rejections.saturating_add(held.rejections);
    guard.silences = guard.silences.saturating_add(held.silences);
    guard.attempt.clone_from(&held.attempt);
    for theirs in &held.candidates {
        let ours = guard.candidate(&theirs.fingerprint).cloned();
        let strikes = ours.as_ref().map_or(0, |ours| ours.strikes).saturating_add(theirs.strikes);
        let newer = ours.filter(|ours| ours.generation > theirs.generation);
        guard.put(GuardCandidate { strikes, ..newer.unwrap_or_else(|| theirs.clone()) });
    }
    if !held.accepted_last.is_empty() {
        guard.accepted_last.clone_from(&held.accepted_last);
    }
    Some(guard)
}

/// The same guard, with the fingerprint of a secret as it is derived now in place of an earlier one.
pub(in crate::thingspace) fn renamed(mut guard: Guard, earlier: &[u8], now: &[u8]) -> Guard {
    if guard.accepted_last == earlier {
        guard.accepted_last = now.to_vec();
    }
    if let Some(attempt) = guard.attempt.as_mut().filter(|attempt| attempt.fingerprint == earlier) {
        attempt.fingerprint = now.to_vec();
    }
    if let Some(index) = guard.candidates.iter().position(|of| of.fingerprint == earlier) {
        let old = guard.candidates.remove(index);
        let new = guard.candidate(now).cloned();
        // A replica of an earlier release may have added to it meanwhile.
        let strikes = new.as_ref().map_or(0, |new| new.strikes).saturating_add(old.strikes);
        let newer = new.filter(|new| new.generation >= old.generation).unwrap_or(old);
        let fingerprint = now.to_vec();
        guard.put(GuardCandidate { fingerprint, strikes, derivation: DERIVATION, ..newer });
    }
    guard
}
