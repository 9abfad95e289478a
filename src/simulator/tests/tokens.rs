use std::{collections::HashSet, time::Instant};

use futures_util::future::join_all;

use super::*;
use crate::simulator::{Endpoint, Ledger, SessionRefusal, tokens::SimulatedTokens};

#[tokio::test]
async fn the_token_stays_the_same_until_it_expires() {
    let world = cold(manual()).await;
    let answers = join_all((0..20).map(|_| body(world.token(), 200))).await;
    let tokens: HashSet<String> =
        answers.iter().map(|answer| text(&answer["access_token"])).collect();
    assert_eq!(tokens.len(), 1);
    assert!(answers.iter().all(|answer| answer["expires_in"].as_u64().unwrap() <= 3600));
    world.handle.expire_bearer();
    assert!(!tokens.contains(&text(&body(world.token(), 200).await["access_token"])));
    let ledger = world.handle.ledger();
    assert_eq!((ledger.token_requests(), ledger.bearers_issued), (21, 2));
}

#[tokio::test]
async fn expires_in_is_the_rest_of_the_lifetime() {
    let world = cold(manual()).await;
    assert_eq!(body(world.token(), 200).await["expires_in"], 3600);
    assert!(body(world.token(), 200).await["expires_in"].as_u64().unwrap() < 3600);
}

#[tokio::test]
async fn token_requests_are_refused_as_documented() {
    let world = cold(manual()).await;
    let url = format!("{}/ts/v1/oauth2/token", world.url);
    let post = || world.http.post(&url);
    assert_eq!(body(post(), 401).await["fault"]["code"], "900902");
    assert_eq!(
        body(post().basic_auth("simulator-key", Some("x")), 401).await["fault"]["code"],
        "900901"
    );
    let right = || post().basic_auth("simulator-key", Some("simulator-secret"));
    for request in [right(), right().form(&[("grant_type", "password")])] {
        assert_eq!(body(request, 400).await["error"], "invalid_request");
    }
    assert_eq!(world.handle.ledger().bearers_issued, 0);
}

#[tokio::test]
async fn a_call_needs_the_bearer_before_anything_else() {
    let mut world = cold(manual()).await;
    let bare = || world.http.post(format!("{}/m2m/v1/session/login", world.url));
    assert_eq!(body(bare(), 401).await["fault"]["code"], "900902");
    world.bearer = "wrong".into();
    assert_eq!(body(world.login("simulator-password"), 401).await["fault"]["code"], "900901");
    world.bearer = text(&body(world.token(), 200).await["access_token"]);
    world.handle.expire_bearer();
    assert_eq!(body(world.login("simulator-password"), 401).await["fault"]["code"], "900901");
    // None of these counts as a rejected login.
    let ledger = world.handle.ledger();
    assert_eq!((ledger.logins(), ledger.logins_rejected, ledger.rejected_in_a_row), (3, 0, 0));
}

#[tokio::test]
async fn five_rejections_in_a_row_lock_the_user() {
    let world = world(manual()).await;
    for _ in 0..4 {
        code(world.login("wrong")).await;
    }
    body(world.login("simulator-password"), 200).await;
    assert_eq!(world.handle.ledger().rejected_in_a_row, 0);
    for rejected in 1..=5 {
        assert!(!world.handle.ledger().locked);
        code(world.login("wrong")).await;
        assert_eq!(world.handle.ledger().rejected_in_a_row, rejected);
    }
    assert!(world.handle.ledger().locked);
    code(world.login("simulator-password")).await;
    // Earlier sessions stay valid.
    world.placed(&[device(1)]).await;
    world.handle.unlock();
    body(world.login("simulator-password"), 200).await;
    let ledger = world.handle.ledger();
    assert_eq!((ledger.logins_accepted, ledger.logins_rejected), (3, 10));
}

#[tokio::test]
async fn a_new_password_makes_the_old_one_wrong() {
    let world = world(Options { login_refusal: StatusCode::UNAUTHORIZED, ..manual() }).await;
    world.handle.set_password("new");
    body(world.login("simulator-password"), 401).await;
    body(world.login("new"), 200).await;
}

#[tokio::test]
async fn sessions_are_refused_by_what_is_wrong_with_them() {
    let mut world = world(manual()).await;
    let first = world.session.clone();
    world.session = text(&body(world.login("simulator-password"), 200).await["sessionToken"]);
    world.placed(&[device(1)]).await;
    world.session = first;
    world.placed(&[device(2)]).await;
    world.handle.expire_sessions();
    assert_eq!(code(world.order(&[device(3)])).await, "REQUEST_FAILED.SessionToken.Expired");
    world.session = uuid::Uuid::new_v4().to_string();
    assert_eq!(code(world.order(&[device(3)])).await, "INPUT_INVALID.SessionToken.Invalid");
    world.session = String::new();
    assert_eq!(code(world.order(&[device(3)])).await, "REQUEST_FAILED.SessionToken.Format");
    let ledger = world.handle.ledger();
    assert_eq!((ledger.session_expiries, ledger.orders.len()), (2, 2));
}

#[tokio::test]
async fn sessions_expire_unused_or_old() {
    let zero = Duration::ZERO;
    for options in [
        Options { session_idle: zero, ..manual() },
        Options { session_lifetime: Some(zero), ..manual() },
    ] {
        let world = world(options).await;
        assert_eq!(code(world.order(&[device(1)])).await, "REQUEST_FAILED.SessionToken.Expired");
        assert_eq!(world.handle.ledger().session_expiries, 1);
    }
}

/// The time is an argument, so the test does not wait.
#[test]
fn a_session_lives_as_long_as_it_is_used() {
    let minutes = |n| Duration::from_mins(n);
    for (lifetime, at_the_end) in [(None, true), (Some(minutes(50)), false)] {
        let options = Options { session_lifetime: lifetime, ..manual() };
        let (mut tokens, mut ledger, start) =
            (SimulatedTokens::new(&options), Ledger::default(), Instant::now());
        let text = tokens
            .log_in("simulator-user", "simulator-password", &options, &mut ledger, start)
            .unwrap();
        let mut used_after = |time| {
            tokens.expire_old_sessions(&options, &mut ledger, start + time);
            tokens.use_session(Some(&text), &options, start + time).is_ok()
        };
        assert!(used_after(minutes(19)) && used_after(minutes(38)));
        assert_eq!(used_after(minutes(57)), at_the_end);
        assert!(!used_after(minutes(77)));
        assert_eq!(ledger.session_expiries, 1);
    }
}

#[tokio::test]
async fn a_login_can_end_earlier_sessions() {
    let world = world(Options { single_session: true, ..manual() }).await;
    body(world.login("simulator-password"), 200).await;
    assert_eq!(code(world.order(&[device(1)])).await, "REQUEST_FAILED.SessionToken.Expired");
}

#[tokio::test]
async fn a_session_can_be_refused_with_other_statuses() {
    let forbidden = StatusCode::FORBIDDEN;
    let mut world =
        world(Options { session_refusal: SessionRefusal::Coded(forbidden), ..manual() }).await;
    world.session = "x".into();
    let refusal = body(world.order(&[device(1)]), 403).await;
    assert_eq!(refusal["errorCode"], "UnifiedWebService.INPUT_INVALID.SessionToken.Invalid");

    let bare = SessionRefusal::Bare(StatusCode::UNAUTHORIZED);
    let mut world = super::world(Options { session_refusal: bare, ..manual() }).await;
    world.session = "x".into();
    let refusal = send(world.order(&[device(1)]), 401).await;
    assert_eq!(refusal.text().await.unwrap(), "");
    assert_eq!(world.handle.ledger().calls(Endpoint::Download), 1);
}
