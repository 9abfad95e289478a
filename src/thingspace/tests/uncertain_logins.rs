//! Logins that may have been rejected: without a usable answer, or with an unusual status.

use futures_util::future::join_all;

use super::*;

/// Each of these may be the answer to a login that was rejected.
fn uncertain_answers() -> [What; 5] {
    [answer(500, "x"), answer(404, "x"), answer(408, ""), What::Drop, What::CutBody]
}

#[tokio::test]
async fn a_login_of_unknown_outcome_is_not_repeated_at_once() {
    join_all(uncertain_answers().map(async |what| {
        let world = world(manual()).await;
        let request = world.request();
        world.poll(&request).await.unwrap();
        world.handle.expire_sessions();
        world.handle.inject(Fault::always(Endpoint::Login, When::AfterEffect, what.clone()));
        let began = Instant::now();
        for _ in 0..20 {
            match world.poll(&request).await {
                Err(Error::NotSent { retry_after: Some(wait), .. }) => {
                    assert!(wait > Duration::from_secs(3));
                }
                other => panic!("{what:?}: {other:?}"),
            }
        }
        // The first caller waited for the second login. The third is due in 15 minutes.
        assert!(began.elapsed() >= Duration::from_secs(5), "{what:?}");
        let ledger = world.handle.ledger();
        assert_eq!((ledger.token_requests(), ledger.logins()), (1, 3), "{what:?}");
    }))
    .await;
}

/// A restart does not forget a login that may have been rejected.
#[tokio::test]
async fn logins_of_unknown_outcome_stop_before_the_user_is_locked() {
    let answers =
        [answer(500, "x"), answer(404, "x"), answer(408, ""), answer(200, "{}"), What::Drop];
    let each = answers.map(async |what| {
        let mut world = configured(manual(), hasty).await;
        world.poll(&world.request()).await.unwrap();
        world.handle.set_password("changed");
        world.handle.expire_sessions();
        world.handle.inject(Fault::always(Endpoint::Login, When::AfterEffect, what.clone()));
        let stopped = |ledger: &Ledger, outcome: &Called| {
            ledger.rejected_in_a_row == 3 && is_blocked(outcome)
        };
        world.call_until("logins are stopped", stopped).await;
        world.restart();
        world.call_until("logins are still stopped", stopped).await;
        // One more login is permitted, and the next one only after a login elsewhere.
        assert_eq!(world.unblock(UnblockMode::Retry).await, UnblockOutcome::Done);
        world
            .call_until("one more login is rejected", |ledger, outcome| {
                ledger.rejected_in_a_row == 4 && is_blocked(outcome)
            })
            .await;
        assert_eq!(
            world.unblock(UnblockMode::Retry).await,
            UnblockOutcome::Refused(UnblockRefusal::LastAttempt)
        );
        world.restart();
        world.call_for(Duration::from_millis(300), is_blocked).await;
        assert_eq!(
            (world.handle.ledger().rejected_in_a_row, world.handle.ledger().locked),
            (4, false),
            "{what:?}"
        );
    });
    join_all(each).await;
}

/// The code in the answer shows that the login was rejected, with any HTTP status.
#[tokio::test]
async fn a_rejection_counts_with_every_status() {
    let each = [200_u16, 404, 408, 409, 422, 423, 500, 502, 503].map(async |status| {
        let login_refusal = status.try_into().unwrap();
        let mut world = configured(Options { login_refusal, ..manual() }, hasty).await;
        world.poll(&world.request()).await.unwrap();
        world.handle.set_password("changed");
        world.handle.expire_sessions();
        world.call_until("logins are stopped", |_, outcome| is_blocked(outcome)).await;
        world.restart();
        world.call_for(Duration::from_millis(500), is_blocked).await;
        assert_eq!(world.handle.ledger().rejected_in_a_row, 2, "{status}");
    });
    join_all(each).await;
}

#[tokio::test]
async fn the_first_login_of_all_is_repeated_twice_while_its_outcome_is_unknown() {
    for what in uncertain_answers() {
        let world = configured(manual(), hasty).await;
        world.handle.inject(Fault::always(Endpoint::Login, When::AfterEffect, what.clone()));
        world.call_until("logins are stopped", |_, outcome| is_blocked(outcome)).await;
        assert_eq!(world.handle.ledger().logins(), 3, "{what:?}");
        world.handle.clear_faults();
        assert_eq!(
            world.unblock(UnblockMode::Retry).await,
            UnblockOutcome::Refused(UnblockRefusal::LastAttempt)
        );
        assert_eq!(world.unblock(UnblockMode::LoggedIn).await, UnblockOutcome::Done);
        world.poll(&world.request()).await.unwrap();
        assert_eq!(world.unblock(UnblockMode::Retry).await, UnblockOutcome::NotNeeded);
    }
}
