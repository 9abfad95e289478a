//! What a guard remembers, how it is restored after a store loss, and its stored bytes.

use prost::Message;

use super::*;

#[test]
fn a_guard_that_the_store_lost_is_closed_until_an_operator_has_logged_in() {
    let lost = Observation { lost: true, ..look(None, LONG) };
    assert_eq!(next(&lost, &by("a", 1), &settings()), GuardDecision::Stopped(Stopped::CountLost));
    assert_eq!(
        (unblocked(&lost, &[1], UnblockMode::Retry, &settings()), counted(&lost)),
        (Err(UnblockRefusal::LastAttempt), COUNT_LIMIT)
    );
    let guard = unblocked(&lost, &[1], UnblockMode::LoggedIn, &settings()).unwrap().unwrap();
    assert_eq!(guard.rejections, 1);
    let held = Observation { lost: true, ..look(Some(&guard), LONG) };
    assert!(matches!(next(&held, &by("a", 1), &settings()), GuardDecision::Claim(_)));
    let client = GuardSettings { locks: false, ..settings() };
    assert!(
        matches!(next(&lost, &by("a", 1), &client), GuardDecision::Claim(_)),
        "it locks nobody"
    );
}

#[test]
fn what_the_store_forgot_is_written_back() {
    let mut case = known();
    case.rejected(1);
    let remembered = case.guard.clone().unwrap();
    assert_eq!(merged(Some(&remembered), &remembered, &settings()), None);
    // Other processes may have made attempts that this one does not know.
    let back = merged(None, &remembered, &settings()).unwrap();
    assert_eq!(
        next(&look(Some(&back), LONG), &by("a", 0), &settings()),
        GuardDecision::Stopped(Stopped::CountLimit)
    );
    assert_eq!(back.candidates, remembered.candidates);
    // A token request locks nobody.
    assert!(
        !merged(None, &remembered, &GuardSettings { locks: false, ..settings() })
            .unwrap()
            .is_at_limit()
    );
    case.rejected(1).rejected(2);
    let remembered = case.guard.clone().unwrap();
    // An attempt was in progress, with an unknown outcome.
    case.claim(3);
    let back = merged(None, case.guard.as_ref().unwrap(), &settings()).unwrap();
    assert_eq!((back.rejections, back.attempt.is_none()), (COUNT_LIMIT, true));
    // A new process found no guard, and has made an attempt since.
    let mut fresh = Scenario::default();
    fresh.rejected(1);
    let back = merged(fresh.guard.as_ref(), &remembered, &settings()).unwrap();
    assert!(
        back.is_at_limit() && back.candidate(&[1]).unwrap().strikes > REJECTIONS_LIMIT,
        "{back:?}"
    );
    assert_eq!(back.accepted_last, [0]);
    // A newer guard stays, although its count is lower.
    case = known();
    case.accepted(0);
    assert_eq!(merged(case.guard.as_ref(), &remembered, &settings()), None);
}

#[test]
fn a_fingerprint_of_an_earlier_release_is_recognised() {
    let mut case = known();
    case.rejected(1).rejected(1);
    let now = renamed(case.guard.clone().unwrap(), &[1], &[101]);
    assert_eq!(
        next(&look(Some(&now), LONG), &by("a", 101), &settings()),
        GuardDecision::Stopped(Stopped::Rejected)
    );
    assert_eq!(now.candidate(&[1]), None);
    let now = renamed(case.guard.clone().unwrap(), &[0], &[100]);
    assert_eq!(now.accepted_last, [100]);
    assert_eq!(now.candidate(&[100]).unwrap().sealed, [1]);
    // A replica of the earlier release adds to the earlier fingerprint.
    let both = renamed(
        report(Some(now), &by("a", 0), &AttemptOutcome::Rejected, &settings()).unwrap(),
        &[0],
        &[100],
    );
    assert_eq!((both.candidate(&[100]).unwrap().strikes, both.candidate(&[0])), (1, None));
}

#[test]
fn eight_are_remembered_and_what_was_accepted_last_is_among_them() {
    let mut case = known();
    for password in 1..=20 {
        case.guard =
            report(case.guard.take(), &by("a", password), &AttemptOutcome::Rejected, &settings());
    }
    let kept: Vec<_> = case.guard.unwrap().candidates.iter().map(|of| of.fingerprint[0]).collect();
    assert_eq!(kept, [0, 14, 15, 16, 17, 18, 19, 20]);
}

#[test]
fn a_token_is_stored_with_its_acceptance_and_one_that_cannot_be_read_stays() {
    let mut case = known();
    let token = |case: &Scenario| {
        let of = case.guard.as_ref().unwrap().candidate(&[0]).unwrap().clone();
        (of.accepted, of.generation, [of.sealed, of.sealed_for_other_half])
    };
    assert_eq!(token(&case), (true, 1, sealed(1)));
    case.rejected(0);
    assert_eq!(token(&case), (true, 1, sealed(1)), "the session goes on");
    case.attempt(0, &AttemptOutcome::Accepted { generation: 2, sealed: None });
    assert_eq!(token(&case), (true, 1, sealed(1)));
    case.attempt(0, &AttemptOutcome::Accepted { generation: 2, sealed: Some(sealed(2)) });
    assert_eq!(token(&case), (true, 2, sealed(2)));
}

/// The bytes of a stored cell. They never change; new fields are added.
#[test]
fn a_stored_guard_means_what_it_meant() {
    const STORED: &str = "080112016e180222180a0102100118022001280130093a020a0b40014a010c50012a0101\
         320d0a01021201611a016920e0d403380140074801";
    let byte = |at| u8::from_str_radix(&STORED[at..at + 2], 16).unwrap();
    let stored: Vec<u8> = (0..STORED.len()).step_by(2).map(byte).collect();
    let candidate = GuardCandidate {
        fingerprint: vec![2],
        strikes: 1,
        misses: 2,
        accepted: true,
        rejected: true,
        generation: 9,
        sealed: vec![10, 11],
        derivation: 1,
        sealed_for_other_half: vec![12],
        refuted: true,
    };
    let attempt = GuardAttempt {
        fingerprint: vec![2],
        id: "a".to_owned(),
        incarnation: "i".to_owned(),
        lease_ms: 60_000,
    };
    let guard = Guard {
        version: 1,
        rejections: 2,
        candidates: vec![candidate],
        accepted_last: vec![1],
        attempt: Some(attempt),
        silences: 1,
        resets: 7,
        forced: true,
        set_aside: 0,
    };
    assert_eq!(Guard::decode(&*stored), Ok(guard.clone()));
    // With a field that a later release added.
    let stored = [&*stored, &[0x50, 3]].concat();
    assert_eq!(Guard::decode(&*stored), Ok(Guard { set_aside: 3, ..guard }));
}

/// Earlier releases counted some unanswered attempts in a field of its own.
#[test]
fn silences_of_an_earlier_release_count() {
    let mut case = known();
    case.guard.as_mut().unwrap().silences = 3;
    case.unanswered(1).stopped(2, Stopped::CountLimit);
    let guard = case.guard.as_ref().unwrap();
    assert_eq!(
        (guard.rejections, guard.silences, counted(&look(Some(guard), LONG))),
        (1, 3, COUNT_LIMIT)
    );
}
