//! What is tried again, how often, and what is not.

use tokio::time::{Instant, timeout};

use super::{super::LoginHealth, *};

/// What passes, for calls without effect.
fn passing() -> [What; 8] {
    [
        answer(408, r#"{"errorCode":"408"}"#),
        answer(500, r#"{"errorCode":"500"}"#),
        answer(502, "<html>"),
        answer(503, ""),
        answer(200, "<html>"),
        answer(200, ""),
        What::Drop,
        What::CutBody,
    ]
}

#[tokio::test]
async fn a_question_is_tried_three_times() {
    let world = world(manual()).await;
    let request = world.request();
    world.poll(&request).await.unwrap();
    let polls = || world.handle.ledger().polls();
    for what in passing() {
        for (failing, tries) in [(1, 2), (2, 3)] {
            let before = polls();
            let fault = Fault::once(Endpoint::Status, When::BeforeEffect, what.clone());
            world.handle.inject(Fault { times: Some(failing), ..fault });
            assert!(world.poll(&request).await.is_ok(), "{what:?}");
            assert_eq!(polls() - before, tries, "{what:?}");
        }
        let before = polls();
        world.handle.inject(Fault::always(Endpoint::Status, When::BeforeEffect, what.clone()));
        assert!(
            matches!(world.poll(&request).await, Err(Error::OutcomeUnknown { .. })),
            "{what:?}"
        );
        assert_eq!(polls() - before, 3, "{what:?}");
        world.handle.clear_faults();
    }
}

#[tokio::test]
async fn what_does_not_pass_is_not_tried_again() {
    let world = world(manual()).await;
    let request = world.request();
    let lasting = [
        answer(400, r#"{"errorCode":"UnifiedWebService.INPUT_INVALID.Account.NotDefined"}"#),
        answer(403, "<html>"),
        answer(404, "<html>"),
        answer(404, r#"{"errorCode":"404","errorMessage":"The request was not found"}"#),
        What::Redirect { location: "/api/elsewhere".into() },
        What::Throttle { retry_after: None },
        What::Throttle { retry_after: Some(7) },
        // Too long to read.
        answer(200, &"x".repeat(17 << 20)),
    ];
    for (n, what) in (1..).zip(lasting) {
        world.handle.inject(Fault::once(Endpoint::Status, When::BeforeEffect, what.clone()));
        let _ = world.poll(&request).await;
        assert_eq!(world.handle.ledger().polls(), n, "{n}");
    }
}

#[tokio::test]
async fn a_short_throttling_is_waited_for() {
    let world = world(manual()).await;
    let request = world.request();
    world.poll(&request).await.unwrap();
    let began = Instant::now();
    let throttle = What::Throttle { retry_after: Some(1) };
    world.handle.inject(Fault::once(Endpoint::Status, When::BeforeEffect, throttle));
    world.poll(&request).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(world.handle.ledger().polls(), 3);
}

#[tokio::test]
async fn each_try_has_a_turn_of_its_own() {
    let world = configured(manual(), |config| config.calls_per_second = 1).await;
    let request = world.request();
    // All but one of the calls that may follow each other at once.
    for _ in 0..2 {
        world.poll(&request).await.unwrap();
    }
    world.handle.inject(Fault::once(Endpoint::Status, When::BeforeEffect, What::Drop));
    let began = Instant::now();
    world.poll(&request).await.unwrap();
    // The second try had to wait for the rate.
    assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
}

/// With their effects, or none: only what is provably not sent is sent again.
#[tokio::test]
async fn registrations_are_listed_three_times_and_changed_once() {
    let world = world(manual()).await;
    let ledger = || {
        let ledger = world.handle.ledger();
        [Endpoint::ListCallbacks, Endpoint::RegisterCallback, Endpoint::DeregisterCallback]
            .map(|endpoint| ledger.calls(endpoint))
    };
    let (url, password) = ("https://example.com/x".into(), "password".into());
    let target = Target { url: &url, username: "user", password: &password };
    for what in passing() {
        for endpoint in
            [Endpoint::ListCallbacks, Endpoint::RegisterCallback, Endpoint::DeregisterCallback]
        {
            world.handle.inject(Fault::always(endpoint, When::BeforeEffect, what.clone()));
        }
        let before = ledger();
        world.client.callbacks(&account()).await.unwrap_err();
        world.client.register_callback(&account(), "AService", &target).await.unwrap_err();
        world.client.deregister_callback(&account(), "AService").await.unwrap_err();
        let after = ledger();
        let calls: Vec<_> =
            after.iter().zip(before).map(|(after, before)| after - before).collect();
        assert_eq!(calls, [3, 1, 1], "{what:?}");
        world.handle.clear_faults();
    }
}

/// ThingSpace's token endpoint answers one request with 401 for no reason.
#[tokio::test]
async fn one_rejected_token_request_is_no_rejection_of_the_credentials() {
    let unauthorized = || answer(401, "");
    let world = configured(manual(), hasty).await;
    let request = world.request();
    world.poll(&request).await.unwrap();
    let mut health = world.client.login_health().next().unwrap().1;
    timeout(PATIENCE, health.wait_for(|said| said.healthy)).await.unwrap().unwrap();
    let told = tokio::spawn(async move {
        let rejected = |said: &LoginHealth| !said.healthy && said.sentence.contains("application");
        timeout(PATIENCE, health.wait_for(rejected)).await.is_ok()
    });
    world.handle.inject(Fault::once(Endpoint::Token, When::BeforeEffect, unauthorized()));
    world.handle.expire_bearer();
    world.poll(&request).await.unwrap();
    assert_eq!(world.handle.ledger().token_requests(), 3);
    assert!(!told.is_finished(), "operators were told to correct the files");

    world.handle.inject(Fault::always(Endpoint::Token, When::BeforeEffect, unauthorized()));
    world.handle.expire_bearer();
    let refused = world.poll(&request).await.unwrap_err();
    assert!(matches!(refused, Error::CredentialsRejected { .. }), "{refused}");
    assert!(world.handle.ledger().token_requests() >= 5);
    assert!(told.await.unwrap(), "operators are told after the second");
}

/// If the second attempt is too late to wait for it, the error tells callers to repeat the call.
#[tokio::test]
async fn until_a_rejected_token_request_is_repeated_callers_are_told_to_come_back() {
    let world =
        configured(manual(), |config| config.login_backoff_first = Duration::from_mins(1)).await;
    world.handle.inject(Fault::once(Endpoint::Token, When::BeforeEffect, answer(401, "")));
    let request = world.request();
    for _ in 0..2 {
        let refused = world.poll(&request).await.unwrap_err();
        let Error::NotSent { retry_after: Some(wait), .. } = &refused else {
            panic!("{refused:?}")
        };
        assert!(*wait > Duration::from_secs(30), "{wait:?}");
    }
    let health = world.client.login_health().next().unwrap().1.borrow().clone();
    assert!(health.sentence.contains("once. It is tried again soon"), "{health:?}");
    assert_eq!(world.handle.ledger().token_requests(), 1);
}
