//! What a guard says to operators: what counts so far, and what is left.

use super::{ASSUMED, COUNT_LIMIT, FAILURES_LIMIT, Observation, REJECTIONS_LIMIT};

/// Returns the rejections that ThingSpace may have counted so far.
pub(in crate::thingspace::login) fn counted(seen: &Observation) -> u32 {
    match &seen.guard {
        Some(guard) => guard.counted().saturating_add(u32::from(guard.attempt.is_some())),
        None if seen.lost => COUNT_LIMIT,
        None => ASSUMED,
    }
}

/// Returns how many logins with this password ThingSpace may still reject before no login is sent.
/// 0: logins are stopped.
pub(in crate::thingspace::login) fn rejections_left(seen: &Observation, fingerprint: &[u8]) -> u32 {
    let (strikes, misses) = match &seen.guard {
        Some(guard) => {
            guard.candidate(fingerprint).map_or((0, 0), |held| (held.strikes, held.misses))
        }
        None => (ASSUMED, 0),
    };
    let of_password = REJECTIONS_LIMIT.saturating_sub(strikes);
    let of_password = of_password.min(FAILURES_LIMIT.saturating_sub(misses));
    COUNT_LIMIT.saturating_sub(counted(seen)).min(of_password)
}
