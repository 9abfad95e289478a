//! The rules that decide whether a login or a token request may be sent.
//!
//! ThingSpace locks a user after five rejected logins in a row, and an accepted login clears its
//! count. The gateway cannot read that count, so the guard keeps an upper bound of it in the store,
//! shared by all replicas and restarts. The rules for logins:
//!
//! - An attempt is claimed before it is sent. A claim that nobody reported counts as unanswered.
//! - A rejected attempt counts. An unanswered attempt counts too, because it may have been
//!   rejected. Only an attempt that ThingSpace certainly did not evaluate does not count.
//! - After four that count, nothing is sent any more, whatever the files hold.
//! - A password is given up after two rejections, or after three attempts that were not accepted:
//!   the second is made after `backoff_first`, the third after `backoff_max`.
//! - An accepted login clears everything. Time clears nothing, because ThingSpace does not forget
//!   rejections with time. An operator may grant single attempts up to the fourth that counts, and
//!   may clear the count after a login elsewhere ([`unblocked`]). If the next attempt is not
//!   accepted, the operator may have been mistaken, so the cleared count comes back. A password
//!   that was rejected then gets no further permission.
//! - An operator's statement is believed once: until a login of the user was accepted, another one
//!   is refused, unless the operator takes the risk of a lock explicitly ([`UnblockMode`]).
//! - A guard without history assumes one rejection. If the store is known to have lost guards, a
//!   missing guard counts as four.
//! - A replica that remembers more than the store does writes its memory back ([`merged`]). The
//!   count is four then, because the store may have forgotten more than this replica knows.
//!
//! So logins resume without a person as long as fewer than four attempts in a row went wrong and
//! the file holds a password that was not given up. What this leaves open:
//!
//! - a right password needs an operator after three unanswered attempts in a row;
//! - a store that was replaced by an empty one without a trace, while no replica was alive, and
//!   while ThingSpace had counted four rejections;
//! - rejected logins that somebody else makes with the same user.
//!
//! A token request locks nobody. It is delayed, twice as long after each failure up to
//! `backoff_max`, and never given up. One rejection may be ThingSpace's error, so only a second one
//! in a row is told to callers as a rejection.
//!
//! Pure: no IO, clock, randomness or log. Time is what an observer has seen pass.

pub(crate) mod answer;
mod memory;

use std::time::Duration;

use crate::proto::storage::{Guard, GuardAttempt, GuardCandidate};

pub(crate) use memory::{merged, renamed};

/// Of the cell.
pub(crate) const FORMAT: u32 = 1;

/// How fingerprints are derived now; see `session::secrets`.
pub(crate) const DERIVATION: u32 = 1;

/// Consecutive rejected logins after which ThingSpace locks the user.
pub(crate) const LOCK: u32 = 5;

/// Rejections after which a password is given up.
pub(crate) const STRIKES: u32 = 2;

/// Attempts in a row, rejected or unanswered, after which a password is given up.
const MISSES: u32 = 3;

/// Attempts that count after which nothing is tried any more.
pub(crate) const COUNTED: u32 = LOCK - 1;

/// Rejections that a guard without history assumes.
const ASSUMED: u32 = 1;

/// Passwords that are remembered. The sum also covers those that were forgotten.
const CANDIDATES: usize = 8;

/// How long an older password must see no other attempt before it is tried again, so that replicas
/// with old and new files do not end each other's sessions.
pub(crate) const SUPERSEDED: Duration = Duration::from_mins(5);

/// What is guarded, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// Rejections lock the user: true for logins, false for token requests.
    pub(crate) locks: bool,
    /// From a failed attempt to the next one with the same secret.
    pub(crate) backoff_first: Duration,
    pub(crate) backoff_max: Duration,
}

/// A guard as an observer sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look<'a> {
    /// `None`: the store has none.
    pub(crate) guard: Option<&'a Guard>,
    /// The store has lost guards, or holds a damaged one, so a missing guard proves nothing.
    pub(crate) lost: bool,
    /// How long the observer has seen it unchanged.
    pub(crate) unchanged: Duration,
    /// Every other incarnation is dead.
    pub(crate) exclusive: bool,
}

/// What may be done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// Store this; then make the attempt and report it.
    Claim(Guard),
    /// Store this and look again: the attempt under way was abandoned.
    Settle(Guard),
    /// Look again soon: another process makes an attempt.
    Wait,
    /// Nothing for so long.
    Later(Duration, Later),
    Stopped(Stopped),
}

/// Why not yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Later {
    /// The last attempt with it was rejected.
    Rejected,
    /// One token request with it was rejected, which may have been ThingSpace's error.
    RejectedOnce,
    /// The last attempt with it had no usable answer.
    Unanswered,
    /// Another secret was accepted after it.
    Superseded,
}

/// Why not any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// No attempt with this password is left: it was rejected. A new store assumes one rejection.
    Strikes,
    /// This password had no usable answer too often.
    Silences,
    /// All attempts together went wrong too often.
    Closed,
    /// The same, and no attempt was accepted since an operator cleared the count.
    ForcedInVain,
    /// The store has lost the guard.
    Lost,
}

/// The outcome of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    Accepted {
        generation: u64,
        /// `None` leaves the token that is stored.
        sealed: Option<Sealed>,
    },
    Rejected,
    /// It was sent and had no usable answer.
    Unanswered,
    /// It was not sent, or certainly not evaluated.
    Void,
}

/// A token, sealed for both halves of a set of credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) own: Vec<u8>,
    pub(crate) for_other_half: Vec<u8>,
}

/// What an operator states with `unblock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnblockMode {
    /// Nothing: the rejections so far go on counting.
    Retry,
    /// `--force`: the operator has logged in elsewhere, which clears ThingSpace's count.
    LoggedIn,
    /// `--force --risk-lock`: the same, although no login was accepted since the last time. If it
    /// is not true, ThingSpace may lock the user.
    RiskLock,
}

/// Why `unblock` permits nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnblockRefusal {
    /// The next rejection may lock the user.
    LastAttempt,
    /// The password in the file was rejected after an operator had logged in elsewhere.
    Refuted,
    /// No login was accepted since an operator cleared the count.
    AlreadyForced,
}

/// What may be done now by a process that wants to make this attempt.
pub(crate) fn next(look: Look<'_>, attempt: &GuardAttempt, terms: &Terms) -> Step {
    if look.guard.is_none() && look.lost && terms.locks {
        return Step::Stopped(Stopped::Lost);
    }
    let mut guard = look.guard.cloned().unwrap_or_else(unknown);
    let fingerprint = &attempt.fingerprint;
    let tried = guard.candidate(fingerprint).cloned().unwrap_or_else(|| GuardCandidate {
        strikes: if look.guard.is_none() { ASSUMED } else { 0 },
        ..candidate(fingerprint)
    });
    let under_way = guard.attempt.as_ref();
    if terms.locks && under_way.is_none() && guard.is_closed() {
        return Step::Stopped(if guard.forced { Stopped::ForcedInVain } else { Stopped::Closed });
    }
    let own = under_way.is_some_and(|other| other.fingerprint == *fingerprint);
    if let Some(stopped) = gives_up(&tried).filter(|_| terms.locks && !own) {
        return Step::Stopped(stopped);
    }
    if let Some(other) = under_way {
        let dead = look.exclusive && other.incarnation != attempt.incarnation;
        if dead || lease_left(look).is_zero() {
            return Step::Settle(settled(guard, terms));
        }
        return Step::Wait;
    }
    let waits = [
        (guard.is_superseded(fingerprint) && !look.exclusive)
            .then_some((SUPERSEDED, Later::Superseded)),
        terms.backoff(&tried),
    ];
    for (wait, why) in waits.into_iter().flatten() {
        let left = wait.saturating_sub(look.unchanged);
        if !left.is_zero() {
            return Step::Later(left, why);
        }
    }
    guard.put(tried);
    guard.attempt = Some(attempt.clone());
    Step::Claim(guard)
}

/// What a guard becomes by the report of an attempt; `None`: there is nothing to store.
pub(crate) fn report(
    held: Option<Guard>,
    attempt: &GuardAttempt,
    report: &Report,
    terms: &Terms,
) -> Option<Guard> {
    let mut guard = held.unwrap_or_else(unknown);
    // Another process has settled it already. It is better counted twice than not at all.
    let late = guard.attempt.as_ref().is_none_or(|under_way| under_way.id != attempt.id);
    if !late {
        guard.attempt = None;
    }
    let fingerprint = &attempt.fingerprint;
    let mut tried = guard.candidate(fingerprint).cloned().unwrap_or_else(|| candidate(fingerprint));
    match report {
        Report::Void | Report::Unanswered if late => return None,
        Report::Void => {}
        Report::Unanswered => guard.unanswered(tried, terms),
        Report::Rejected => {
            tried.strikes = tried.strikes.saturating_add(1);
            tried.misses = tried.misses.saturating_add(1);
            tried.rejected = true;
            tried.refuted |= guard.forced;
            guard.recall();
            guard.rejections = guard.rejections.saturating_add(1);
            guard.put(tried);
        }
        Report::Accepted { generation, sealed } => {
            if !late {
                guard.reset(0);
                guard.forced = false;
            }
            if let Some(Sealed { own, for_other_half }) = sealed {
                tried.sealed.clone_from(own);
                tried.sealed_for_other_half.clone_from(for_other_half);
                tried.generation = *generation;
            }
            guard.accepted_last.clone_from(fingerprint);
            guard.put(GuardCandidate {
                strikes: 0,
                misses: 0,
                rejected: false,
                refuted: false,
                accepted: true,
                ..tried
            });
        }
    }
    Some(guard)
}

/// The guard after `unblock`; `None`: nothing was in the way. `fingerprint` is that of the password
/// in the file, with which the operator has logged in elsewhere, if they state that.
///
/// Every secret may be tried once more. A refusal leaves the guard as it is.
pub(crate) fn unblocked(
    look: Look<'_>,
    fingerprint: &[u8],
    mode: UnblockMode,
    terms: &Terms,
) -> Result<Option<Guard>, UnblockRefusal> {
    let lost = look.guard.is_none() && look.lost && terms.locks;
    let Some(mut guard) = look.guard.cloned().or_else(|| lost.then(unknown)) else {
        return Ok(None);
    };
    let before = guard.clone();
    let logged_in = mode != UnblockMode::Retry;
    if mode != UnblockMode::RiskLock {
        if guard.candidate(fingerprint).is_some_and(|held| held.refuted) {
            return Err(UnblockRefusal::Refuted);
        }
        if guard.forced && (logged_in || guard.is_closed()) {
            return Err(UnblockRefusal::AlreadyForced);
        }
    }
    if terms.locks && (lost || guard.is_closed()) && !logged_in {
        return Err(UnblockRefusal::LastAttempt);
    }
    if logged_in && (lost || guard.counted() > 0) {
        let doubtful = guard.set_aside.max(if lost { COUNTED } else { guard.counted() });
        guard.reset(ASSUMED);
        guard.set_aside = if terms.locks { doubtful } else { 0 };
        guard.forced = terms.locks;
    }
    for candidate in &mut guard.candidates {
        candidate.strikes = candidate.strikes.min(STRIKES - 1);
        (candidate.misses, candidate.rejected) = (0, false);
    }
    if guard == before {
        Ok(None)
    } else if guard.forced && !logged_in {
        Err(UnblockRefusal::AlreadyForced)
    } else {
        Ok(Some(guard))
    }
}

/// After how long the attempt under way counts as unanswered.
pub(crate) fn lease_left(look: Look<'_>) -> Duration {
    let under_way = look.guard.and_then(|guard| guard.attempt.as_ref());
    let lease = under_way.map_or(0, |attempt| attempt.lease_ms);
    Duration::from_millis(lease.into()).saturating_sub(look.unchanged)
}

/// Rejections that ThingSpace may have counted so far.
pub(crate) fn counted(look: Look<'_>) -> u32 {
    match look.guard {
        Some(guard) => guard.counted().saturating_add(u32::from(guard.attempt.is_some())),
        None if look.lost => COUNTED,
        None => ASSUMED,
    }
}

/// Why this password is not tried any more.
fn gives_up(tried: &GuardCandidate) -> Option<Stopped> {
    if tried.strikes >= STRIKES {
        return Some(Stopped::Strikes);
    }
    (tried.misses >= MISSES).then_some(Stopped::Silences)
}

/// The attempt under way was abandoned.
fn settled(mut guard: Guard, terms: &Terms) -> Guard {
    if let Some(attempt) = guard.attempt.take() {
        let tried = guard.candidate(&attempt.fingerprint).cloned();
        guard.unanswered(tried.unwrap_or_else(|| candidate(&attempt.fingerprint)), terms);
    }
    guard
}

fn unknown() -> Guard {
    Guard { version: FORMAT, rejections: ASSUMED, ..Guard::default() }
}

fn candidate(fingerprint: &[u8]) -> GuardCandidate {
    GuardCandidate {
        fingerprint: fingerprint.to_vec(),
        derivation: DERIVATION,
        ..GuardCandidate::default()
    }
}

impl Guard {
    pub(crate) fn candidate(&self, fingerprint: &[u8]) -> Option<&GuardCandidate> {
        self.candidates.iter().find(|candidate| candidate.fingerprint == fingerprint)
    }

    /// Another secret was accepted after this one.
    pub(crate) fn is_superseded(&self, fingerprint: &[u8]) -> bool {
        let tried = self.candidate(fingerprint);
        tried.is_some_and(|tried| tried.accepted && self.accepted_last != tried.fingerprint)
    }

    /// Earlier releases counted some unanswered attempts as silences.
    fn counted(&self) -> u32 {
        self.rejections.saturating_add(self.silences)
    }

    /// Nothing may be tried any more.
    fn is_closed(&self) -> bool {
        self.counted() >= COUNTED
    }

    fn reset(&mut self, rejections: u32) {
        (self.rejections, self.silences, self.set_aside) = (rejections, 0, 0);
        self.resets = self.resets.saturating_add(1);
    }

    /// An attempt was not accepted, so the login elsewhere may not have cleared ThingSpace's count.
    fn recall(&mut self) {
        self.rejections = self.rejections.max(std::mem::take(&mut self.set_aside));
    }

    /// Makes it the last one. The oldest goes if there are too many, but not what was accepted
    /// last.
    fn put(&mut self, candidate: GuardCandidate) {
        self.candidates.retain(|other| other.fingerprint != candidate.fingerprint);
        self.candidates.push(candidate);
        if self.candidates.len() > CANDIDATES {
            let spared = |other: &GuardCandidate| other.fingerprint == self.accepted_last;
            let first = self.candidates.iter().position(|other| !spared(other)).unwrap_or_default();
            self.candidates.remove(first);
        }
    }

    fn unanswered(&mut self, mut tried: GuardCandidate, terms: &Terms) {
        if !terms.locks {
            return;
        }
        tried.misses = tried.misses.saturating_add(1);
        tried.rejected = false;
        self.recall();
        self.rejections = self.rejections.saturating_add(1);
        self.put(tried);
    }
}

impl Terms {
    /// Rejections in a row that may have been ThingSpace's error. It costs nothing to find out,
    /// unless rejections lock the user.
    pub(crate) fn unconfirmed(&self) -> u32 {
        u32::from(!self.locks)
    }

    /// How long the next attempt waits after those that failed.
    fn backoff(&self, tried: &GuardCandidate) -> Option<(Duration, Later)> {
        let doubled = |misses: u32| {
            let factor = 1 << misses.saturating_sub(1).min(16);
            self.backoff_first.saturating_mul(factor).min(self.backoff_max)
        };
        match tried.misses {
            0 => None,
            misses if tried.rejected => {
                let confirmed = misses > self.unconfirmed();
                let why = if confirmed { Later::Rejected } else { Later::RejectedOnce };
                Some((doubled(misses), why))
            }
            1 => Some((self.backoff_first, Later::Unanswered)),
            _ => Some((self.backoff_max, Later::Unanswered)),
        }
    }
}

#[cfg(test)]
mod tests;
