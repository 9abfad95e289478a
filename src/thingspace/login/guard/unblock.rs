//! What an operator's `unblock` permits.
//!
//! Every `unblock` lets each secret be tried again. Without `--force`, earlier rejections still
//! count, up to the limit. With `--force`, the operator states that they have logged in elsewhere
//! with the password in the file. Such a login clears ThingSpace's count, so the guard clears its
//! own.
//!
//! The gateway cannot verify that statement. So the cleared count comes back if the next attempt is
//! not accepted. A second `--force` is refused until a login of the user is accepted, unless the
//! operator adds `--risk-lock`. A false statement leads to one more rejection. It locks the user
//! only if ThingSpace had counted four.

use super::{ASSUMED, COUNT_LIMIT, GuardSettings, Observation, REJECTIONS_LIMIT, unknown};
use crate::proto::storage::Guard;

/// What an operator states with `unblock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnblockMode {
    /// Without options: nothing.
    Retry,
    /// `--force`: a login elsewhere was accepted.
    LoggedIn,
    /// `--force --risk-lock`: the same, although no login was accepted since the last `--force`. If
    /// the statement is false, ThingSpace may lock the user.
    RiskLock,
}

/// Why `unblock` is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnblockRefusal {
    /// The next rejection may lock the user.
    LastAttempt,
    /// The password in the file was rejected after an earlier `--force`.
    PasswordRejected,
    /// No login was accepted since the last `--force`.
    ForceUsed,
}

/// Returns the guard after `unblock`, or `None` if `unblock` changes nothing. `fingerprint` is that
/// of the secret in the file.
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
