//! What an operator's `unblock` permits.
//!
//! Each permission lets every secret be tried once more. Without `--force` the rejections so far
//! still count, up to the limit. With `--force` the operator states that they have logged in
//! elsewhere with the password in the file, which clears ThingSpace's count.
//!
//! The gateway cannot verify that statement. So the cleared count comes back if the next attempt is
//! not accepted, and the statement is believed only once: until a login of the user is accepted, a
//! second `--force` is refused, unless the operator takes the risk of a lock explicitly. A false
//! statement leads to one more rejection, hence to a lock only if ThingSpace had counted four.

use super::{ASSUMED, COUNT_LIMIT, GuardSettings, Observation, REJECTIONS_LIMIT, unknown};
use crate::proto::storage::Guard;

/// What an operator states with `unblock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnblockMode {
    /// Nothing.
    Retry,
    /// `--force`: they have logged in elsewhere.
    LoggedIn,
    /// `--force --risk-lock`: the same, although no login was accepted since the last `--force`.
    /// If it is not true, ThingSpace may lock the user.
    RiskLock,
}

/// Why `unblock` is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnblockRefusal {
    /// The next rejection may lock the user.
    LastAttempt,
    /// The password in the file was rejected after an operator had logged in elsewhere.
    PasswordRejected,
    /// No login was accepted since the last `--force`.
    ForceUsed,
}

/// Returns the guard after `unblock`; `None`: nothing is stopped. `fingerprint` is that of the
/// secret in the file.
pub(in crate::thingspace::login) fn unblocked(
    seen: &Observation,
    fingerprint: &[u8],
    mode: UnblockMode,
    settings: &GuardSettings,
) -> Result<Option<Guard>, UnblockRefusal> {
    let lost = seen.is_lost(settings);
    let Some(before) = seen.guard.clone().or_else(|| lost.then(unknown)) else { return Ok(None) };
    let at_limit = settings.locks && (lost || before.is_at_limit());
    let logged_in = mode != UnblockMode::Retry;
    if mode != UnblockMode::RiskLock {
        if before.candidate(fingerprint).is_some_and(|held| held.refuted) {
            return Err(UnblockRefusal::PasswordRejected);
        }
        if before.forced && (logged_in || at_limit) {
            return Err(UnblockRefusal::ForceUsed);
        }
        if at_limit && !logged_in {
            return Err(UnblockRefusal::LastAttempt);
        }
    }
    let mut guard = before.clone();
    if logged_in && (lost || guard.counted() > 0) {
        let cleared = guard.set_aside.max(if lost { COUNT_LIMIT } else { guard.counted() });
        guard.reset(ASSUMED);
        guard.set_aside = if settings.locks { cleared } else { 0 };
        guard.forced = settings.locks;
    }
    for candidate in &mut guard.candidates {
        candidate.strikes = candidate.strikes.min(REJECTIONS_LIMIT - 1);
        (candidate.misses, candidate.rejected) = (0, false);
    }
    if guard == before {
        Ok(None)
    } else if before.forced && !logged_in {
        Err(UnblockRefusal::ForceUsed)
    } else {
        Ok(Some(guard))
    }
}
