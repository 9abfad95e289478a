use super::*;

const MS: Duration = Duration::from_millis(1);
const SETTINGS: Settings =
    Settings { failures: 3, first: Duration::from_secs(1), most: Duration::from_secs(4) };

fn breaker() -> Arc<Breaker> {
    Breaker::new("host".into(), SETTINGS)
}

#[track_caller]
fn pass(breaker: &Arc<Breaker>) -> Pass {
    match breaker.admit(true) {
        Admission::Pass(pass) => pass,
        other => panic!("{other:?}"),
    }
}

fn fail(breaker: &Arc<Breaker>) {
    pass(breaker).report(Outcome::Failed(None));
}

/// A wait of a penalty.
#[track_caller]
fn assert_penalty(breaker: &Arc<Breaker>, penalty: Duration) {
    let wait = breaker.refuses().expect("it is open");
    assert!((penalty / 2..=penalty).contains(&wait), "{wait:?} of {penalty:?}");
}

async fn sit_out(breaker: &Breaker) {
    let wait = breaker.refuses().expect("it is open");
    tokio::time::sleep(wait.saturating_sub(MS)).await;
    assert!(breaker.refuses().is_some());
    tokio::time::sleep(MS).await;
}

#[tokio::test(start_paused = true)]
async fn failures_in_a_row_open_it() {
    let breaker = breaker();
    for _ in 0..5 {
        fail(&breaker);
        fail(&breaker);
        pass(&breaker).report(Outcome::Answered);
    }
    fail(&breaker);
    // These say nothing: neither failed nor answered.
    pass(&breaker).report(Outcome::Throttled(Some(SETTINGS.first)));
    drop(pass(&breaker));
    fail(&breaker);
    assert_eq!((breaker.refuses(), breaker.health().left_alone), (None, None));
    fail(&breaker);
    assert_penalty(&breaker, SETTINGS.first);
    assert!(matches!(breaker.admit(true), Admission::Refused(_)));
    assert_eq!(breaker.health().left_alone, breaker.refuses());
}

#[tokio::test(start_paused = true)]
async fn one_call_probes_and_the_penalty_doubles_to_its_bound() {
    let breaker = breaker();
    (0..3).for_each(|_| fail(&breaker));
    for seconds in [1, 2, 4, 4, 4] {
        assert_penalty(&breaker, Duration::from_secs(seconds));
        sit_out(&breaker).await;
        let probe = pass(&breaker);
        for may_probe in [true, false] {
            assert!(
                matches!(breaker.admit(may_probe), Admission::Refused(wait) if wait == SETTINGS.first)
            );
        }
        probe.report(Outcome::Failed(None));
    }
    sit_out(&breaker).await;
    pass(&breaker).report(Outcome::Answered);
    assert_eq!(breaker.refuses(), None);
    pass(&breaker);
}

#[tokio::test(start_paused = true)]
async fn a_call_with_an_effect_is_never_the_probe() {
    let breaker = breaker();
    (0..3).for_each(|_| fail(&breaker));
    sit_out(&breaker).await;
    let Admission::ProbeFirst(probe) = breaker.admit(false) else { panic!("not the probe") };
    assert!(matches!(breaker.admit(false), Admission::Refused(_)));
    probe.report(Outcome::Answered);
    assert!(matches!(breaker.admit(false), Admission::Pass(_)));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_given_up_makes_room_for_one_that_is_not() {
    let breaker = breaker();
    (0..3).for_each(|_| fail(&breaker));
    sit_out(&breaker).await;
    drop(pass(&breaker));
    let Admission::ProbeFirst(own) = breaker.admit(true) else {
        panic!("its caller may go away, too")
    };
    // Nothing stops that one, but if something does, nobody is in a hurry.
    drop(own);
    assert_penalty(&breaker, SETTINGS.first);
    sit_out(&breaker).await;
    let Admission::ProbeFirst(own) = breaker.admit(true) else {
        panic!("its caller may go away, too")
    };
    own.report(Outcome::Failed(None));
    sit_out(&breaker).await;
    pass(&breaker).report(Outcome::Answered);
    assert_eq!(breaker.refuses(), None);
}

#[tokio::test(start_paused = true)]
async fn a_throttled_probe_is_repeated_when_it_was_told_and_costs_no_more() {
    let breaker = breaker();
    (0..3).for_each(|_| fail(&breaker));
    sit_out(&breaker).await;
    pass(&breaker).report(Outcome::Throttled(None));
    assert_penalty(&breaker, SETTINGS.first);
    sit_out(&breaker).await;
    pass(&breaker).report(Outcome::Throttled(Some(Duration::from_secs(30))));
    assert_eq!(breaker.refuses(), Some(Duration::from_secs(30)));
    sit_out(&breaker).await;
    fail(&breaker);
    assert_penalty(&breaker, 2 * SETTINGS.first);
}

#[tokio::test(start_paused = true)]
async fn only_a_probe_is_told_how_long_to_wait_and_within_reason() {
    for (told, wait) in [(20, 20), (3_600, 300)] {
        let breaker = breaker();
        let told = Outcome::Failed(Some(Duration::from_secs(told)));
        (0..3).for_each(|_| pass(&breaker).report(told));
        assert_penalty(&breaker, SETTINGS.first);
        sit_out(&breaker).await;
        pass(&breaker).report(told);
        assert_eq!(breaker.refuses(), Some(Duration::from_secs(wait)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_false_recovery_does_not_shorten_the_penalty_and_a_true_one_does() {
    let breaker = breaker();
    (0..3).for_each(|_| fail(&breaker));
    for seconds in [2, 4, 4] {
        sit_out(&breaker).await;
        pass(&breaker).report(Outcome::Answered);
        // Not enough answers in a row to believe in them.
        pass(&breaker).report(Outcome::Answered);
        pass(&breaker).report(Outcome::Answered);
        (0..3).for_each(|_| fail(&breaker));
        assert_penalty(&breaker, Duration::from_secs(seconds));
    }
    sit_out(&breaker).await;
    pass(&breaker).report(Outcome::Answered);
    (0..3).for_each(|_| pass(&breaker).report(Outcome::Answered));
    (0..3).for_each(|_| fail(&breaker));
    assert_penalty(&breaker, SETTINGS.first);
}

#[tokio::test(start_paused = true)]
async fn calls_of_before_the_last_change_tell_nothing() {
    let breaker = breaker();
    let mut old: Vec<_> = (0..8).map(|_| pass(&breaker)).collect();
    (0..3).for_each(|_| old.pop().unwrap().report(Outcome::Failed(None)));
    let wait = breaker.refuses();
    old.pop().unwrap().report(Outcome::Failed(None));
    old.pop().unwrap().report(Outcome::Answered);
    assert_eq!(breaker.refuses(), wait);
    sit_out(&breaker).await;
    let probe = pass(&breaker);
    old.pop().unwrap().report(Outcome::Failed(None));
    old.pop().unwrap().report(Outcome::Answered);
    drop(old);
    assert_eq!(breaker.refuses(), Some(SETTINGS.first));
    probe.report(Outcome::Answered);
    assert_eq!(breaker.refuses(), None);
}
