//! The rules by which ThingSpace is asked for a token, so that it never locks its user, which it does after five rejected
//! logins in a row.
//!
//! Guarantees: what is stored counts at least the rejections that ThingSpace counts, whatever credentials are tried in whatever
//! order by however many replicas, and stops at four. An attempt is claimed before it is made; of one that nobody reported, the
//! worst is believed. Only with what was accepted last time that would give up a right password because a process was
//! killed: such silences count as well, but do not stop anything on their own; they wait ever longer. What this leaves open is a
//! password that was changed, and four processes in a row that each live through the wait and then die in the moment between
//! a rejection and its report.
//!
//! Pure: no IO, clock, randomness or log. Time is what an observer has seen pass.

use std::time::Duration;

use crate::proto::storage::{Guard, GuardAttempt, GuardCandidate};

/// Of the cell.
pub(super) const FORMAT: u32 = 1;

/// Rejections after which something is never tried again.
pub(super) const STRIKES: u32 = 2;

/// Rejections since the last accepted attempt after which nothing is tried any more. ThingSpace locks at the next.
pub(super) const REJECTIONS: u32 = 4;

/// Silences that are counted: they stop everything only together with a rejection.
const SILENCES: u32 = REJECTIONS - 1;

/// Without a history, as many are taken for granted.
const UNKNOWN_REJECTIONS: u32 = 1;

/// What is remembered. The sum holds also for what was forgotten.
const CANDIDATES: usize = 8;

/// How long something that was accepted before something else must see no other try, lest replicas with old and with new files
/// take the session from each other.
pub(super) const SUPERSEDED: Duration = Duration::from_mins(5);

/// What is guarded, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// An attempt without a clear answer may have been a rejection that counts: a login's may, a token request locks nobody.
    pub(super) silence_counts: bool,
    /// From an attempt that failed to the next with the same; doubling to the other.
    pub(super) backoff_first: Duration,
    pub(super) backoff_max: Duration,
}

/// How a guard looks to an observer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look<'a> {
    /// `None`: there is no history.
    pub(super) guard: Option<&'a Guard>,
    /// How long the observer has seen it unchanged.
    pub(super) unchanged: Duration,
    /// Every other incarnation is dead.
    pub(super) exclusive: bool,
}

/// What may be done.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// Store this; then make the attempt and report it.
    Claim(Guard),
    /// Store this and look again: the attempt under way was given up by whoever made it.
    Settle(Guard),
    /// Look again soon: somebody else makes an attempt.
    Wait,
    /// Nothing for so long.
    Later(Duration, Later),
    Stopped(Stopped),
}

/// Why not yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Later {
    /// The last attempt with it was rejected.
    Rejected,
    /// The last attempt with it had no clear answer.
    Unanswered,
    /// Something else was accepted since it was.
    Superseded,
}

/// Why not any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopped {
    /// It has its strikes.
    Strikes,
    /// Everything has, together.
    Closed,
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Report {
    Accepted {
        generation: u64,
        /// The token; `None` leaves the one that is stored.
        sealed: Option<Vec<u8>>,
    },
    Rejected,
    /// It was sent, and nobody knows.
    Unanswered,
    /// It was not made, or what was tried was not looked at.
    Void,
}

/// What may be done, by whoever would make this attempt.
pub(super) fn next(look: Look<'_>, attempt: &GuardAttempt, terms: &Terms) -> Step {
    let guard = look.guard.cloned().unwrap_or_else(unknown);
    let begun = guard.candidate(&attempt.fingerprint).cloned().unwrap_or_else(|| GuardCandidate {
        strikes: if look.guard.is_none() { UNKNOWN_REJECTIONS } else { 0 },
        ..candidate(&attempt.fingerprint)
    });
    let under_way = guard.attempt.as_ref();
    if begun.strikes >= STRIKES && under_way.is_none_or(|other| other.fingerprint != attempt.fingerprint) {
        return Step::Stopped(Stopped::Strikes);
    }
    if let Some(other) = under_way {
        let dead = look.exclusive && other.incarnation != attempt.incarnation;
        if dead || look.unchanged >= Duration::from_millis(other.lease_ms.into()) {
            return Step::Settle(settled(guard, terms));
        }
        return Step::Wait;
    }
    if guard.is_closed() {
        return Step::Stopped(Stopped::Closed);
    }
    let superseded = begun.accepted && guard.accepted_last != begun.fingerprint && !look.exclusive;
    let waits = [
        (superseded, SUPERSEDED, Later::Superseded),
        (begun.misses > 0 && begun.rejected, terms.backoff(begun.misses), Later::Rejected),
        (begun.misses > 0, terms.backoff(begun.misses), Later::Unanswered),
    ];
    for (_, wait, why) in waits.into_iter().filter(|(applies, ..)| *applies) {
        let left = wait.saturating_sub(look.unchanged);
        if !left.is_zero() {
            return Step::Later(left, why);
        }
    }
    let mut guard = guard;
    guard.put(begun);
    guard.attempt = Some(attempt.clone());
    Step::Claim(guard)
}

/// What a guard becomes by a report of an attempt; `None`: there is nothing to store.
pub(super) fn report(
    held: Option<Guard>,
    attempt: &GuardAttempt,
    report: &Report,
    terms: &Terms,
) -> Option<Guard> {
    let mut guard = held.unwrap_or_else(unknown);
    // Not in time: somebody else has settled it. Rather count something twice than not at all.
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
            guard.rejections = guard.rejections.saturating_add(1);
            guard.put(tried);
        }
        Report::Accepted { generation, sealed } => {
            if !late {
                (guard.rejections, guard.silences) = (0, 0);
            }
            if let Some(sealed) = sealed {
                tried.sealed.clone_from(sealed);
                tried.generation = *generation;
            }
            let GuardCandidate { fingerprint, generation, sealed, .. } = tried;
            guard.accepted_last.clone_from(&fingerprint);
            guard.put(GuardCandidate { accepted: true, generation, sealed, ..candidate(&fingerprint) });
        }
    }
    Some(guard)
}

/// What an operator makes of a guard: everything may be tried once more. `None`: nothing was in the way.
///
/// The sum is forgotten only once it has stopped everything, when operators are told to log in elsewhere first, which clears
/// what ThingSpace has counted. Before that, nobody's patience with a wrong password locks the user.
pub(super) fn unblocked(mut guard: Guard) -> Option<Guard> {
    let before = guard.clone();
    if guard.is_closed() {
        (guard.rejections, guard.silences) = (UNKNOWN_REJECTIONS, 0);
    }
    for candidate in &mut guard.candidates {
        candidate.strikes = candidate.strikes.min(STRIKES - 1);
        (candidate.misses, candidate.rejected) = (0, false);
    }
    (guard != before).then_some(guard)
}

/// The attempt under way was given up.
fn settled(mut guard: Guard, terms: &Terms) -> Guard {
    if let Some(attempt) = guard.attempt.take() {
        let tried = guard.candidate(&attempt.fingerprint).cloned();
        guard.unanswered(tried.unwrap_or_else(|| candidate(&attempt.fingerprint)), terms);
    }
    guard
}

fn unknown() -> Guard {
    Guard { version: FORMAT, rejections: UNKNOWN_REJECTIONS, ..Guard::default() }
}

fn candidate(fingerprint: &[u8]) -> GuardCandidate {
    GuardCandidate { fingerprint: fingerprint.to_vec(), ..GuardCandidate::default() }
}

impl Guard {
    pub(super) fn candidate(&self, fingerprint: &[u8]) -> Option<&GuardCandidate> {
        self.candidates.iter().find(|candidate| candidate.fingerprint == fingerprint)
    }

    /// Nothing may be tried any more.
    fn is_closed(&self) -> bool {
        self.rejections.saturating_add(self.silences) >= REJECTIONS
    }

    /// Makes it the last one. The first goes where there are too many, but not what was accepted last.
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
        if !terms.silence_counts {
            return;
        }
        tried.misses = tried.misses.saturating_add(1);
        tried.rejected = false;
        // Once it was rejected, what it was before says nothing any more.
        if tried.strikes == 0 && tried.fingerprint == self.accepted_last {
            self.silences = self.silences.saturating_add(1).min(SILENCES);
        } else {
            tried.strikes = tried.strikes.saturating_add(1);
            self.rejections = self.rejections.saturating_add(1);
        }
        self.put(tried);
    }
}

impl Terms {
    fn backoff(&self, misses: u32) -> Duration {
        self.backoff_first.saturating_mul(1 << misses.saturating_sub(1).min(16)).min(self.backoff_max)
    }
}

#[cfg(test)]
mod tests;
