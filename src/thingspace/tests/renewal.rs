//! One owner of the tokens.

use futures_util::future::join_all;
use tokio::time::timeout;

use super::*;

#[tokio::test]
async fn a_thousand_calls_on_a_cold_client_cost_one_token_and_one_login() {
    let world = world(manual()).await;
    let request = world.request();
    for outcome in join_all((0..1000).map(|_| world.poll(&request))).await {
        outcome.unwrap();
    }
    let ledger = world.handle.ledger();
    assert_eq!((ledger.token_requests(), ledger.logins(), ledger.polls()), (1, 1, 1000));
}

/// One renewal of each token serves all calls, for whichever token they were refused.
#[tokio::test]
async fn a_thousand_refused_calls_cost_one_renewal() {
    let world = world(manual()).await;
    let request = world.request();
    world.poll(&request).await.unwrap();
    world.handle.expire_bearer();
    world.handle.expire_sessions();
    for outcome in join_all((0..1000).map(|_| world.poll(&request))).await {
        outcome.unwrap();
    }
    let ledger = world.handle.ledger();
    assert_eq!((ledger.token_requests(), ledger.logins()), (2, 2));
}

/// Calls under way when a session ends are repeated at the rate of calls, not all at once.
#[tokio::test]
async fn repeats_after_a_renewal_keep_to_the_rate() {
    const CALLS: u64 = 20;
    let world = configured(manual(), |config| config.calls_per_second = 10).await;
    let request = world.request();
    world.poll(&request).await.unwrap();
    let gate = Gate::default();
    world.handle.inject(Fault::always(
        Endpoint::Status,
        When::BeforeEffect,
        What::Hold(gate.clone()),
    ));
    let began = Instant::now();
    let calls = join_all((0..CALLS).map(|_| world.poll(&request)));
    let expire = async {
        world
            .handle
            .wait_until(PATIENCE, |ledger| ledger.in_flight(Endpoint::Status) == CALLS)
            .await;
        let first = began.elapsed();
        world.handle.expire_sessions();
        world.handle.clear_faults();
        gate.open();
        (first, Instant::now())
    };
    let (outcomes, (first, expired)) = tokio::join!(calls, expire);
    for outcome in outcomes {
        outcome.unwrap();
    }
    let repeats = expired.elapsed();
    assert!(repeats * 10 >= first * 8, "{first:?} to send them, {repeats:?} to repeat them");
    assert_eq!(world.handle.ledger().logins(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_lived_tokens_cost_no_call() {
    let world = world(Options {
        bearer_lifetime: Duration::from_secs(3),
        session_lifetime: Some(Duration::from_secs(2)),
        ..manual()
    })
    .await;
    let request = world.request();
    // From here on the secrets are derived, which takes a while.
    world.poll(&request).await.unwrap();
    let end = Instant::now() + Duration::from_secs(8);
    let load = (0..8).map(async |caller| {
        let mut calls = 0;
        while Instant::now() < end {
            if caller == 0 {
                world.order().await.unwrap();
            } else {
                world.poll(&request).await.unwrap();
            }
            calls += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        calls
    });
    let calls: usize = join_all(load).await.into_iter().sum();
    let ledger = world.handle.ledger();
    assert!(calls > 0);
    assert!(
        ledger.bearers_issued >= 2 && ledger.session_expiries >= 2,
        "nothing expired: {ledger:?}"
    );
    assert!(ledger.token_requests() <= ledger.bearers_issued + 2, "{ledger:?}");
    // The first login follows no expiry. A login with an expired bearer token is refused before the
    // password is checked.
    assert!(ledger.logins_accepted <= ledger.session_expiries + 1, "{ledger:?}");
    assert_eq!(ledger.logins_rejected, 0);
}

#[tokio::test]
async fn a_late_refusal_does_not_discard_a_newer_token() {
    let world = world(manual()).await;
    let request = world.request();
    world.poll(&request).await.unwrap();
    let expiries: [fn(&Handle); 2] = [Handle::expire_bearer, Handle::expire_sessions];
    for expire in expiries {
        let gate = world.hold(Endpoint::Status);
        let late = world.poll(&request);
        let meanwhile = async {
            world.arrived(Endpoint::Status).await;
            expire(&world.handle);
            world.poll(&request).await.unwrap();
            gate.open();
        };
        let (outcome, ()) = tokio::join!(late, meanwhile);
        outcome.unwrap();
    }
    let ledger = world.handle.ledger();
    assert_eq!((ledger.token_requests(), ledger.logins()), (2, 2));
}

#[tokio::test]
async fn a_cancelled_caller_does_not_abort_the_renewal() {
    for endpoint in [Endpoint::Token, Endpoint::Login] {
        let world = world(manual()).await;
        let request = world.request();
        let gate = world.hold(endpoint);
        tokio::select! {
            outcome = world.poll(&request) => panic!("{outcome:?}"),
            () = world.arrived(endpoint) => {}
        }
        gate.open();
        world.handle.wait_until(PATIENCE, |ledger| ledger.logins_accepted == 1).await;
        world.poll(&request).await.unwrap();
        let ledger = world.handle.ledger();
        assert_eq!((ledger.token_requests(), ledger.logins()), (1, 1), "{endpoint:?}");
    }
}

/// Calls until the recheck of the files has happened more than once, then until the new file is
/// used.
async fn stays_rejected_until(world: &World, file: &str, fix: impl FnOnce()) {
    let request = world.request();
    let outcomes = || async { join_all((0..50).map(|_| world.poll(&request))).await };
    let first = outcomes().await;
    assert!(first.iter().all(|outcome| matches!(outcome, Err(Error::CredentialsRejected { .. }))));
    let stays_blocked = || async {
        let end = Instant::now() + Duration::from_millis(1500);
        while Instant::now() < end {
            let outcomes = outcomes().await;
            assert!(
                outcomes.iter().all(|outcome| matches!(outcome, Err(Error::LoginBlocked { .. })))
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    stays_blocked().await;
    fix();
    // A file that is written again with the same bytes has not changed.
    let path = world.files.path().join(file);
    fs::write(&path, fs::read(&path).unwrap()).unwrap();
    stays_blocked().await;
    fs::write(path, "new").unwrap();
    let recovered = async {
        while world.poll(&request).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, recovered).await.unwrap();
}

#[tokio::test]
async fn a_rejected_password_is_sent_once_until_the_file_changes() {
    let each = [400_u16, 401, 403].map(async |login_refusal| {
        let options = Options { login_refusal: login_refusal.try_into().unwrap(), ..manual() };
        let world = world(options).await;
        world.handle.set_password("new");
        stays_rejected_until(&world, "password", || {
            let ledger = world.handle.ledger();
            assert_eq!((ledger.logins(), ledger.token_requests()), (1, 1));
        })
        .await;
        let ledger = world.handle.ledger();
        assert_eq!((ledger.logins_rejected, ledger.logins_accepted), (1, 1), "{login_refusal}");
    });
    join_all(each).await;
}

/// A token request locks no user, so it is repeated, with growing delays. More calls do not shorten
/// the delays.
#[tokio::test]
async fn a_rejected_secret_is_tried_again_with_a_delay_and_a_new_one_at_once() {
    let world = world(Options { secret: "new".into(), ..manual() }).await;
    let rejected = |outcome: &Called| matches!(outcome, Err(Error::CredentialsRejected { .. }));
    // The first rejection may be ThingSpace's error, so the first call waits for the second one.
    for _ in 0..2 {
        world.call_for(Duration::from_secs(2), rejected).await;
        assert_eq!(world.handle.ledger().token_requests(), 2);
    }
    world.write("secret", "new");
    world.call_until("the new secret is used", |_, outcome| outcome.is_ok()).await;
    let ledger = world.handle.ledger();
    assert_eq!((ledger.token_requests(), ledger.logins()), (3, 1));
}

/// A block page of a CDN, or an identity provider that restarts.
#[tokio::test]
async fn a_token_endpoint_that_refused_for_a_while_is_used_again_without_an_operator_or_a_call() {
    for what in [What::invalid_credentials(), What::page(http::StatusCode::FORBIDDEN)] {
        let mut world = configured(manual(), hasty).await;
        world.poll(&world.request()).await.unwrap();
        let mut health = world.client.login_health().next().unwrap().1;
        world.handle.inject(Fault::always(Endpoint::Token, When::BeforeEffect, what));
        world.handle.expire_bearer();
        world.call_until("it was refused often", |ledger, _| ledger.token_requests() >= 5).await;
        assert!(!health.wait_for(|said| !said.healthy).await.unwrap().sentence.contains("unblock"));
        world.restart();
        world.call_for(Duration::from_secs(1), Result::is_err).await;
        health = world.client.login_health().next().unwrap().1;
        world.handle.clear_faults();
        tokio::time::timeout(PATIENCE, health.wait_for(|said| said.healthy))
            .await
            .unwrap()
            .unwrap();
        world.call_until("it goes on", |_, outcome| outcome.is_ok()).await;
        assert_eq!(world.handle.ledger().logins(), 1);
    }
}

#[tokio::test]
async fn a_login_with_a_stale_bearer_is_repeated_and_does_not_count() {
    let world = world(manual()).await;
    let request = world.request();
    let gate = world.hold(Endpoint::Login);
    let meanwhile = async {
        world.arrived(Endpoint::Login).await;
        world.handle.expire_bearer();
        gate.open();
    };
    let (outcome, ()) = tokio::join!(world.poll(&request), meanwhile);
    outcome.unwrap();
    let ledger = world.handle.ledger();
    assert_eq!((ledger.token_requests(), ledger.logins(), ledger.logins_rejected), (2, 2, 0));
}

#[tokio::test]
async fn one_failed_login_or_token_request_costs_no_caller_an_error() {
    for (endpoint, token_requests, logins) in [(Endpoint::Login, 1, 2), (Endpoint::Token, 2, 1)] {
        for what in [answer(500, "x"), What::Drop] {
            let world = world(manual()).await;
            let request = world.request();
            world.handle.inject(Fault::once(endpoint, When::BeforeEffect, what.clone()));
            for outcome in join_all((0..20).map(|_| world.poll(&request))).await {
                outcome.unwrap();
            }
            let ledger = world.handle.ledger();
            assert_eq!(
                (ledger.token_requests(), ledger.logins()),
                (token_requests, logins),
                "{what:?}"
            );
        }
    }
}

/// There is no login, and operators see why.
#[tokio::test]
async fn operators_see_that_the_api_manager_refuses_logins() {
    for body in [r#"{"fault":{"code":"900901"}}"#, r#"{"fault":{"code":"900908"}}"#] {
        let world = world(manual()).await;
        let mut health = world.client.login_health().next().unwrap().1;
        world.handle.inject(Fault::always(Endpoint::Login, When::BeforeEffect, answer(401, body)));
        assert!(world.poll(&world.request()).await.is_err());
        let told = health.wait_for(|said| said.sentence.contains("no token"));
        timeout(PATIENCE, told).await.unwrap().unwrap();
        assert_eq!(world.handle.ledger().rejected_in_a_row, 0);
    }
}

#[tokio::test]
async fn a_bearer_that_is_refused_for_a_moment_costs_no_caller_an_error() {
    let world = world(manual()).await;
    let request = world.request();
    world.poll(&request).await.unwrap();
    let fault = answer(401, r#"{"fault":{"code":"900901"}}"#);
    world.handle.inject(Fault::always(Endpoint::Status, When::BeforeEffect, fault));
    let recovered = async {
        world.handle.wait_until(PATIENCE, |ledger| ledger.token_requests() == 2).await;
        world.handle.clear_faults();
    };
    let calls = join_all((0..3).map(|_| world.poll(&request)));
    let (outcomes, ()) = tokio::join!(calls, recovered);
    for outcome in outcomes {
        outcome.unwrap();
    }
    assert_eq!(world.handle.ledger().logins(), 1);
}

#[tokio::test]
async fn a_throttled_login_or_token_request_is_a_throttled_call() {
    for endpoint in [Endpoint::Token, Endpoint::Login] {
        let world = world(manual()).await;
        let throttle = What::Throttle { retry_after: Some(40) };
        world.handle.inject(Fault::always(endpoint, When::BeforeEffect, throttle));
        for _ in 0..20 {
            match world.poll(&world.request()).await {
                Err(Error::Throttled { retry_after: Some(wait) }) => {
                    assert!(wait > Duration::from_secs(20));
                }
                other => panic!("{endpoint:?}: {other:?}"),
            }
        }
        assert_eq!(world.handle.ledger().calls(endpoint), 1);
    }
}

/// A 5xx says nothing about the secret, with any error code.
#[tokio::test]
async fn a_failing_token_server_rejects_no_credentials() {
    let world = configured(manual(), hasty).await;
    let failure = answer(500, r#"{"fault":{"code":"900900"}}"#);
    world.handle.inject(Fault {
        times: Some(3),
        ..Fault::once(Endpoint::Token, When::BeforeEffect, failure)
    });
    let unavailable = |outcome: &Called| matches!(outcome, Err(Error::NotSent { .. }) | Ok(()));
    let recovered = async {
        loop {
            let outcome = world.poll(&world.request()).await.map(drop);
            assert!(unavailable(&outcome), "{outcome:?}");
            if outcome.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, recovered).await.unwrap();
    assert_eq!(world.handle.ledger().token_requests(), 4);
}

#[tokio::test]
async fn a_missing_file_is_named_and_nothing_is_sent_until_it_is_back() {
    let world = world(manual()).await;
    fs::remove_file(world.files.path().join("user")).unwrap();
    let unreadable = |outcome: &Called| matches!(outcome, Err(Error::CredentialsUnreadable { .. }));
    world.call_for(Duration::from_secs(1), unreadable).await;
    let mut health = world.client.login_health().next().unwrap().1;
    let said = tokio::time::timeout(PATIENCE, health.wait_for(|said| !said.healthy)).await.unwrap();
    assert!(said.unwrap().sentence.contains("/user cannot be read"), "the file is named");
    assert_eq!(world.handle.ledger().token_requests(), 0);
    world.write("user", "simulator-user");
    world.call_until("it goes on", |_, outcome| outcome.is_ok()).await;
    tokio::time::timeout(PATIENCE, health.wait_for(|said| said.healthy)).await.unwrap().unwrap();
}

#[tokio::test]
async fn nothing_secret_is_in_debug_output() {
    let world = world(manual()).await;
    world.poll(&world.request()).await.unwrap();
    let shown = format!("{:?} {:?}", world.client, world.prepare().await);
    assert!(shown.contains("value: Sensitive"), "{shown}");
    for secret in ["simulator-", "Bearer", "Basic"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}
