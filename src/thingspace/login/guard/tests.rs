mod memory;
mod properties;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Long enough for everything but a superseded one.
const LONG: Duration = Duration::from_mins(4);

fn terms() -> Terms {
    Terms { locks: true, backoff_first: SECOND * 5, backoff_max: SECOND * 60 }
}

/// An attempt with a password, by a process.
fn by(process: &str, password: u8) -> GuardAttempt {
    GuardAttempt {
        fingerprint: vec![password],
        id: format!("{process} {password}"),
        incarnation: process.to_owned(),
        lease_ms: 60_000,
    }
}

fn look(guard: Option<&Guard>, unchanged: Duration) -> Look<'_> {
    Look { guard, lost: false, unchanged, exclusive: false }
}

fn accepted() -> Report {
    Report::Accepted { generation: 1, sealed: Some(sealed(1)) }
}

fn sealed(byte: u8) -> Sealed {
    Sealed { own: vec![byte], for_other_half: vec![byte, byte] }
}

/// What is done to a guard, and what comes of it.
#[derive(Default)]
struct Told {
    guard: Option<Guard>,
}

impl Told {
    fn next(&self, unchanged: Duration, attempt: &GuardAttempt) -> Step {
        next(look(self.guard.as_ref(), unchanged), attempt, &terms())
    }

    /// An attempt by the one process there is, after a long wait.
    #[track_caller]
    fn claim(&mut self, password: u8) -> GuardAttempt {
        let attempt = by("a", password);
        match self.next(LONG, &attempt) {
            Step::Claim(guard) => self.guard = Some(guard),
            other => panic!("{other:?}: {:?}", self.guard),
        }
        attempt
    }

    #[track_caller]
    fn attempt(&mut self, password: u8, outcome: &Report) -> &mut Self {
        let attempt = self.claim(password);
        self.guard = report(self.guard.take(), &attempt, outcome, &terms());
        self
    }

    /// The process dies, and the lease runs out.
    #[track_caller]
    fn killed(&mut self, password: u8) -> &mut Self {
        self.claim(password);
        match self.next(LONG, &by("b", password)) {
            Step::Settle(guard) => self.guard = Some(guard),
            other => panic!("{other:?}"),
        }
        self
    }

    #[track_caller]
    fn stopped(&self, password: u8, why: Stopped) -> &Self {
        assert_eq!(self.next(LONG, &by("a", password)), Step::Stopped(why), "{:?}", self.guard);
        self
    }

    /// An operator permits one more try.
    #[track_caller]
    fn unblock(&mut self, mode: UnblockMode) -> &mut Self {
        match self.unblocked(1, mode) {
            Ok(Some(guard)) => self.guard = Some(guard),
            other => panic!("{other:?}: {:?}", self.guard),
        }
        self
    }

    fn unblocked(&self, held: u8, mode: UnblockMode) -> Result<Option<Guard>, UnblockRefusal> {
        unblocked(look(self.guard.as_ref(), LONG), &[held], mode, &terms())
    }

    /// What an operator asks for is refused, whatever the file holds.
    #[track_caller]
    fn refused(&self, mode: UnblockMode, why: UnblockRefusal) -> &Self {
        for held in 0..5 {
            assert_eq!(self.unblocked(held, mode), Err(why), "{held}: {:?}", self.guard);
        }
        self
    }

    fn rejections(&self) -> u32 {
        self.guard.as_ref().unwrap().rejections
    }
}

/// One that knows nothing but that password 0 was right.
fn known() -> Told {
    let mut told = Told::default();
    told.attempt(0, &accepted());
    told
}

#[test]
fn without_a_history_one_rejection_is_the_last() {
    let mut told = Told::default();
    told.attempt(1, &Report::Rejected).stopped(1, Stopped::Strikes);
    // Another password has two tries, and then there were four.
    told.attempt(2, &Report::Rejected).attempt(2, &Report::Rejected).stopped(2, Stopped::Closed);
    told.stopped(3, Stopped::Closed).stopped(1, Stopped::Closed);
}

#[test]
fn two_strikes_each_and_four_in_all() {
    let mut told = known();
    told.attempt(1, &Report::Rejected).attempt(1, &Report::Rejected).stopped(1, Stopped::Strikes);
    told.attempt(2, &Report::Rejected).attempt(0, &Report::Rejected).stopped(3, Stopped::Closed);
    assert_eq!(told.rejections(), COUNTED);
}

#[test]
fn what_is_accepted_clears_the_sum_and_its_own_strikes_alone() {
    let mut told = known();
    told.attempt(1, &Report::Rejected).attempt(1, &Report::Rejected).attempt(0, &Report::Rejected);
    told.attempt(0, &accepted()).stopped(1, Stopped::Strikes);
    assert_eq!(told.rejections(), 0);
    told.attempt(0, &Report::Rejected).attempt(0, &Report::Rejected).stopped(0, Stopped::Strikes);
}

#[test]
fn what_was_not_looked_at_does_not_count() {
    let mut told = Told::default();
    for _ in 0..10 {
        told.attempt(1, &Report::Void);
    }
    assert_eq!((told.rejections(), told.guard.as_ref().unwrap().candidates[0].strikes), (1, 1));
}

#[test]
fn a_password_that_was_never_accepted_has_three_attempts_without_an_answer() {
    let mut told = known();
    told.killed(1).attempt(1, &Report::Unanswered);
    assert!(matches!(told.next(LONG, &by("a", 1)), Step::Claim(_)));
    told.killed(1).stopped(1, Stopped::Silences);
    assert_eq!(told.rejections(), 3);
    let mut told = known();
    told.attempt(1, &Report::Rejected).killed(1).killed(1).stopped(1, Stopped::Silences);
}

/// A first login that meets an outage is repeated, although a first rejection is not.
#[test]
fn without_a_history_unanswered_attempts_are_made_up_to_the_fourth_that_counts() {
    let mut told = Told::default();
    told.attempt(1, &Report::Unanswered);
    assert_eq!(told.next(SECOND, &by("a", 1)), Step::Later(SECOND * 4, Later::Unanswered));
    told.killed(1).killed(1).stopped(1, Stopped::Closed);
    assert_eq!(told.rejections(), COUNTED);
    let mut told = Told::default();
    told.killed(1).attempt(1, &Report::Rejected).stopped(1, Stopped::Strikes);
}

#[test]
fn what_was_accepted_last_has_three_attempts_without_an_answer() {
    let mut told = known();
    for (unanswered, delay) in [(1, SECOND * 5), (2, SECOND * 60)] {
        told.killed(0);
        let waits = |unchanged| told.next(unchanged, &by("a", 0));
        assert_eq!(waits(Duration::ZERO), Step::Later(delay, Later::Unanswered));
        assert_eq!(waits(delay.saturating_sub(SECOND)), Step::Later(SECOND, Later::Unanswered));
        assert!(matches!(waits(delay), Step::Claim(_)));
        assert_eq!(told.rejections(), unanswered);
    }
    told.attempt(0, &Report::Unanswered).stopped(0, Stopped::Silences);
    // A new password may still be tried, once.
    assert!(matches!(told.next(Duration::ZERO, &by("a", 1)), Step::Claim(_)));
    told.attempt(1, &Report::Rejected).stopped(2, Stopped::Closed).stopped(0, Stopped::Closed);
}

#[test]
fn unanswered_attempts_and_rejections_count_together() {
    let mut told = known();
    told.attempt(1, &Report::Rejected).attempt(1, &Report::Rejected).attempt(2, &Report::Rejected);
    told.killed(0).stopped(0, Stopped::Closed);
    let mut told = known();
    told.killed(0).attempt(0, &Report::Rejected);
    // Once it was rejected, it counts like a password that was never accepted.
    told.killed(0).stopped(0, Stopped::Silences);
    assert_eq!(told.rejections(), 3);
}

#[test]
fn an_accepted_attempt_clears_unanswered_ones() {
    let mut told = known();
    for _ in 0..10 {
        told.killed(0).killed(0).attempt(0, &accepted());
        assert_eq!(told.rejections(), 0);
    }
}

#[test]
fn a_rejection_delays_the_second_try() {
    let mut told = known();
    told.attempt(0, &Report::Rejected);
    assert_eq!(told.next(SECOND, &by("b", 0)), Step::Later(SECOND * 4, Later::Rejected));
    assert!(matches!(told.next(SECOND, &by("b", 1)), Step::Claim(_)));
}

#[test]
fn one_attempt_at_a_time_until_its_lease_runs_out() {
    let mut told = known();
    told.claim(0);
    let lease = Duration::from_mins(1);
    for (process, password) in [("b", 0), ("b", 1), ("a", 0)] {
        assert_eq!(told.next(lease.saturating_sub(SECOND), &by(process, password)), Step::Wait);
        assert!(matches!(told.next(lease, &by(process, password)), Step::Settle(_)));
    }
    let exclusive = |process| Look {
        guard: told.guard.as_ref(),
        lost: false,
        unchanged: Duration::ZERO,
        exclusive: process == "exclusive",
    };
    assert!(matches!(next(exclusive("exclusive"), &by("b", 0), &terms()), Step::Settle(_)));
    assert_eq!(next(exclusive("exclusive"), &by("a", 0), &terms()), Step::Wait);
    assert_eq!(next(exclusive("shared"), &by("b", 0), &terms()), Step::Wait);
}

#[test]
fn old_files_do_not_fight_with_new_ones() {
    let mut told = known();
    told.attempt(1, &accepted());
    let old = by("a", 0);
    assert_eq!(told.next(Duration::ZERO, &old), Step::Later(SUPERSEDED, Later::Superseded));
    assert!(matches!(told.next(SUPERSEDED, &old), Step::Claim(_)));
    // A store of one process alone has no half with other files.
    let look = Look { exclusive: true, ..look(told.guard.as_ref(), Duration::ZERO) };
    assert!(matches!(next(look, &old, &terms()), Step::Claim(_)));
}

#[test]
fn a_report_that_comes_too_late_is_counted_rather_twice_than_not() {
    let late = |outcome: &Report| {
        let mut told = known();
        let attempt = told.claim(1);
        let Step::Settle(guard) = told.next(LONG, &by("b", 0)) else { panic!() };
        let settled = (guard.rejections, guard.candidate(&[1]).unwrap().strikes);
        assert_eq!(settled, (1, 0));
        report(Some(guard), &attempt, outcome, &terms())
            .map(|guard| (guard.rejections, guard.candidate(&[1]).unwrap().strikes))
    };
    assert_eq!(late(&Report::Rejected), Some((2, 1)));
    assert_eq!(late(&accepted()), Some((1, 0)));
    assert_eq!((late(&Report::Unanswered), late(&Report::Void)), (None, None));
    // The store was lost meanwhile.
    let lost = report(None, &by("a", 1), &Report::Rejected, &terms()).unwrap();
    assert_eq!((lost.rejections, lost.candidates[0].strikes), (2, 1));
}

#[test]
fn an_operator_permits_one_more_try_of_everything() {
    let mut told = known();
    told.attempt(1, &Report::Rejected).attempt(1, &Report::Rejected).stopped(1, Stopped::Strikes);
    told.unblock(UnblockMode::Retry).attempt(1, &Report::Rejected).stopped(1, Stopped::Strikes);
    assert_eq!(told.rejections(), 3);
    let mut told = known();
    told.killed(0).killed(0).killed(0).stopped(0, Stopped::Silences);
    told.unblock(UnblockMode::Retry);
    assert!(matches!(told.next(Duration::ZERO, &by("a", 0)), Step::Claim(_)), "without a wait");
    told.killed(0).stopped(0, Stopped::Closed);
    let open = known();
    assert_eq!(open.unblocked(0, UnblockMode::Retry), Ok(None));
    assert_eq!(Told::default().unblocked(0, UnblockMode::Retry), Ok(None));
}

/// Only a login elsewhere clears what ThingSpace has counted, so only then is a fifth attempt made.
#[test]
fn an_operator_alone_does_not_bring_about_the_fifth_rejection() {
    let mut told = Told::default();
    for rejections in 2..=COUNTED {
        told.attempt(1, &Report::Rejected);
        assert_eq!(told.rejections(), rejections);
        if rejections < COUNTED {
            told.unblock(UnblockMode::Retry);
        }
    }
    told.stopped(1, Stopped::Closed).stopped(2, Stopped::Closed);
    told.refused(UnblockMode::Retry, UnblockRefusal::LastAttempt);
    assert_eq!(counted(look(told.guard.as_ref(), LONG)), COUNTED);
    told.unblock(UnblockMode::LoggedIn);
    assert_eq!(told.rejections(), 1);
    // What the operator said of this password is refuted, and stays so. What was cleared counts
    // again.
    told.attempt(1, &Report::Rejected);
    told.stopped(1, Stopped::ForcedInVain).stopped(2, Stopped::ForcedInVain);
    assert_eq!(told.rejections(), COUNTED + 1);
    for mode in [UnblockMode::Retry, UnblockMode::LoggedIn] {
        assert_eq!(told.unblocked(1, mode), Err(UnblockRefusal::Refuted));
        assert_eq!(told.unblocked(2, mode), Err(UnblockRefusal::AlreadyForced));
    }
    // Each such command permits one attempt.
    for _ in 0..2 {
        told.unblock(UnblockMode::RiskLock).attempt(2, &Report::Rejected);
        told.stopped(2, Stopped::ForcedInVain).stopped(1, Stopped::ForcedInVain);
    }
    told.unblock(UnblockMode::RiskLock).attempt(3, &accepted());
    assert_eq!((told.rejections(), told.unblocked(3, UnblockMode::LoggedIn)), (0, Ok(None)));
    assert_eq!(told.unblocked(1, UnblockMode::Retry), Err(UnblockRefusal::Refuted));
}

/// An operator has run `unblock --force` without a login elsewhere.
#[test]
fn a_mistaken_force_costs_one_more_rejection_at_most() {
    for outcome in [Some(Report::Rejected), Some(Report::Unanswered), None] {
        let mut told = known();
        told.attempt(1, &Report::Rejected)
            .attempt(1, &Report::Rejected)
            .attempt(2, &Report::Rejected);
        // Neither a second command nor an attempt that was not evaluated makes it true.
        told.unblock(UnblockMode::LoggedIn);
        told.refused(UnblockMode::LoggedIn, UnblockRefusal::AlreadyForced);
        told.attempt(2, &Report::Void);
        assert_eq!((told.rejections(), told.guard.as_ref().unwrap().set_aside), (1, 3));
        match &outcome {
            Some(outcome) => told.attempt(2, outcome),
            None => told.killed(2),
        };
        assert_eq!((told.rejections(), told.guard.as_ref().unwrap().set_aside), (COUNTED, 0));
        for password in [1, 2, 3] {
            told.stopped(password, Stopped::ForcedInVain);
            let refuted = password == 2 && outcome == Some(Report::Rejected);
            let why = if refuted { UnblockRefusal::Refuted } else { UnblockRefusal::AlreadyForced };
            for mode in [UnblockMode::Retry, UnblockMode::LoggedIn] {
                assert_eq!(told.unblocked(password, mode), Err(why));
            }
        }
    }
}

/// While the attempt is under way, and after it, with the same file or another, for every set of
/// credentials of the user.
#[test]
fn after_a_force_no_other_is_accepted_until_a_login_was() {
    let refused = |told: &Told| {
        told.refused(UnblockMode::LoggedIn, UnblockRefusal::AlreadyForced);
        for held in 0..5 {
            // Nothing is in the way, or it is refused: it gives no more attempts.
            let plain = told.unblocked(held, UnblockMode::Retry);
            assert!(matches!(plain, Ok(None) | Err(UnblockRefusal::AlreadyForced)), "{plain:?}");
        }
    };
    for outcome in [Report::Unanswered, Report::Void] {
        let mut told = known();
        told.attempt(1, &Report::Rejected).attempt(1, &Report::Rejected);
        told.unblock(UnblockMode::LoggedIn);
        refused(&told);
        let attempt = told.claim(2);
        refused(&told);
        told.guard = report(told.guard.take(), &attempt, &outcome, &terms());
        refused(&told);
        let kept = merged(None, told.guard.as_ref().unwrap(), &terms());
        refused(&Told { guard: kept });
        // An operator had cleared the count of a store that has forgotten the rest.
        let forced = Guard { resets: 0, ..told.guard.clone().unwrap() };
        let before = Guard { forced: false, ..told.guard.clone().unwrap() };
        refused(&Told { guard: merged(Some(&forced), &before, &terms()) });
        told.attempt(2, &accepted()).attempt(2, &Report::Rejected).unblock(UnblockMode::LoggedIn);
    }
}

/// The attempt was under way when the count was cleared.
#[test]
fn an_attempt_that_a_force_overtakes_brings_the_count_back() {
    let mut told = known();
    told.attempt(1, &Report::Rejected).attempt(1, &Report::Rejected).attempt(2, &Report::Rejected);
    let attempt = told.claim(2);
    told.unblock(UnblockMode::LoggedIn);
    told.guard = report(told.guard.take(), &attempt, &Report::Rejected, &terms());
    told.stopped(2, Stopped::ForcedInVain);
    // If it was not, the count stays cleared.
    let mut told = known();
    told.attempt(1, &Report::Rejected).attempt(1, &Report::Rejected).attempt(2, &Report::Rejected);
    told.unblock(UnblockMode::LoggedIn).attempt(2, &accepted()).attempt(2, &Report::Rejected);
    assert_eq!(told.rejections(), 1);
}

#[test]
fn a_token_request_is_delayed_ever_longer_and_never_stopped() {
    let terms = Terms { locks: false, ..terms() };
    let attempt = by("a", 1);
    let mut guard = None;
    for misses in 0..30_u32 {
        let delay = SECOND * [0, 5, 10, 20, 40].get(misses as usize).copied().unwrap_or(60);
        if !delay.is_zero() {
            let waits = next(look(guard.as_ref(), Duration::ZERO), &attempt, &terms);
            // One rejection may be ThingSpace's error.
            let why = if misses == 1 { Later::RejectedOnce } else { Later::Rejected };
            assert_eq!(waits, Step::Later(delay, why));
        }
        let Step::Claim(claimed) = next(look(guard.as_ref(), delay), &attempt, &terms) else {
            panic!()
        };
        guard = report(Some(claimed), &attempt, &Report::Rejected, &terms);
    }
    // Another secret does not wait, and an operator ends the waiting.
    assert!(matches!(
        next(look(guard.as_ref(), Duration::ZERO), &by("a", 2), &terms),
        Step::Claim(_)
    ));
    let guard = unblocked(look(guard.as_ref(), LONG), &[1], UnblockMode::Retry, &terms).unwrap();
    assert!(matches!(next(look(guard.as_ref(), Duration::ZERO), &attempt, &terms), Step::Claim(_)));
}

#[test]
fn a_token_request_without_an_answer_counts_for_nothing() {
    let terms = Terms { locks: false, ..terms() };
    let attempt = by("a", 1);
    let Step::Claim(guard) = next(look(None, Duration::ZERO), &attempt, &terms) else { panic!() };
    let guard = report(Some(guard), &attempt, &Report::Unanswered, &terms).unwrap();
    let Step::Claim(guard) = next(look(Some(&guard), Duration::ZERO), &attempt, &terms) else {
        panic!()
    };
    let Step::Settle(guard) = next(look(Some(&guard), LONG), &by("b", 1), &terms) else { panic!() };
    assert!(matches!(next(look(Some(&guard), Duration::ZERO), &attempt, &terms), Step::Claim(_)));
}
