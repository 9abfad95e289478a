mod answers;
mod memory;
mod properties;
mod unblock;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Long enough for every delay except that of a superseded password.
const LONG: Duration = Duration::from_mins(4);

fn settings() -> GuardSettings {
    GuardSettings { locks: true, backoff_first: SECOND * 5, backoff_max: SECOND * 60 }
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

fn look(guard: Option<&Guard>, unchanged: Duration) -> Observation {
    Observation { guard: guard.cloned(), lost: false, unchanged, exclusive: false }
}

fn accepted() -> AttemptOutcome {
    AttemptOutcome::Accepted { generation: 1, sealed: Some(sealed(1)) }
}

fn sealed(byte: u8) -> [Vec<u8>; 2] {
    [vec![byte], vec![byte, byte]]
}

/// A guard, and what happens to it.
#[derive(Default)]
struct Scenario {
    guard: Option<Guard>,
}

impl Scenario {
    fn next(&self, unchanged: Duration, attempt: &GuardAttempt) -> GuardDecision {
        next(&look(self.guard.as_ref(), unchanged), attempt, &settings())
    }

    /// An attempt of the only process, after a long wait.
    #[track_caller]
    fn claim(&mut self, password: u8) -> GuardAttempt {
        let attempt = by("a", password);
        match self.next(LONG, &attempt) {
            GuardDecision::Claim(guard) => self.guard = Some(guard),
            other => panic!("{other:?}: {:?}", self.guard),
        }
        attempt
    }

    #[track_caller]
    fn attempt(&mut self, password: u8, outcome: &AttemptOutcome) -> &mut Self {
        let attempt = self.claim(password);
        self.guard = report(self.guard.take(), &attempt, outcome, &settings());
        self
    }

    #[track_caller]
    fn accepted(&mut self, password: u8) -> &mut Self {
        self.attempt(password, &accepted())
    }

    #[track_caller]
    fn rejected(&mut self, password: u8) -> &mut Self {
        self.attempt(password, &AttemptOutcome::Rejected)
    }

    #[track_caller]
    fn unanswered(&mut self, password: u8) -> &mut Self {
        self.attempt(password, &AttemptOutcome::Unanswered)
    }

    #[track_caller]
    fn not_evaluated(&mut self, password: u8) -> &mut Self {
        self.attempt(password, &AttemptOutcome::NotEvaluated)
    }

    /// The process dies, and the lease runs out.
    #[track_caller]
    fn killed(&mut self, password: u8) -> &mut Self {
        self.claim(password);
        match self.next(LONG, &by("b", password)) {
            GuardDecision::Settle(guard) => self.guard = Some(guard),
            other => panic!("{other:?}"),
        }
        self
    }

    #[track_caller]
    fn stopped(&self, password: u8, why: Stopped) -> &Self {
        assert_eq!(
            self.next(LONG, &by("a", password)),
            GuardDecision::Stopped(why),
            "{:?}",
            self.guard
        );
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
        unblocked(&look(self.guard.as_ref(), LONG), &[held], mode, &settings())
    }

    /// The command is refused, whatever password the file contains.
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

/// A guard that knows only that password 0 was accepted.
fn known() -> Scenario {
    let mut case = Scenario::default();
    case.accepted(0);
    case
}

/// Metrics show it, and an operator compares it with what happens.
#[test]
fn what_is_left_is_what_the_guard_still_allows() {
    let mut cases = [known(), known(), known(), known(), Scenario::default()];
    cases[1].rejected(1);
    cases[2].unanswered(1).unanswered(1);
    cases[3].rejected(2).rejected(2).rejected(3);
    let expected = [2, 1, 1, 1, 1];
    for (mut case, expected) in cases.into_iter().zip(expected) {
        let left = |case: &Scenario| rejections_left(&look(case.guard.as_ref(), LONG), &[1]);
        assert_eq!(left(&case), expected, "{:?}", case.guard);
        for before in (1..=expected).rev() {
            assert_eq!(left(&case), before);
            case.rejected(1);
        }
        assert_eq!(left(&case), 0);
        let next = case.next(LONG, &by("a", 1));
        assert!(matches!(next, GuardDecision::Stopped(_)), "{next:?}");
    }
    let lost = Observation { lost: true, ..look(None, LONG) };
    assert_eq!(rejections_left(&lost, &[1]), 0);
}

#[test]
fn without_a_history_one_rejection_is_the_last() {
    let mut case = Scenario::default();
    case.rejected(1).stopped(1, Stopped::Rejected);
    // Another password has two attempts, which makes four that count.
    case.rejected(2).rejected(2).stopped(2, Stopped::CountLimit);
    case.stopped(3, Stopped::CountLimit).stopped(1, Stopped::CountLimit);
}

#[test]
fn two_rejections_each_and_four_in_all() {
    let mut case = known();
    case.rejected(1).rejected(1).stopped(1, Stopped::Rejected);
    case.rejected(2).rejected(0).stopped(3, Stopped::CountLimit);
    assert_eq!(case.rejections(), COUNT_LIMIT);
}

#[test]
fn an_accepted_login_clears_the_count_and_only_its_own_rejections() {
    let mut case = known();
    case.rejected(1).rejected(1).rejected(0);
    case.accepted(0).stopped(1, Stopped::Rejected);
    assert_eq!(case.rejections(), 0);
    case.rejected(0).rejected(0).stopped(0, Stopped::Rejected);
}

#[test]
fn an_attempt_that_was_not_evaluated_does_not_count() {
    let mut case = Scenario::default();
    for _ in 0..10 {
        case.not_evaluated(1);
    }
    assert_eq!((case.rejections(), case.guard.as_ref().unwrap().candidates[0].strikes), (1, 1));
}

#[test]
fn a_password_that_was_never_accepted_has_three_attempts_without_an_answer() {
    let mut case = known();
    case.killed(1).unanswered(1);
    assert!(matches!(case.next(LONG, &by("a", 1)), GuardDecision::Claim(_)));
    case.killed(1).stopped(1, Stopped::Unanswered);
    assert_eq!(case.rejections(), 3);
    let mut case = known();
    case.rejected(1).killed(1).killed(1).stopped(1, Stopped::Unanswered);
}

/// The first login is repeated after an outage, but not after a rejection.
#[test]
fn without_a_history_unanswered_attempts_are_made_up_to_the_fourth_that_counts() {
    let mut case = Scenario::default();
    case.unanswered(1);
    assert_eq!(case.next(SECOND, &by("a", 1)), GuardDecision::Delay(SECOND * 4, Delay::Unanswered));
    case.killed(1).killed(1).stopped(1, Stopped::CountLimit);
    assert_eq!(case.rejections(), COUNT_LIMIT);
    let mut case = Scenario::default();
    case.killed(1).rejected(1).stopped(1, Stopped::Rejected);
}

#[test]
fn the_password_that_was_accepted_last_has_three_attempts_without_an_answer() {
    let mut case = known();
    for (unanswered, delay) in [(1, SECOND * 5), (2, SECOND * 60)] {
        case.killed(0);
        let waits = |unchanged| case.next(unchanged, &by("a", 0));
        assert_eq!(waits(Duration::ZERO), GuardDecision::Delay(delay, Delay::Unanswered));
        assert_eq!(
            waits(delay.saturating_sub(SECOND)),
            GuardDecision::Delay(SECOND, Delay::Unanswered)
        );
        assert!(matches!(waits(delay), GuardDecision::Claim(_)));
        assert_eq!(case.rejections(), unanswered);
    }
    case.unanswered(0).stopped(0, Stopped::Unanswered);
    // A new password may still be tried, once.
    assert!(matches!(case.next(Duration::ZERO, &by("a", 1)), GuardDecision::Claim(_)));
    case.rejected(1).stopped(2, Stopped::CountLimit).stopped(0, Stopped::CountLimit);
}

#[test]
fn unanswered_attempts_and_rejections_count_together() {
    let mut case = known();
    case.rejected(1).rejected(1).rejected(2);
    case.killed(0).stopped(0, Stopped::CountLimit);
    let mut case = known();
    case.killed(0).rejected(0);
    // Once it was rejected, it counts like a password that was never accepted.
    case.killed(0).stopped(0, Stopped::Unanswered);
    assert_eq!(case.rejections(), 3);
}

#[test]
fn an_accepted_attempt_clears_unanswered_ones() {
    let mut case = known();
    for _ in 0..10 {
        case.killed(0).killed(0).accepted(0);
        assert_eq!(case.rejections(), 0);
    }
}

#[test]
fn a_rejection_delays_the_second_try() {
    let mut case = known();
    case.rejected(0);
    assert_eq!(case.next(SECOND, &by("b", 0)), GuardDecision::Delay(SECOND * 4, Delay::Rejected));
    assert!(matches!(case.next(SECOND, &by("b", 1)), GuardDecision::Claim(_)));
}

#[test]
fn one_attempt_at_a_time_until_its_lease_runs_out() {
    let mut case = known();
    case.claim(0);
    let lease = Duration::from_mins(1);
    for (process, password) in [("b", 0), ("b", 1), ("a", 0)] {
        assert_eq!(
            case.next(lease.saturating_sub(SECOND), &by(process, password)),
            GuardDecision::Wait(SECOND)
        );
        assert!(matches!(case.next(lease, &by(process, password)), GuardDecision::Settle(_)));
    }
    let exclusive = |process| Observation {
        guard: case.guard.clone(),
        lost: false,
        unchanged: Duration::ZERO,
        exclusive: process == "exclusive",
    };
    assert!(matches!(
        next(&exclusive("exclusive"), &by("b", 0), &settings()),
        GuardDecision::Settle(_)
    ));
    assert_eq!(next(&exclusive("exclusive"), &by("a", 0), &settings()), GuardDecision::Wait(lease));
    assert_eq!(next(&exclusive("shared"), &by("b", 0), &settings()), GuardDecision::Wait(lease));
}

#[test]
fn old_files_do_not_compete_with_new_ones() {
    let mut case = known();
    case.accepted(1);
    let old = by("a", 0);
    assert_eq!(
        case.next(Duration::ZERO, &old),
        GuardDecision::Delay(SUPERSEDED, Delay::Superseded)
    );
    assert!(matches!(case.next(SUPERSEDED, &old), GuardDecision::Claim(_)));
    // No other process with other files uses an exclusive store.
    let look = Observation { exclusive: true, ..look(case.guard.as_ref(), Duration::ZERO) };
    assert!(matches!(next(&look, &old, &settings()), GuardDecision::Claim(_)));
}

#[test]
fn a_late_report_is_counted_twice_rather_than_not_at_all() {
    let late = |outcome: &AttemptOutcome| {
        let mut case = known();
        let attempt = case.claim(1);
        let GuardDecision::Settle(guard) = case.next(LONG, &by("b", 0)) else { panic!() };
        let settled = (guard.rejections, guard.candidate(&[1]).unwrap().strikes);
        assert_eq!(settled, (1, 0));
        report(Some(guard), &attempt, outcome, &settings())
            .map(|guard| (guard.rejections, guard.candidate(&[1]).unwrap().strikes))
    };
    assert_eq!(late(&AttemptOutcome::Rejected), Some((2, 1)));
    assert_eq!(late(&accepted()), Some((1, 0)));
    assert_eq!(
        (late(&AttemptOutcome::Unanswered), late(&AttemptOutcome::NotEvaluated)),
        (None, None)
    );
    // The store lost the guard meanwhile.
    let lost = report(None, &by("a", 1), &AttemptOutcome::Rejected, &settings()).unwrap();
    assert_eq!((lost.rejections, lost.candidates[0].strikes), (2, 1));
}

#[test]
fn a_token_request_is_delayed_ever_longer_and_never_stopped() {
    let settings = GuardSettings { locks: false, ..settings() };
    let attempt = by("a", 1);
    let mut guard = None;
    for misses in 0..30_u32 {
        let delay = SECOND * [0, 5, 10, 20, 40].get(misses as usize).copied().unwrap_or(60);
        if !delay.is_zero() {
            let waits = next(&look(guard.as_ref(), Duration::ZERO), &attempt, &settings);
            // One rejection may be an error of ThingSpace.
            let why = if misses == 1 { Delay::RejectedOnce } else { Delay::Rejected };
            assert_eq!(waits, GuardDecision::Delay(delay, why));
        }
        let GuardDecision::Claim(claimed) = next(&look(guard.as_ref(), delay), &attempt, &settings)
        else {
            panic!()
        };
        guard = report(Some(claimed), &attempt, &AttemptOutcome::Rejected, &settings);
    }
    // Another secret does not wait, and an operator ends the delay.
    assert!(matches!(
        next(&look(guard.as_ref(), Duration::ZERO), &by("a", 2), &settings),
        GuardDecision::Claim(_)
    ));
    let guard =
        unblocked(&look(guard.as_ref(), LONG), &[1], UnblockMode::Retry, &settings).unwrap();
    assert!(matches!(
        next(&look(guard.as_ref(), Duration::ZERO), &attempt, &settings),
        GuardDecision::Claim(_)
    ));
}

#[test]
fn a_token_request_without_an_answer_counts_for_nothing() {
    let settings = GuardSettings { locks: false, ..settings() };
    let attempt = by("a", 1);
    let GuardDecision::Claim(guard) = next(&look(None, Duration::ZERO), &attempt, &settings) else {
        panic!()
    };
    let guard = report(Some(guard), &attempt, &AttemptOutcome::Unanswered, &settings).unwrap();
    let GuardDecision::Claim(guard) =
        next(&look(Some(&guard), Duration::ZERO), &attempt, &settings)
    else {
        panic!()
    };
    let GuardDecision::Settle(guard) = next(&look(Some(&guard), LONG), &by("b", 1), &settings)
    else {
        panic!()
    };
    assert!(matches!(
        next(&look(Some(&guard), Duration::ZERO), &attempt, &settings),
        GuardDecision::Claim(_)
    ));
}
