//! The login guard: pure rules that decide whether a login or a token request may be sent.
//!
//! ThingSpace locks a user after five rejected logins in a row. An accepted login clears its count.
//! The gateway cannot read that count, so the guard keeps an upper bound of it in the store, for
//! all replicas and across restarts. The rules for logins:
//!
//! - Each attempt is claimed in the store before it is sent. A claim without a report counts as
//!   unanswered.
//! - A rejected attempt counts. An unanswered attempt counts too, because it may have been
//!   rejected. An attempt that ThingSpace certainly did not evaluate does not count.
//! - After four attempts that count, no login is sent, even with new files.
//! - A password is not used any more after two rejections, or after three attempts that were not
//!   accepted. The second attempt waits for `backoff_first`, the third for `backoff_max`.
//! - An accepted login clears everything. Time clears nothing, because ThingSpace does not forget
//!   rejections with time.
//! - An operator may permit single attempts up to the fourth that counts, or clear the count after
//!   a login elsewhere; see [`unblock`].
//! - A guard without a history assumes one rejection. If the store has lost guards, a missing guard
//!   counts as four.
//! - A replica that remembers more than the store writes that back ([`merged`]). The count is then
//!   four, because the store may have lost more than this replica knows.
//!
//! So logins resume without an operator while fewer than four attempts in a row failed and the file
//! contains a password that may still be used. The rules do not cover:
//!
//! - a right password after three unanswered attempts in a row, which needs an operator;
//! - a store that was replaced by an empty one without a trace while no replica was running, if
//!   ThingSpace had counted four rejections;
//! - rejected logins of the same user that other systems send.
//!
//! A token request cannot lock a user. It is delayed, twice as long after each failure up to
//! `backoff_max`, and never stopped. One rejection may be an error of ThingSpace, so callers are
//! told of a rejection only after the second one in a row.
//!
//! Uses no IO, clock, randomness or log. Time is measured by how long the observer has seen the
//! guard unchanged.

pub(super) mod answer;
mod counts;
mod memory;
mod unblock;

use std::time::Duration;

use crate::{
    backoff::doubled,
    proto::storage::{Guard, GuardAttempt, GuardCandidate},
};

pub(super) use self::{
    counts::{counted, rejections_left},
    memory::{merged, renamed, strictest},
    unblock::unblocked,
};

pub(crate) use self::unblock::{UnblockMode, UnblockRefusal};

/// How fingerprints are derived now; see `login::secrets`.
pub(super) const DERIVATION: u32 = 1;

/// Consecutive rejected logins after which ThingSpace locks the user.
pub(super) const LOCK: u32 = 5;

/// The number of counted attempts after which no login is sent.
pub(super) const COUNT_LIMIT: u32 = LOCK - 1;

/// Rejections after which a password is not used any more.
const REJECTIONS_LIMIT: u32 = 2;

/// Attempts in a row, rejected or unanswered, after which a password is not used any more.
const FAILURES_LIMIT: u32 = 3;

/// Rejections that a guard without a history assumes.
const ASSUMED: u32 = 1;

/// Passwords that a guard remembers. The count includes attempts with passwords it has forgotten.
const CANDIDATES: usize = 8;

/// The time without attempts after which an older password may be tried again. So replicas with old
/// and new files do not end each other's sessions.
const SUPERSEDED: Duration = Duration::from_mins(5);

#[derive(Debug, Clone, Copy)]
pub(super) struct GuardSettings {
    /// Rejections lock the user: true for logins, false for token requests.
    pub(super) locks: bool,
    /// The shortest time from a failed attempt to the next one with the same secret.
    pub(super) backoff_first: Duration,
    pub(super) backoff_max: Duration,
}

/// A guard as one replica sees it.
#[derive(Debug, Clone)]
pub(super) struct Observation {
    /// `None`: the store has none.
    pub(super) guard: Option<Guard>,
    /// The store has lost guards, or this one is damaged, so a missing guard proves nothing.
    pub(super) lost: bool,
    /// How long this replica has seen it unchanged.
    pub(super) unchanged: Duration,
    /// No other process can use the store.
    pub(super) exclusive: bool,
}

/// What a process that wants to make an attempt may do now.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum GuardDecision {
    /// Store this guard, then make the attempt and report it.
    Claim(Guard),
    /// The attempt in progress was never reported: store this guard, then decide again.
    Settle(Guard),
    /// Another attempt is in progress, for this long at most.
    Wait(Duration),
    /// The attempt is not allowed before this time has passed.
    Delay(Duration, Delay),
    Stopped(Stopped),
}

/// Why an attempt is delayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delay {
    /// The last attempt with this secret was rejected.
    Rejected,
    /// One token request was rejected, which may be an error of ThingSpace.
    RejectedOnce,
    /// The last attempt with this secret had no usable answer.
    Unanswered,
    /// A newer secret was accepted.
    Superseded,
}

/// Why no attempt may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopped {
    /// This password was rejected too often. A new store assumes one rejection.
    Rejected,
    /// This password had no usable answer too often.
    Unanswered,
    /// All attempts together failed too often.
    CountLimit,
    /// All attempts together failed too often after an operator had cleared the count.
    ForceUsed,
    /// The store has lost the guard.
    CountLost,
}

/// The outcome of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AttemptOutcome {
    Accepted {
        generation: u64,
        /// The token, sealed for this half of the credentials and for the other; `None` leaves the
        /// stored token.
        sealed: Option<[Vec<u8>; 2]>,
    },
    Rejected,
    /// It was sent and had no usable answer.
    Unanswered,
    /// It was not sent, or ThingSpace certainly did not evaluate it.
    NotEvaluated,
}

/// Returns what a process that wants to make this attempt may do.
pub(super) fn next(
    seen: &Observation,
    attempt: &GuardAttempt,
    settings: &GuardSettings,
) -> GuardDecision {
    if seen.is_lost(settings) {
        return GuardDecision::Stopped(Stopped::CountLost);
    }
    let mut guard = seen.guard.clone().unwrap_or_else(unknown);
    let fingerprint = &attempt.fingerprint;
    let candidate = guard.candidate(fingerprint).cloned().unwrap_or_else(|| GuardCandidate {
        strikes: if seen.guard.is_none() { ASSUMED } else { 0 },
        ..new_candidate(fingerprint)
    });
    let in_progress = guard.attempt.as_ref();
    if settings.locks {
        if in_progress.is_none() && guard.is_at_limit() {
            return GuardDecision::Stopped(guard.limit_reason());
        }
        // While an attempt with this password is in progress, its outcome is not known.
        let own = in_progress.is_some_and(|other| other.fingerprint == *fingerprint);
        if let Some(stopped) = candidate.stopped().filter(|_| !own) {
            return GuardDecision::Stopped(stopped);
        }
    }
    if let Some(other) = in_progress {
        let dead = seen.exclusive && other.incarnation != attempt.incarnation;
        let lease = Duration::from_millis(other.lease_ms.into());
        let left = lease.saturating_sub(seen.unchanged);
        if dead || left.is_zero() {
            return GuardDecision::Settle(settled(guard, settings));
        }
        return GuardDecision::Wait(left);
    }
    let superseded = guard.is_superseded(fingerprint) && !seen.exclusive;
    let delays =
        [superseded.then_some((SUPERSEDED, Delay::Superseded)), settings.backoff(&candidate)];
    for (delay, why) in delays.into_iter().flatten() {
        let left = delay.saturating_sub(seen.unchanged);
        if !left.is_zero() {
            return GuardDecision::Delay(left, why);
        }
    }
    guard.put(candidate);
    guard.attempt = Some(attempt.clone());
    GuardDecision::Claim(guard)
}

/// Returns the guard after the report of an attempt; `None`: there is nothing to store.
pub(super) fn report(
    held: Option<Guard>,
    attempt: &GuardAttempt,
    outcome: &AttemptOutcome,
    settings: &GuardSettings,
) -> Option<Guard> {
    let mut guard = held.unwrap_or_else(unknown);
    // If the report is late, another process has settled the attempt. A rejection may then count
    // twice, which is safe.
    let late = guard.attempt.as_ref().is_none_or(|in_progress| in_progress.id != attempt.id);
    if !late {
        guard.attempt = None;
    }
    let fingerprint = &attempt.fingerprint;
    let mut candidate =
        guard.candidate(fingerprint).cloned().unwrap_or_else(|| new_candidate(fingerprint));
    match outcome {
        AttemptOutcome::NotEvaluated | AttemptOutcome::Unanswered if late => return None,
        AttemptOutcome::NotEvaluated => {}
        AttemptOutcome::Unanswered => guard.count_unanswered(candidate, settings),
        AttemptOutcome::Rejected => {
            candidate.strikes = candidate.strikes.saturating_add(1);
            candidate.misses = candidate.misses.saturating_add(1);
            candidate.rejected = true;
            candidate.refuted |= guard.forced;
            guard.restore_count();
            guard.rejections = guard.rejections.saturating_add(1);
            guard.put(candidate);
        }
        AttemptOutcome::Accepted { generation, sealed } => {
            if !late {
                guard.reset(0);
                guard.forced = false;
            }
            if let Some([own, for_other_half]) = sealed {
                candidate.sealed.clone_from(own);
                candidate.sealed_for_other_half.clone_from(for_other_half);
                candidate.generation = *generation;
            }
            guard.accepted_last.clone_from(fingerprint);
            guard.put(GuardCandidate {
                strikes: 0,
                misses: 0,
                rejected: false,
                refuted: false,
                accepted: true,
                ..candidate
            });
        }
    }
    Some(guard)
}

/// Returns the guard without its attempt in progress, which counts as unanswered.
fn settled(mut guard: Guard, settings: &GuardSettings) -> Guard {
    if let Some(attempt) = guard.attempt.take() {
        let candidate = guard.candidate(&attempt.fingerprint).cloned();
        let candidate = candidate.unwrap_or_else(|| new_candidate(&attempt.fingerprint));
        guard.count_unanswered(candidate, settings);
    }
    guard
}

fn unknown() -> Guard {
    Guard { rejections: ASSUMED, ..Guard::default() }
}

fn new_candidate(fingerprint: &[u8]) -> GuardCandidate {
    GuardCandidate {
        fingerprint: fingerprint.to_vec(),
        derivation: DERIVATION,
        ..GuardCandidate::default()
    }
}

impl Observation {
    /// Returns whether the store has lost the guard of a user, so that its count is not known.
    fn is_lost(&self, settings: &GuardSettings) -> bool {
        self.guard.is_none() && self.lost && settings.locks
    }
}

impl Guard {
    pub(super) fn candidate(&self, fingerprint: &[u8]) -> Option<&GuardCandidate> {
        self.candidates.iter().find(|candidate| candidate.fingerprint == fingerprint)
    }

    /// Returns whether another secret was accepted after this one.
    pub(super) fn is_superseded(&self, fingerprint: &[u8]) -> bool {
        let candidate = self.candidate(fingerprint);
        candidate.is_some_and(|candidate| {
            candidate.accepted && self.accepted_last != candidate.fingerprint
        })
    }

    /// Returns the attempts that count. Earlier releases counted some of them as `silences`.
    fn counted(&self) -> u32 {
        self.rejections.saturating_add(self.silences)
    }

    fn is_at_limit(&self) -> bool {
        self.counted() >= COUNT_LIMIT
    }

    fn limit_reason(&self) -> Stopped {
        if self.forced { Stopped::ForceUsed } else { Stopped::CountLimit }
    }

    fn reset(&mut self, rejections: u32) {
        (self.rejections, self.silences, self.set_aside) = (rejections, 0, 0);
        self.resets = self.resets.saturating_add(1);
    }

    /// Restores the count that an operator cleared. An attempt was not accepted, so the login
    /// elsewhere may not have cleared ThingSpace's count.
    fn restore_count(&mut self) {
        self.rejections = self.rejections.max(std::mem::take(&mut self.set_aside));
    }

    /// Makes this the last candidate. If there are too many, removes the oldest one that was not
    /// accepted last.
    fn put(&mut self, candidate: GuardCandidate) {
        self.candidates.retain(|other| other.fingerprint != candidate.fingerprint);
        self.candidates.push(candidate);
        if self.candidates.len() > CANDIDATES {
            let kept = |other: &GuardCandidate| other.fingerprint == self.accepted_last;
            let first = self.candidates.iter().position(|other| !kept(other)).unwrap_or_default();
            self.candidates.remove(first);
        }
    }

    fn count_unanswered(&mut self, mut candidate: GuardCandidate, settings: &GuardSettings) {
        if !settings.locks {
            return;
        }
        candidate.misses = candidate.misses.saturating_add(1);
        candidate.rejected = false;
        self.restore_count();
        self.rejections = self.rejections.saturating_add(1);
        self.put(candidate);
    }
}

impl GuardCandidate {
    /// Returns why this password is not used any more, or `None` if it may be used.
    fn stopped(&self) -> Option<Stopped> {
        if self.strikes >= REJECTIONS_LIMIT {
            Some(Stopped::Rejected)
        } else {
            (self.misses >= FAILURES_LIMIT).then_some(Stopped::Unanswered)
        }
    }
}

impl GuardSettings {
    /// Returns how many rejections in a row may be an error of ThingSpace. For logins it is none,
    /// because another attempt to find out could lock the user.
    pub(super) fn unconfirmed_rejections(&self) -> u32 {
        u32::from(!self.locks)
    }

    /// Returns how long the next attempt has to wait after failed ones, and why.
    fn backoff(&self, candidate: &GuardCandidate) -> Option<(Duration, Delay)> {
        match candidate.misses {
            0 => None,
            misses if candidate.rejected => {
                let confirmed = misses > self.unconfirmed_rejections();
                let why = if confirmed { Delay::Rejected } else { Delay::RejectedOnce };
                Some((doubled(self.backoff_first, misses - 1, self.backoff_max), why))
            }
            1 => Some((self.backoff_first, Delay::Unanswered)),
            _ => Some((self.backoff_max, Delay::Unanswered)),
        }
    }
}

#[cfg(test)]
mod tests;
