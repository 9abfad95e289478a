//! The closed list: what each outcome of the POST is, and that it is sent once.

use super::*;
use crate::{
    simulator::{Ledger, SessionRefusal},
    thingspace::RefusalKind,
};

fn placed(ledger: &Ledger) -> (u64, usize) {
    (ledger.calls(Endpoint::Download), ledger.orders.len())
}

#[tokio::test]
async fn an_order_arrives_as_it_was_given() {
    let world = world(manual()).await;
    let order = order(10_000);
    let id = world.client.place_order(world.prepare().await, &order, in_time()).await.unwrap();
    let ledger = world.handle.ledger();
    assert_eq!(placed(&ledger), (1, 1));
    assert_eq!(ledger.orders[0].request_id, id);
    assert_eq!(ledger.orders[0].devices[..], order.devices[..]);
    assert_eq!(ledger.orders[0].service_plan.as_deref(), Some("a plan"));
}

#[tokio::test]
async fn a_refused_token_is_renewed_and_the_order_repeated_once_for_each_kind() {
    let world = world(manual()).await;
    world.order().await.unwrap();
    for (bearer, session) in [(true, false), (false, true), (true, true)] {
        let (calls, orders) = placed(&world.handle.ledger());
        if bearer {
            world.handle.expire_bearer();
        }
        if session {
            world.handle.expire_sessions();
        }
        world.order().await.unwrap();
        let repeats = u64::from(bearer) + u64::from(session);
        assert_eq!(
            placed(&world.handle.ledger()),
            (calls + 1 + repeats, orders + 1),
            "{bearer} {session}"
        );
    }
    let ledger = world.handle.ledger();
    assert_eq!((ledger.token_requests(), ledger.logins()), (3, 3));
}

#[tokio::test]
async fn sessions_are_refused_with_any_status_or_a_bare_401() {
    for refusal in [SessionRefusal::Coded, SessionRefusal::Bare]
        .into_iter()
        .zip([403_u16, 401])
        .map(|(refusal, status)| refusal(status.try_into().unwrap()))
    {
        let world = world(Options { session_refusal: refusal, ..manual() }).await;
        world.order().await.unwrap();
        world.handle.expire_sessions();
        world.order().await.unwrap();
        let ledger = world.handle.ledger();
        assert_eq!((placed(&ledger), ledger.logins()), ((3, 2), 2), "{refusal:?}");
    }
}

#[tokio::test]
async fn what_is_refused_again_is_not_sent_a_third_time() {
    let world = world(manual()).await;
    world.prepare().await;
    // Both are renewed, the bearer is the same again, the session is new.
    world.handle.inject(Fault::always(Endpoint::Download, When::BeforeEffect, answer(401, "")));
    assert!(
        matches!(world.order().await, Err(Error::CredentialsRejected { name }) if name == "test")
    );
    let ledger = world.handle.ledger();
    assert_eq!((placed(&ledger), ledger.token_requests(), ledger.logins()), ((2, 0), 2, 2));
}

/// Whoever waits for its lease may take it for lost by then.
#[tokio::test]
async fn an_order_whose_token_took_too_long_is_not_sent_again() {
    let world = world(manual()).await;
    world.order().await.unwrap();
    let permit = world.prepare().await;
    world.handle.expire_sessions();
    let (gate, send_by) =
        (world.hold(Endpoint::Login), Instant::now() + Duration::from_millis(500));
    let order = order(1);
    let late = world.client.place_order(permit, &order, send_by);
    let meanwhile = async {
        world.arrived(Endpoint::Login).await;
        tokio::time::sleep_until(send_by + Duration::from_millis(50)).await;
        gate.open();
    };
    let (outcome, ()) = tokio::join!(late, meanwhile);
    assert!(matches!(outcome, Err(Error::NotSent { .. })), "{outcome:?}");
    assert_eq!(placed(&world.handle.ledger()), (2, 1), "it was refused once, and that was all");
    // There is a session now, and it is too late from the start.
    let outcome = world.client.place_order(world.prepare().await, &order, Instant::now()).await;
    assert!(matches!(outcome, Err(Error::NotSent { .. })), "{outcome:?}");
    assert_eq!(placed(&world.handle.ledger()), (2, 1));
}

#[tokio::test]
async fn a_refused_bearer_that_is_handed_out_again_is_not_sent_again() {
    let world = world(manual()).await;
    world.prepare().await;
    let fault = answer(401, r#"{"fault":{"code":"900901"}}"#);
    world.handle.inject(Fault::always(Endpoint::Download, When::BeforeEffect, fault));
    let began = tokio::time::Instant::now();
    for _ in 0..5 {
        assert!(matches!(world.order().await, Err(Error::NotSent { retry_after: Some(_), .. })));
    }
    let ledger = world.handle.ledger();
    // Five orders met the same bearer, and asked for another once in a second, after the first.
    assert_eq!(placed(&ledger), (5, 0));
    assert!(
        ledger.token_requests() <= 2 + began.elapsed().as_secs(),
        "{}",
        ledger.token_requests()
    );
}

#[tokio::test]
async fn refusals_say_what_was_refused() {
    let world = world(Options { service_plans: vec!["another".into()], ..manual() }).await;
    let foreign = Order { account: named("0000999999-00001"), ..order(1) };
    let unknown = Order { account: named("0000000000-00000"), ..order(1) };
    let cases = [
        (order(1), RefusalKind::PlanNotFound),
        (foreign, RefusalKind::AccountForbidden),
        (unknown, RefusalKind::AccountNotFound),
        (Order { service_plan: "it's".into(), ..order(1) }, RefusalKind::InvalidInput),
    ];
    for (order, kind) in cases {
        match world.client.place_order(world.prepare().await, &order, in_time()).await {
            Err(Error::Refused(refusal)) => assert_eq!((refusal.kind, refusal.status), (kind, 400)),
            other => panic!("{order:?}: {other:?}"),
        }
    }
    assert_eq!(placed(&world.handle.ledger()), (4, 0));
}

#[tokio::test]
async fn throttling_says_how_long() {
    let world = world(manual()).await;
    world.prepare().await;
    for retry_after in [Some(7), None] {
        let throttle = What::Throttle { retry_after };
        world.handle.inject(Fault::once(Endpoint::Download, When::BeforeEffect, throttle));
        let wanted = retry_after.map(Duration::from_secs);
        assert!(matches!(
            world.order().await,
            Err(Error::Throttled { retry_after }) if retry_after == wanted
        ));
    }
    assert_eq!(placed(&world.handle.ledger()), (2, 0));
}

#[tokio::test]
async fn everything_else_is_ambiguous_and_never_sent_again() {
    let world = world(manual()).await;
    world.prepare().await;
    let spoiled = || {
        [
            answer(408, r#"{"errorCode":"408"}"#),
            answer(500, r#"{"errorCode":"INTERNAL_ERROR"}"#),
            answer(503, "unavailable"),
            answer(403, "<am:fault/>"),
            answer(200, r#"{"status":"Success"}"#),
            answer(200, ""),
            What::Redirect { location: "/api/m2m/v1/devices/profile/actions/download".into() },
            What::Drop,
            What::CutBody,
        ]
    };
    let mut orders = 0;
    let mut calls = 0;
    for when in [When::BeforeEffect, When::AfterEffect] {
        for what in spoiled() {
            world.handle.inject(Fault::once(Endpoint::Download, when, what.clone()));
            match world.order().await {
                Err(Error::OutcomeUnknown { .. }) => {}
                other => panic!("{when:?} {what:?}: {other:?}"),
            }
            calls += 1;
            orders += usize::from(when == When::AfterEffect);
            assert_eq!(placed(&world.handle.ledger()), (calls, orders), "{when:?} {what:?}");
        }
    }
    assert!(world.handle.ledger().unexpected.is_empty());
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_ambiguous() {
    let world = world(manual()).await;
    world.prepare().await;
    let long = format!(r#"{{"requestId":"x","padding":"{}"}}"#, "x".repeat(2 << 20));
    world.handle.inject(Fault::once(Endpoint::Download, When::AfterEffect, answer(200, &long)));
    assert!(matches!(world.order().await, Err(Error::OutcomeUnknown { .. })));
}

#[tokio::test]
async fn no_answer_in_time_is_ambiguous() {
    let world =
        configured(manual(), |config| config.order_timeout = Duration::from_millis(200)).await;
    world.prepare().await;
    let gate = world.hold(Endpoint::Download);
    assert!(matches!(world.order().await, Err(Error::OutcomeUnknown { .. })));
    gate.open();
    // It was executed all the same.
    world.handle.wait_until(PATIENCE, |ledger| ledger.orders.len() == 1).await;
    assert_eq!(placed(&world.handle.ledger()), (1, 1));
}

#[tokio::test]
async fn no_connection_is_not_sent() {
    let World { client, handle, running, files: _files, .. } = world(manual()).await;
    let permit = client.prepare_order(&account(), in_time()).await.unwrap();
    drop(running);
    // The pooled connection may be found broken or still be there, which is ambiguous; then there
    // is none.
    let mut outcome = client.place_order(permit, &order(1), in_time()).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !matches!(outcome, Err(Error::NotConnected { .. })) {
        assert!(tokio::time::Instant::now() < deadline, "{outcome:?}");
        let permit = client.prepare_order(&account(), in_time()).await.unwrap();
        outcome = client.place_order(permit, &order(1), in_time()).await;
    }
    assert!(handle.ledger().orders.is_empty());
}

#[tokio::test]
async fn no_host_of_that_name_is_not_sent() {
    let files = tempfile::tempdir().unwrap();
    let config = thingspace("http://thingspace.invalid/api".into());
    let client = cold(&config, &files, &store(&files));
    let error = client.prepare_order(&account(), in_time()).await.unwrap_err();
    assert!(matches!(error, Error::NotSent { retry_after: Some(_), .. }), "{error}");
}

#[tokio::test]
async fn an_account_without_credentials_is_not_served() {
    let world = world(manual()).await;
    let other = named("0000123456-00009");
    assert!(world.client.serves(&account()) && !world.client.serves(&other));
    assert!(matches!(
        world.client.prepare_order(&other, in_time()).await,
        Err(Error::NotSent { .. })
    ));
    assert_eq!(world.handle.ledger().token_requests(), 0);
}
