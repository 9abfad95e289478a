//! What an operator's `unblock` permits and refuses.

use super::*;

#[test]
fn an_operator_permits_one_more_try_of_everything() {
    let mut case = known();
    case.rejected(1).rejected(1).stopped(1, Stopped::Rejected);
    case.unblock(UnblockMode::Retry).rejected(1).stopped(1, Stopped::Rejected);
    assert_eq!(case.rejections(), 3);
    let mut case = known();
    case.killed(0).killed(0).killed(0).stopped(0, Stopped::Unanswered);
    case.unblock(UnblockMode::Retry);
    assert!(
        matches!(case.next(Duration::ZERO, &by("a", 0)), GuardDecision::Claim(_)),
        "without a wait"
    );
    case.killed(0).stopped(0, Stopped::CountLimit);
    let open = known();
    assert_eq!(open.unblocked(0, UnblockMode::Retry), Ok(None));
    assert_eq!(Scenario::default().unblocked(0, UnblockMode::Retry), Ok(None));
}

/// Only a login elsewhere clears ThingSpace's count, so a fifth attempt needs one.
#[test]
fn an_operator_alone_does_not_bring_about_the_fifth_rejection() {
    let mut case = Scenario::default();
    for rejections in 2..=COUNT_LIMIT {
        case.rejected(1);
        assert_eq!(case.rejections(), rejections);
        if rejections < COUNT_LIMIT {
            case.unblock(UnblockMode::Retry);
        }
    }
    case.stopped(1, Stopped::CountLimit).stopped(2, Stopped::CountLimit);
    case.refused(UnblockMode::Retry, UnblockRefusal::LastAttempt);
    assert_eq!(counted(&look(case.guard.as_ref(), LONG)), COUNT_LIMIT);
    case.unblock(UnblockMode::LoggedIn);
    assert_eq!(case.rejections(), 1);
    // The password was rejected, so the operator's statement was wrong. The cleared count is back.
    case.rejected(1);
    case.stopped(1, Stopped::ForceUsed).stopped(2, Stopped::ForceUsed);
    assert_eq!(case.rejections(), COUNT_LIMIT + 1);
    for mode in [UnblockMode::Retry, UnblockMode::LoggedIn] {
        assert_eq!(case.unblocked(1, mode), Err(UnblockRefusal::PasswordRejected));
        assert_eq!(case.unblocked(2, mode), Err(UnblockRefusal::ForceUsed));
    }
    // Each such command permits one attempt.
    for _ in 0..2 {
        case.unblock(UnblockMode::RiskLock).rejected(2);
        case.stopped(2, Stopped::ForceUsed).stopped(1, Stopped::ForceUsed);
    }
    case.unblock(UnblockMode::RiskLock).accepted(3);
    assert_eq!((case.rejections(), case.unblocked(3, UnblockMode::LoggedIn)), (0, Ok(None)));
    assert_eq!(case.unblocked(1, UnblockMode::Retry), Err(UnblockRefusal::PasswordRejected));
}

/// An operator has run `unblock --force` without a login elsewhere.
#[test]
fn a_mistaken_force_costs_one_more_rejection_at_most() {
    for outcome in [Some(AttemptOutcome::Rejected), Some(AttemptOutcome::Unanswered), None] {
        let mut case = known();
        case.rejected(1).rejected(1).rejected(2);
        // Neither a second command nor an attempt that was not evaluated changes that.
        case.unblock(UnblockMode::LoggedIn);
        case.refused(UnblockMode::LoggedIn, UnblockRefusal::ForceUsed);
        case.not_evaluated(2);
        assert_eq!((case.rejections(), case.guard.as_ref().unwrap().set_aside), (1, 3));
        match &outcome {
            Some(outcome) => case.attempt(2, outcome),
            None => case.killed(2),
        };
        assert_eq!((case.rejections(), case.guard.as_ref().unwrap().set_aside), (COUNT_LIMIT, 0));
        for password in [1, 2, 3] {
            case.stopped(password, Stopped::ForceUsed);
            let refuted = password == 2 && outcome == Some(AttemptOutcome::Rejected);
            let why =
                if refuted { UnblockRefusal::PasswordRejected } else { UnblockRefusal::ForceUsed };
            for mode in [UnblockMode::Retry, UnblockMode::LoggedIn] {
                assert_eq!(case.unblocked(password, mode), Err(why));
            }
        }
    }
}

/// During the attempt and after it, with any password in the file.
#[test]
fn after_a_force_no_other_is_accepted_until_a_login_was() {
    let refused = |case: &Scenario| {
        case.refused(UnblockMode::LoggedIn, UnblockRefusal::ForceUsed);
        for held in 0..5 {
            // It permits no further attempt.
            let plain = case.unblocked(held, UnblockMode::Retry);
            assert!(matches!(plain, Ok(None) | Err(UnblockRefusal::ForceUsed)), "{plain:?}");
        }
    };
    for outcome in [AttemptOutcome::Unanswered, AttemptOutcome::NotEvaluated] {
        let mut case = known();
        case.rejected(1).rejected(1);
        case.unblock(UnblockMode::LoggedIn);
        refused(&case);
        let attempt = case.claim(2);
        refused(&case);
        case.guard = report(case.guard.take(), &attempt, &outcome, &settings());
        refused(&case);
        let kept = merged(None, case.guard.as_ref().unwrap(), &settings());
        refused(&Scenario { guard: kept });
        // The operator used `--force` after the store had lost the guard.
        let forced = Guard { resets: 0, ..case.guard.clone().unwrap() };
        let before = Guard { forced: false, ..case.guard.clone().unwrap() };
        refused(&Scenario { guard: merged(Some(&forced), &before, &settings()) });
        case.accepted(2).rejected(2).unblock(UnblockMode::LoggedIn);
    }
}

/// The attempt was in progress when the count was cleared.
#[test]
fn an_attempt_that_a_force_overtakes_brings_the_count_back() {
    let mut case = known();
    case.rejected(1).rejected(1).rejected(2);
    let attempt = case.claim(2);
    case.unblock(UnblockMode::LoggedIn);
    case.guard = report(case.guard.take(), &attempt, &AttemptOutcome::Rejected, &settings());
    case.stopped(2, Stopped::ForceUsed);
    // After an accepted attempt, the count stays cleared.
    let mut case = known();
    case.rejected(1).rejected(1).rejected(2);
    case.unblock(UnblockMode::LoggedIn).accepted(2).rejected(2);
    assert_eq!(case.rejections(), 1);
}

/// An attempt is in progress, and no attempt counts yet. So the command only permits the other
/// passwords once more, and the operator's statement is not used up.
#[test]
fn a_force_without_a_count_is_not_the_one_that_is_believed() {
    let mut case = known();
    case.rejected(1).accepted(0);
    let attempt = case.claim(0);
    case.unblock(UnblockMode::LoggedIn);
    assert!(!case.guard.as_ref().unwrap().forced);
    case.guard = report(case.guard.take(), &attempt, &AttemptOutcome::Unanswered, &settings());
    assert_eq!(case.rejections(), 1);
    case.unblock(UnblockMode::LoggedIn);
    assert!(case.guard.as_ref().unwrap().forced);
    case.refused(UnblockMode::LoggedIn, UnblockRefusal::ForceUsed);
}
