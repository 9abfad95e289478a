//! The user is never locked.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use prost::Message;

use super::*;
use crate::{crypto::digest_of, proto::storage::Guard, store::CellName};

#[tokio::test]
async fn ten_restarts_cost_one_login() {
    let mut world = world(manual()).await;
    let request = world.request();
    for _ in 0..10 {
        world.poll(&request).await.unwrap();
        world.restart();
    }
    let ledger = world.handle.ledger();
    assert_eq!((ledger.token_requests(), ledger.logins()), (1, 1));
    // What is in the store may be over.
    world.handle.expire_bearer();
    world.handle.expire_sessions();
    world.poll(&request).await.unwrap();
    let ledger = world.handle.ledger();
    assert_eq!((ledger.token_requests(), ledger.logins()), (2, 2));
}

#[tokio::test]
async fn of_three_wrong_passwords_in_a_row_four_logins_at_most_are_rejected() {
    let mut world = configured(manual(), hasty).await;
    world.handle.set_password("right");
    // A is what the files hold.
    world.call_until("A is stopped", |_, outcome| is_blocked(outcome)).await;
    assert_eq!(world.handle.ledger().logins_rejected, 1, "there was no history");
    world.write("password", "B");
    world
        .call_until("B is stopped", |ledger, outcome| {
            ledger.logins_rejected == 3 && is_blocked(outcome)
        })
        .await;
    for wrong in ["simulator-password", "C"] {
        world.write("password", wrong);
        // Long enough to see the change and to let it settle.
        world.call_for(Duration::from_secs(4), is_blocked).await;
    }
    world.restart();
    world.call_for(Duration::from_secs(1), is_blocked).await;
    let ledger = world.handle.ledger();
    assert_eq!((ledger.logins(), ledger.logins_rejected), (3, 3));

    // With the assumed rejection there were four. No login is sent any more, not even with the
    // right password.
    world.write("password", "right");
    world.call_for(Duration::from_secs(4), is_blocked).await;
    assert_eq!(world.unblock(UnblockMode::LoggedIn).await, UnblockOutcome::Done);
    world.call_until("it goes on", |_, outcome| outcome.is_ok()).await;
    assert_eq!(world.handle.ledger().logins_accepted, 1);
}

#[tokio::test]
async fn four_rejections_stop_everything_until_an_operator_says_otherwise() {
    let mut world = configured(manual(), hasty).await;
    world.poll(&world.request()).await.unwrap();
    world.handle.set_password("right");
    world.handle.expire_sessions();
    world.call_until("two strikes", |_, outcome| is_blocked(outcome)).await;
    world.write("password", "B");
    world
        .call_until("four in all", |ledger, outcome| {
            ledger.logins_rejected == 4 && is_blocked(outcome)
        })
        .await;
    world.write("password", "right");
    world.call_for(Duration::from_secs(4), is_blocked).await;
    world.restart();
    world.call_for(Duration::from_secs(1), is_blocked).await;
    assert_eq!(world.handle.ledger().logins(), 5);

    let (name, mut health) = world.client.login_health().next().unwrap();
    assert_eq!(name, "test");
    let said = health.wait_for(|health| !health.healthy).await.unwrap().clone();
    let advice = "log in once elsewhere with the right password, then run `thingspace-gateway \
                  unblock test --force`";
    assert!(said.sentence.contains(advice), "{said:?}");
    assert!(world.client.unblock("another", UnblockMode::Retry).await.is_none());
    assert_eq!(world.unblock(UnblockMode::LoggedIn).await, UnblockOutcome::Done);
    // By itself, without a call.
    tokio::time::timeout(PATIENCE, health.wait_for(|health| health.sentence == "logged in"))
        .await
        .unwrap()
        .unwrap();
    world.poll(&world.request()).await.unwrap();
    let ledger = world.handle.ledger();
    assert_eq!((ledger.logins(), ledger.locked), (6, false));
}

#[tokio::test]
async fn a_lost_store_and_a_wrong_password_cost_one_more_rejection() {
    let mut world = configured(manual(), hasty).await;
    world.poll(&world.request()).await.unwrap();
    world.handle.set_password("right");
    world.handle.expire_sessions();
    world.call_until("two strikes", |_, outcome| is_blocked(outcome)).await;
    assert_eq!(world.handle.ledger().logins_rejected, 2);
    let elsewhere = tempfile::tempdir().unwrap();
    world.store = store(&elsewhere);
    world.restart();
    world.call_until("it is stopped", |_, outcome| is_blocked(outcome)).await;
    world.restart();
    world.call_for(Duration::from_secs(1), is_blocked).await;
    assert_eq!(world.handle.ledger().logins_rejected, 3);
}

/// An operator puts another name of the same host into the configuration, a proxy's for example.
#[tokio::test]
async fn another_name_of_the_host_begins_no_new_count() {
    let mut world = configured(manual(), hasty).await;
    world.poll(&world.request()).await.unwrap();
    world.handle.set_password("right");
    world.handle.expire_sessions();
    world.call_until("two strikes", |_, outcome| is_blocked(outcome)).await;
    world.config.base_url = world.config.base_url.replace("127.0.0.1", "localhost");
    world.restart();
    world
        .call_until("four in all", |ledger, outcome| {
            ledger.logins_rejected == 4 && is_blocked(outcome)
        })
        .await;
    world.config.base_url = world.config.base_url.replace("localhost", "localhost.");
    world.restart();
    world.write("password", "B");
    world.call_for(Duration::from_secs(4), is_blocked).await;
    assert_eq!(world.handle.ledger().logins_rejected, 4);
}

/// An earlier build kept the count in a cell that was named after the host, too.
#[tokio::test]
async fn the_count_of_an_earlier_build_goes_on() {
    let mut world = configured(manual(), hasty).await;
    world.poll(&world.request()).await.unwrap();
    world.handle.set_password("right");
    world.handle.expire_sessions();
    world.call_until("two rejections", |_, outcome| is_blocked(outcome)).await;
    let cell = |host: &str| {
        let owner = BASE64_URL_SAFE_NO_PAD.encode(digest_of(&[host, "simulator-user"]));
        CellName::permanent(format!("guard/login/{owner}"))
    };
    let owner = BASE64_URL_SAFE_NO_PAD.encode(digest_of(&["simulator-user"]));
    let own = CellName::permanent(format!("guard/login/{owner}"));
    let held = world.store.load(&own).await.unwrap().unwrap();
    let host = world.config.base_url.replace("http://", "").replace("/api", "");
    let elsewhere = tempfile::tempdir().unwrap();
    world.store = store(&elsewhere);
    world.store.swap(&cell(&host), None, held.value).await.unwrap();
    // It had used ThingSpace's own name before, without a rejection.
    let unused = Guard { version: 1, ..Guard::default() }.encode_to_vec();
    world.store.swap(&cell("thingspace.verizon.com:443"), None, unused.into()).await.unwrap();
    world.restart();
    world.call_for(Duration::from_secs(1), is_blocked).await;
    assert_eq!(world.handle.ledger().logins_rejected, 2);
    // The count goes on under another name of the host, too.
    world.config.base_url = world.config.base_url.replace("127.0.0.1", "localhost");
    world.restart();
    world.write("password", "B");
    world
        .call_until("four in all", |ledger, outcome| {
            ledger.logins_rejected == 4 && is_blocked(outcome)
        })
        .await;
    world.restart();
    world.write("password", "C");
    world.call_for(Duration::from_secs(4), is_blocked).await;
    assert_eq!(world.handle.ledger().logins_rejected, 4);
}

/// The process dies in the middle of a login, again and again, while ThingSpace does not answer.
/// Each of these logins may have been rejected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deaths_in_mid_login_stop_what_was_accepted_after_the_third() {
    let mut world = configured(manual(), hasty).await;
    let request = world.request();
    world.poll(&request).await.unwrap();
    for deaths in [2, 3] {
        world.handle.expire_sessions();
        let gate = Gate::default();
        let hold = What::Hold(gate.clone());
        world.handle.inject(Fault::always(Endpoint::Login, When::BeforeEffect, hold));
        for _ in 0..deaths {
            let before = world.handle.ledger().logins();
            let process =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let process = process.unwrap();
            let client = {
                let _inside = process.enter();
                cold(&world.config, &world.files, &world.store)
            };
            let request = request.clone();
            process.spawn(async move {
                while poll(&client, &request).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
            world.handle.wait_until(PATIENCE, |ledger| ledger.logins() > before).await;
            process.shutdown_background();
        }
        world.handle.clear_faults();
        gate.open();
        world.restart();
        if deaths == 2 {
            world.call_until("it goes on by itself", |_, outcome| outcome.is_ok()).await;
        }
    }
    world.call_until("it is stopped", |_, outcome| is_blocked(outcome)).await;
    assert_eq!(world.unblock(UnblockMode::Retry).await, UnblockOutcome::Done);
    world.call_until("it goes on", |_, outcome| outcome.is_ok()).await;
    let ledger = world.handle.ledger();
    assert_eq!((ledger.logins_rejected, ledger.locked), (0, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_waits_for_the_login_under_way() {
    let mut world = world(manual()).await;
    let tasks = TaskTracker::new();
    let gate = world.hold(Endpoint::Login);
    world.client =
        Client::new(&world.config, &[credentials(&world.files)], &world.store, &tasks).unwrap();
    tokio::select! {
        outcome = world.prepare() => panic!("{outcome:?}"),
        () = world.arrived(Endpoint::Login) => {}
    }
    tasks.close();
    assert!(!tasks.is_empty());
    gate.open();
    tokio::time::timeout(PATIENCE, tasks.wait()).await.unwrap();
    // What came of it is stored.
    world.restart();
    world.poll(&world.request()).await.unwrap();
    assert_eq!(world.handle.ledger().logins(), 1);
}
