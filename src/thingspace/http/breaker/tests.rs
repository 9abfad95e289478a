use super::*;

const MS: Duration = Duration::from_millis(1);
const SETTINGS: BreakerSettings =
    BreakerSettings { failures: 3, first: Duration::from_secs(1), most: Duration::from_secs(4) };

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
    pass(breaker).report(CallOutcome::Failed(None));
}

/// It is open for this time, or up to a half less.
#[track_caller]
fn assert_penalty(breaker: &Arc<Breaker>, penalty: Duration) {
    let wait = breaker.refused_for().expect("it is open");
    assert!((penalty / 2..=penalty).contains(&wait), "{wait:?} of {penalty:?}");
}

async fn wait_for_probe(breaker: &Breaker) {
    let wait = breaker.refused_for().expect("it is open");
    tokio::time::sleep(wait.saturating_sub(MS)).await;
    assert!(breaker.refused_for().is_some());
    tokio::time::sleep(MS).await;
}

#[tokio::test(start_paused = true)]
async fn failures_in_a_row_open_it() {
    let breaker = breaker();
    for _ in 0..5 {
        fail(&breaker);
        fail(&breaker);
        pass(&breaker).report(CallOutcome::Answered);
    }
    fail(&breaker);
    // Neither failures nor answers.
    pass(&breaker).report(CallOutcome::Throttled(Some(SETTINGS.first)));
    drop(pass(&breaker));
    fail(&breaker);
    assert_eq!((breaker.refused_for(), breaker.health().open_for), (None, None));
    fail(&breaker);
    assert_penalty(&breaker, SETTINGS.first);
    assert!(matches!(breaker.admit(true), Admission::Refused(_)));
    assert_eq!(breaker.health().open_for, breaker.refused_for());
}

#[tokio::test(start_paused = true)]
async fn one_call_probes_and_the_penalty_doubles_to_its_bound() {
    let breaker = breaker();
    (0..3).for_each(|_| fail(&breaker));
    for seconds in [1, 2, 4, 4, 4] {
        assert_penalty(&breaker, Duration::from_secs(seconds));
        wait_for_probe(&breaker).await;
        let probe = pass(&breaker);
        for may_probe in [true, false] {
            let Admission::Refused(wait) = breaker.admit(may_probe) else { panic!("a probe runs") };
            assert_eq!(wait, SETTINGS.first);
        }
        probe.report(CallOutcome::Failed(None));
    }
    wait_for_probe(&breaker).await;
    pass(&breaker).report(CallOutcome::Answered);
    assert_eq!(breaker.refused_for(), None);
    pass(&breaker);
}

#[tokio::test(start_paused = true)]
async fn a_call_with_an_effect_is_never_the_probe() {
    let breaker = breaker();
    (0..3).for_each(|_| fail(&breaker));
    wait_for_probe(&breaker).await;
    let Admission::ProbeFirst(probe) = breaker.admit(false) else { panic!("not the probe") };
    assert!(matches!(breaker.admit(false), Admission::Refused(_)));
    probe.report(CallOutcome::Answered);
    assert!(matches!(breaker.admit(false), Admission::Pass(_)));
}

#[tokio::test(start_paused = true)]
async fn after_a_cancelled_probe_the_next_one_cannot_be_cancelled() {
    let breaker = breaker();
    (0..3).for_each(|_| fail(&breaker));
    wait_for_probe(&breaker).await;
    drop(pass(&breaker));
    let Admission::ProbeFirst(own) = breaker.admit(true) else {
        panic!("its caller may go away as well")
    };
    // If even the transport's own probe is cancelled, the next one waits.
    drop(own);
    assert_penalty(&breaker, SETTINGS.first);
    wait_for_probe(&breaker).await;
    let Admission::ProbeFirst(own) = breaker.admit(true) else {
        panic!("its caller may go away as well")
    };
    own.report(CallOutcome::Failed(None));
    wait_for_probe(&breaker).await;
    pass(&breaker).report(CallOutcome::Answered);
    assert_eq!(breaker.refused_for(), None);
}

#[tokio::test(start_paused = true)]
async fn a_throttled_probe_is_repeated_after_its_retry_after_and_doubles_nothing() {
    let breaker = breaker();
    (0..3).for_each(|_| fail(&breaker));
    wait_for_probe(&breaker).await;
    pass(&breaker).report(CallOutcome::Throttled(None));
    assert_penalty(&breaker, SETTINGS.first);
    wait_for_probe(&breaker).await;
    pass(&breaker).report(CallOutcome::Throttled(Some(Duration::from_secs(30))));
    assert_eq!(breaker.refused_for(), Some(Duration::from_secs(30)));
    wait_for_probe(&breaker).await;
    fail(&breaker);
    assert_penalty(&breaker, 2 * SETTINGS.first);
}

#[tokio::test(start_paused = true)]
async fn only_the_retry_after_of_a_probe_counts_and_for_five_minutes_at_most() {
    for (retry_after, wait) in [(20, 20), (3_600, 300)] {
        let breaker = breaker();
        let failed = CallOutcome::Failed(Some(Duration::from_secs(retry_after)));
        (0..3).for_each(|_| pass(&breaker).report(failed));
        assert_penalty(&breaker, SETTINGS.first);
        wait_for_probe(&breaker).await;
        pass(&breaker).report(failed);
        assert_eq!(breaker.refused_for(), Some(Duration::from_secs(wait)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_false_recovery_does_not_shorten_the_penalty_and_a_true_one_does() {
    let breaker = breaker();
    (0..3).for_each(|_| fail(&breaker));
    for seconds in [2, 4, 4] {
        wait_for_probe(&breaker).await;
        pass(&breaker).report(CallOutcome::Answered);
        // Too few answers in a row.
        pass(&breaker).report(CallOutcome::Answered);
        pass(&breaker).report(CallOutcome::Answered);
        (0..3).for_each(|_| fail(&breaker));
        assert_penalty(&breaker, Duration::from_secs(seconds));
    }
    wait_for_probe(&breaker).await;
    pass(&breaker).report(CallOutcome::Answered);
    (0..3).for_each(|_| pass(&breaker).report(CallOutcome::Answered));
    (0..3).for_each(|_| fail(&breaker));
    assert_penalty(&breaker, SETTINGS.first);
}

#[tokio::test(start_paused = true)]
async fn calls_that_began_before_the_last_change_are_ignored() {
    let breaker = breaker();
    let mut old: Vec<_> = (0..8).map(|_| pass(&breaker)).collect();
    (0..3).for_each(|_| old.pop().unwrap().report(CallOutcome::Failed(None)));
    let wait = breaker.refused_for();
    old.pop().unwrap().report(CallOutcome::Failed(None));
    old.pop().unwrap().report(CallOutcome::Answered);
    assert_eq!(breaker.refused_for(), wait);
    wait_for_probe(&breaker).await;
    let probe = pass(&breaker);
    old.pop().unwrap().report(CallOutcome::Failed(None));
    old.pop().unwrap().report(CallOutcome::Answered);
    drop(old);
    assert_eq!(breaker.refused_for(), Some(SETTINGS.first));
    probe.report(CallOutcome::Answered);
    assert_eq!(breaker.refused_for(), None);
}
