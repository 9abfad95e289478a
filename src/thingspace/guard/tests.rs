mod properties;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Long enough for everything but a superseded one.
const LONG: Duration = Duration::from_mins(4);

fn terms() -> Terms {
    Terms { silence_counts: true, backoff_first: SECOND * 5, backoff_max: SECOND * 60 }
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
    Look { guard, unchanged, exclusive: false }
}

fn accepted() -> Report {
    Report::Accepted { generation: 1, sealed: Some(vec![1]) }
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

    fn rejections(&self) -> u32 {
        self.guard.as_ref().unwrap().rejections
    }

    fn silences(&self) -> u32 {
        self.guard.as_ref().unwrap().silences
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
    told.attempt(2, &Report::Rejected).attempt(2, &Report::Rejected).stopped(2, Stopped::Strikes);
    told.stopped(3, Stopped::Closed).stopped(1, Stopped::Strikes);
}

#[test]
fn two_strikes_each_and_four_in_all() {
    let mut told = known();
    told.attempt(1, &Report::Rejected).attempt(1, &Report::Rejected).stopped(1, Stopped::Strikes);
    told.attempt(2, &Report::Rejected).attempt(0, &Report::Rejected).stopped(3, Stopped::Closed);
    assert_eq!(told.rejections(), REJECTIONS);
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
fn silence_is_a_strike_for_what_was_never_accepted() {
    Told::default().killed(1).stopped(1, Stopped::Strikes);
    Told::default().attempt(1, &Report::Unanswered).stopped(1, Stopped::Strikes);
    let mut told = known();
    told.killed(1).attempt(1, &Report::Unanswered).stopped(1, Stopped::Strikes);
    assert_eq!(told.rejections(), 2);
}

#[test]
fn silence_only_delays_what_was_accepted_and_never_stops_it() {
    let mut told = known();
    for kills in 1..=20_u32 {
        told.killed(0);
        let delay = (SECOND * 5 * (1 << (kills - 1).min(10))).min(SECOND * 60);
        let waits = |unchanged| told.next(unchanged, &by("a", 0));
        assert_eq!(waits(Duration::ZERO), Step::Later(delay, Later::Unanswered));
        assert_eq!(waits(delay.saturating_sub(SECOND)), Step::Later(SECOND, Later::Unanswered));
        assert!(matches!(waits(delay), Step::Claim(_)));
        assert_eq!((told.rejections(), told.silences()), (0, kills.min(SILENCES)));
    }
    // What is new is not made to wait for it, but its first rejection is the last.
    assert!(matches!(told.next(Duration::ZERO, &by("a", 1)), Step::Claim(_)));
    told.attempt(1, &Report::Rejected).stopped(2, Stopped::Closed).stopped(0, Stopped::Closed);
    // Together with rejections each of them counts.
    let mut told = known();
    told.attempt(1, &Report::Rejected).attempt(1, &Report::Rejected).attempt(2, &Report::Rejected);
    told.killed(0).stopped(0, Stopped::Closed);
    let mut told = known();
    told.killed(0).attempt(0, &Report::Rejected);
    // Once it was rejected, it is as if it had never been accepted.
    told.killed(0).stopped(0, Stopped::Strikes);
    assert_eq!((told.rejections(), told.silences()), (2, 1));
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
    let look = Look { guard: told.guard.as_ref(), unchanged: Duration::ZERO, exclusive: true };
    assert!(matches!(next(look, &old, &terms()), Step::Claim(_)));
}

#[test]
fn a_report_that_comes_too_late_is_counted_rather_twice_than_not() {
    let late = |outcome: &Report| {
        let mut told = known();
        let attempt = told.claim(1);
        let Step::Settle(guard) = told.next(LONG, &by("b", 0)) else { panic!() };
        let settled = (guard.rejections, guard.candidate(&[1]).unwrap().strikes);
        assert_eq!(settled, (1, 1));
        report(Some(guard), &attempt, outcome, &terms())
            .map(|guard| (guard.rejections, guard.candidate(&[1]).unwrap().strikes))
    };
    assert_eq!(late(&Report::Rejected), Some((2, 2)));
    assert_eq!(late(&accepted()), Some((1, 0)));
    assert_eq!((late(&Report::Unanswered), late(&Report::Void)), (None, None));
    // The store was lost meanwhile.
    let lost = report(None, &by("a", 1), &Report::Rejected, &terms()).unwrap();
    assert_eq!((lost.rejections, lost.candidates[0].strikes), (2, 1));
}

#[test]
fn an_operator_gives_everything_one_more_try() {
    let mut told = Told::default();
    told.attempt(1, &Report::Rejected).attempt(2, &Report::Rejected).attempt(2, &Report::Rejected);
    told.guard = unblocked(told.guard.take().unwrap());
    assert_eq!(told.rejections(), 1);
    told.attempt(1, &Report::Rejected).stopped(1, Stopped::Strikes);
    told.attempt(2, &Report::Rejected).stopped(2, Stopped::Strikes);
    assert_eq!(told.rejections(), 3);
    assert_eq!(unblocked(known().guard.unwrap()), None);
    let mut told = known();
    told.killed(0);
    let guard = unblocked(told.guard.take().unwrap()).unwrap();
    assert_eq!((guard.rejections, guard.silences, guard.candidates[0].misses), (0, 1, 0));
}

/// Short of four rejections an operator may say so as often as they like.
#[test]
fn an_operator_cannot_wear_the_guard_out() {
    let mut told = Told::default();
    for rejections in 2..=REJECTIONS {
        told.attempt(1, &Report::Rejected).stopped(1, Stopped::Strikes);
        assert_eq!(told.rejections(), rejections);
        if rejections < REJECTIONS {
            told.guard = unblocked(told.guard.take().unwrap());
        }
    }
    told.stopped(2, Stopped::Closed);
}

#[test]
fn a_token_request_without_an_answer_locks_nobody() {
    let terms = Terms { silence_counts: false, ..terms() };
    let attempt = by("a", 1);
    let Step::Claim(guard) = next(look(None, Duration::ZERO), &attempt, &terms) else { panic!() };
    let guard = report(Some(guard), &attempt, &Report::Unanswered, &terms).unwrap();
    assert!(matches!(next(look(Some(&guard), Duration::ZERO), &attempt, &terms), Step::Claim(_)));
    let Step::Claim(guard) = next(look(Some(&guard), Duration::ZERO), &attempt, &terms) else { panic!() };
    let Step::Settle(guard) = next(look(Some(&guard), LONG), &by("b", 1), &terms) else { panic!() };
    assert!(matches!(next(look(Some(&guard), Duration::ZERO), &attempt, &terms), Step::Claim(_)));
}

#[test]
fn eight_are_remembered_and_what_was_accepted_last_is_among_them() {
    let mut told = known();
    for password in 1..=20 {
        told.guard = report(told.guard.take(), &by("a", password), &Report::Rejected, &terms());
    }
    let kept: Vec<_> = told.guard.unwrap().candidates.iter().map(|of| of.fingerprint[0]).collect();
    assert_eq!(kept, [0, 14, 15, 16, 17, 18, 19, 20]);
}

#[test]
fn a_token_is_stored_with_its_acceptance_and_one_that_cannot_be_read_stays() {
    let mut told = known();
    let token = |told: &Told| {
        let of = told.guard.as_ref().unwrap().candidate(&[0]).unwrap().clone();
        (of.accepted, of.generation, of.sealed)
    };
    assert_eq!(token(&told), (true, 1, vec![1]));
    told.attempt(0, &Report::Rejected);
    assert_eq!(token(&told), (true, 1, vec![1]), "the session goes on");
    told.attempt(0, &Report::Accepted { generation: 2, sealed: None });
    assert_eq!(token(&told), (true, 1, vec![1]));
    told.attempt(0, &Report::Accepted { generation: 2, sealed: Some(vec![2]) });
    assert_eq!(token(&told), (true, 2, vec![2]));
}
