//! Credential files that change under a running gateway.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::*;

/// Calls all the time, of which none fails, while something is done.
async fn under_load<T>(world: &World, what: impl Future<Output = T>) -> T {
    let request = world.request();
    let done = AtomicBool::new(false);
    let load = (0..20).map(async |_| {
        while !done.load(Ordering::Relaxed) {
            world.poll(&request).await.unwrap();
            world.order().await.unwrap();
        }
    });
    let what = async {
        let outcome = what.await;
        done.store(true, Ordering::Relaxed);
        outcome
    };
    tokio::join!(join_all(load), what).1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_costs_no_call() {
    let world = world(Options { single_session: true, ..manual() }).await;
    under_load(&world, async {
        world.handle.wait_until(PATIENCE, |ledger| ledger.logins_accepted == 1).await;
        world.handle.set_password("new");
        world.write("password", "new");
        world.handle.wait_until(PATIENCE, |ledger| ledger.logins_accepted == 2).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    })
    .await;
    let ledger = world.handle.ledger();
    assert_eq!((ledger.token_requests(), ledger.logins(), ledger.logins_rejected), (1, 2, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_credentials_that_are_wrong_leave_the_session_be() {
    let world = configured(manual(), hasty).await;
    let (_, mut health) = world.client.login_health().next().unwrap();
    under_load(&world, async {
        world.handle.wait_until(PATIENCE, |ledger| ledger.logins_accepted == 1).await;
        world.write("password", "wrong");
        world.handle.wait_until(PATIENCE, |ledger| ledger.logins_rejected == 1).await;
        let said = timeout(PATIENCE, health.wait_for(|said| said.sentence.contains("rejected")));
        let said = said.await.unwrap().unwrap().clone();
        assert!(
            !said.healthy
                && said.sentence.ends_with("Calls succeed until the current session ends"),
            "{said:?}"
        );
        // Some looks later it still says what to do.
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(health.borrow().sentence.contains("Correct the files"), "{:?}", *health.borrow());
    })
    .await;
    assert_eq!(
        world.handle.ledger().logins_rejected,
        1,
        "it is not tried again while nothing needs it"
    );
    assert!(health.borrow().sentence.contains("rejected the user name or password"));
    // As they were, and wrong again: each is said.
    world.write("password", "simulator-password");
    timeout(PATIENCE, health.wait_for(|said| said.sentence == "logged in")).await.unwrap().unwrap();
    world.write("password", "wrong");
    timeout(PATIENCE, health.wait_for(|said| said.sentence.contains("rejected")))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(world.handle.ledger().logins_rejected, 1);
    world.handle.expire_sessions();
    world.call_until("the second strike", |_, outcome| is_blocked(outcome)).await;
    assert!(!health.borrow().healthy);
    assert_eq!(world.handle.ledger().logins_rejected, 2);
    // The file as it was: nothing needs to be corrected but that.
    world.write("password", "simulator-password");
    world.call_until("it goes on", |_, outcome| outcome.is_ok()).await;
    assert!(health.borrow().healthy);
}

#[tokio::test]
async fn a_wrong_new_application_leaves_bearer_and_session_be() {
    let world = configured(manual(), hasty).await;
    let request = world.request();
    world.poll(&request).await.unwrap();
    world.write("secret", "wrong");
    // The first rejection may be ThingSpace's error.
    world.handle.wait_until(PATIENCE, |ledger| ledger.token_requests() == 3).await;
    world.call_for(Duration::from_secs(3), Result::is_ok).await;
    let ledger = world.handle.ledger();
    assert_eq!((ledger.token_requests(), ledger.logins()), (3, 1));
}

/// A restart with wrong files, before any call has used the stored tokens.
#[tokio::test]
async fn stored_tokens_serve_after_a_restart_with_other_files() {
    for (file, login_rejected) in [("password", true), ("secret", false)] {
        let mut world = configured(manual(), hasty).await;
        world.poll(&world.request()).await.unwrap();
        world.write(file, "wrong");
        world.restart();
        let tried =
            |ledger: &Ledger, _: &Called| ledger.logins_rejected + ledger.token_requests() >= 2;
        world.call_until("the other files are tried", tried).await;
        world.restart();
        world.call_for(Duration::from_millis(500), Result::is_ok).await;
        let ledger = world.handle.ledger();
        assert_eq!(
            ledger.logins_rejected,
            u64::from(login_rejected),
            "{file}: tried once, for all that"
        );
        assert_eq!(ledger.logins_accepted, 1, "{file}");
        let mut health = world.client.login_health().next().unwrap().1;
        tokio::time::timeout(PATIENCE, health.wait_for(|said| said.sentence.contains("rejected")))
            .await
            .unwrap()
            .unwrap();
        // Once the session ends, there is no other.
        world.handle.expire_sessions();
        world.handle.expire_bearer();
        world.call_until("it is over", |_, outcome| outcome.is_err()).await;
        world.write(file, &format!("simulator-{file}"));
        world.call_until("it goes on", |_, outcome| outcome.is_ok()).await;
    }
}

/// Four wrong passwords and then the right one: the guard stays closed, and says so while the
/// session still works.
#[tokio::test]
async fn a_closed_guard_is_told_while_a_session_still_works() {
    let world = configured(manual(), hasty).await;
    world.poll(&world.request()).await.unwrap();
    let (_, mut health) = world.client.login_health().next().unwrap();
    for (rejected, wrong) in (1..).zip(["A", "B", "C", "D"]) {
        world.write("password", wrong);
        world.handle.wait_until(PATIENCE, |ledger| ledger.logins_rejected == rejected).await;
    }
    world.write("password", "simulator-password");
    let stopped = |said: &super::super::LoginHealth| {
        !said.healthy
            && said.sentence.contains("unblock test --force")
            && said.sentence.ends_with("Calls succeed until the current session ends")
    };
    timeout(PATIENCE, health.wait_for(stopped)).await.unwrap().unwrap();
    world.call_for(Duration::from_secs(4), Result::is_ok).await;
    assert!(stopped(&health.borrow()), "{:?}", *health.borrow());
    assert_eq!(world.unblock(UnblockMode::LoggedIn).await, UnblockOutcome::Done);
    timeout(PATIENCE, health.wait_for(|said| said.sentence == "logged in")).await.unwrap().unwrap();
}

/// Somebody writes one file after the other.
#[tokio::test]
async fn a_change_must_rest_before_it_is_tried() {
    let world = world(manual()).await;
    world.poll(&world.request()).await.unwrap();
    world.handle.set_password("right");
    for text in ["1", "2", "3", "4", "5", "6", "right"] {
        tokio::time::sleep(Duration::from_millis(500)).await;
        world.write("password", text);
    }
    world.handle.wait_until(PATIENCE, |ledger| ledger.logins_accepted == 2).await;
    assert_eq!(world.handle.ledger().logins_rejected, 0);
}

/// As Kubernetes does: the files lead through a link that is swapped.
#[tokio::test]
async fn a_mounted_secret_is_swapped() {
    let mut world = world(manual()).await;
    let folder = world.files.path().to_owned();
    let (old, new, data) = (folder.join("old"), folder.join("new"), folder.join("data"));
    for (version, password) in [(&old, "simulator-password"), (&new, "new")] {
        fs::create_dir(version).unwrap();
        fs::write(version.join("password"), password).unwrap();
    }
    std::os::unix::fs::symlink(&old, &data).unwrap();
    let credentials =
        CredentialsConfig { password_file: data.join("password"), ..credentials(&world.files) };
    world.client =
        Client::new(&world.config, &[credentials], &world.store, &TaskTracker::new()).unwrap();
    world.poll(&world.request()).await.unwrap();
    world.handle.set_password("new");
    std::os::unix::fs::symlink(&new, folder.join("draft")).unwrap();
    fs::rename(folder.join("draft"), &data).unwrap();
    world.handle.wait_until(PATIENCE, |ledger| ledger.logins_accepted == 2).await;
    assert_eq!(world.handle.ledger().logins_rejected, 0);
}
