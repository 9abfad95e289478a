//! What a guard remembers, what it becomes where the store forgot it, and its stored bytes.

use prost::Message;

use super::*;

#[test]
fn a_guard_that_the_store_lost_is_closed_until_an_operator_has_logged_in() {
    let lost = Look { lost: true, ..look(None, LONG) };
    assert_eq!(next(lost, &by("a", 1), &terms()), Step::Stopped(Stopped::Lost));
    assert_eq!(
        (unblocked(lost, &[1], UnblockMode::Retry, &terms()), counted(lost)),
        (Err(UnblockRefusal::LastAttempt), COUNTED)
    );
    let guard = unblocked(lost, &[1], UnblockMode::LoggedIn, &terms()).unwrap().unwrap();
    assert_eq!(guard.rejections, 1);
    let held = Look { lost: true, ..look(Some(&guard), LONG) };
    assert!(matches!(next(held, &by("a", 1), &terms()), Step::Claim(_)));
    let client = Terms { locks: false, ..terms() };
    assert!(matches!(next(lost, &by("a", 1), &client), Step::Claim(_)), "it locks nobody");
}

#[test]
fn what_the_store_forgot_is_written_back() {
    let mut told = known();
    told.attempt(1, &Report::Rejected);
    let remembered = told.guard.clone().unwrap();
    assert_eq!(merged(Some(&remembered), &remembered, &terms()), None);
    // Other processes may have made attempts that this one does not know.
    let back = merged(None, &remembered, &terms()).unwrap();
    assert_eq!(
        next(look(Some(&back), LONG), &by("a", 0), &terms()),
        Step::Stopped(Stopped::Closed)
    );
    assert_eq!(back.candidates, remembered.candidates);
    // A token request locks nobody.
    assert!(!merged(None, &remembered, &Terms { locks: false, ..terms() }).unwrap().is_closed());
    told.attempt(1, &Report::Rejected).attempt(2, &Report::Rejected);
    let remembered = told.guard.clone().unwrap();
    // An attempt was under way: nobody knows its outcome.
    told.claim(3);
    let back = merged(None, told.guard.as_ref().unwrap(), &terms()).unwrap();
    assert_eq!((back.rejections, back.attempt.is_none()), (COUNTED, true));
    // A fresh process found nothing and has made an attempt since.
    let mut fresh = Told::default();
    fresh.attempt(1, &Report::Rejected);
    let back = merged(fresh.guard.as_ref(), &remembered, &terms()).unwrap();
    assert!(back.is_closed() && back.candidate(&[1]).unwrap().strikes > STRIKES, "{back:?}");
    assert_eq!(back.accepted_last, [0]);
    // What is newer stays, although it counts less.
    told = known();
    told.attempt(0, &accepted());
    assert_eq!(merged(told.guard.as_ref(), &remembered, &terms()), None);
}

#[test]
fn a_fingerprint_of_an_earlier_release_is_recognised() {
    let mut told = known();
    told.attempt(1, &Report::Rejected).attempt(1, &Report::Rejected);
    let now = renamed(told.guard.clone().unwrap(), &[1], &[101]);
    assert_eq!(
        next(look(Some(&now), LONG), &by("a", 101), &terms()),
        Step::Stopped(Stopped::Strikes)
    );
    assert_eq!(now.candidate(&[1]), None);
    let now = renamed(told.guard.clone().unwrap(), &[0], &[100]);
    assert_eq!(now.accepted_last, [100]);
    assert_eq!(now.candidate(&[100]).unwrap().sealed, [1]);
    // A replica of the earlier release adds to its own.
    let both =
        renamed(report(Some(now), &by("a", 0), &Report::Rejected, &terms()).unwrap(), &[0], &[100]);
    assert_eq!((both.candidate(&[100]).unwrap().strikes, both.candidate(&[0])), (1, None));
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
        (
            of.accepted,
            of.generation,
            Sealed { own: of.sealed, for_other_half: of.sealed_for_other_half },
        )
    };
    assert_eq!(token(&told), (true, 1, sealed(1)));
    told.attempt(0, &Report::Rejected);
    assert_eq!(token(&told), (true, 1, sealed(1)), "the session goes on");
    told.attempt(0, &Report::Accepted { generation: 2, sealed: None });
    assert_eq!(token(&told), (true, 1, sealed(1)));
    told.attempt(0, &Report::Accepted { generation: 2, sealed: Some(sealed(2)) });
    assert_eq!(token(&told), (true, 2, sealed(2)));
}

/// The bytes of a cell as it was written once. They never change; new fields are added.
#[test]
fn a_stored_guard_means_what_it_meant() {
    const STORED: &str = "080112016e180222180a0102100118022001280130093a020a0b40014a010c50012a0101320d0a01021201611a016920e0\
                          d403380140074801";
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
    // With what a later release added.
    let stored = [&*stored, &[0x50, 3]].concat();
    assert_eq!(Guard::decode(&*stored), Ok(Guard { set_aside: 3, ..guard }));
}

/// Earlier releases counted some unanswered attempts in a field of its own.
#[test]
fn silences_of_an_earlier_release_count() {
    let mut told = known();
    told.guard.as_mut().unwrap().silences = 3;
    told.attempt(1, &Report::Unanswered).stopped(2, Stopped::Closed);
    let guard = told.guard.as_ref().unwrap();
    assert_eq!(
        (guard.rejections, guard.silences, counted(look(Some(guard), LONG))),
        (1, 3, COUNTED)
    );
}
