//! `unblock`, and what `status` and health say about logins.

use std::time::Duration;

use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

use super::*;
use http::StatusCode;
use thingspace_gateway::simulator::{Mode, Options};

async fn health(
    address: std::net::SocketAddr,
    service: &str,
) -> tonic::Streaming<HealthCheckResponse> {
    let mut client = HealthClient::new(channel(address).await);
    let request = HealthCheckRequest { service: service.to_owned() };
    within("health", client.watch(request)).await.unwrap().into_inner()
}

async fn becomes(health: &mut tonic::Streaming<HealthCheckResponse>, status: ServingStatus) {
    while within("a health", health.message()).await.unwrap().unwrap().status() != status {}
}

fn write_password(upstream: &Upstream, password: &str) {
    std::fs::write(upstream.dir.path().join("password"), password).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_that_are_stopped_say_so_everywhere_and_go_on_when_an_operator_says_so() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    config.thingspace.login_backoff_first = Duration::from_millis(100);
    let process = Process::serve(&config, upstream.dir.path());
    let file = upstream.dir.path().join("gateway.toml");
    let mut client = process.client().await;
    let mut login = health(process.address, "thingspace.login/test").await;
    becomes(&mut login, ServingStatus::Serving).await;
    assert!(told(&file, &["status"]).await.contains("credentials test      not logged in"));
    let id = place(&mut client, "k", [0]).await.unwrap();
    assert_eq!(json(&file, &["status"]).await["logins"][0]["standing"], "logged in");
    assert_eq!(
        told(&file, &["unblock", "test"]).await,
        "Logins with credentials test are not stopped.\n"
    );

    upstream.sim.set_password("changed");
    upstream.sim.expire_sessions();
    eventually("logins are stopped", || {
        let mut client = client.clone();
        async move {
            reason(&place(&mut client, "l", [1]).await.unwrap_err()) == "UPSTREAM_LOGIN_BLOCKED"
        }
    })
    .await;
    let blocked = place(&mut client, "l", [1]).await.unwrap_err();
    assert_eq!(kind(&blocked), (Code::FailedPrecondition, "UPSTREAM_LOGIN_BLOCKED".to_owned()));
    becomes(&mut login, ServingStatus::NotServing).await;
    let status = json(&file, &["status"]).await;
    assert_eq!(
        (&status["ready"], &status["logins"][0]["healthy"], &status["logins"][0]["credentials"]),
        (&true.into(), &false.into(), &"test".into())
    );
    let said = told(&file, &["status"]).await;
    assert!(
        said.contains("logins with credentials test are stopped")
            && said.contains("`thingspace-gateway unblock test`"),
        "{said}"
    );
    // Stored states and readiness do not depend on logins.
    upstream.sim.finish_all(&id, thingspace_gateway::simulator::DeviceResult::Success);
    let mut all = health(process.address, "").await;
    becomes(&mut all, ServingStatus::Serving).await;

    // The password at ThingSpace is the old one again: the gateway cannot know.
    upstream.sim.set_password("simulator-password");
    assert!(refused(&file, &["unblock", "another"]).await.contains("no credentials named another"));
    let said = told(&file, &["unblock", "test"]).await;
    assert!(said.starts_with("One more login with credentials test is allowed"), "{said}");
    assert!(
        said.contains("may have counted 2 rejected logins in a row and locks the user at 5"),
        "{said}"
    );
    becomes(&mut login, ServingStatus::Serving).await;
    place(&mut client, "l", [1]).await.unwrap();
    let ledger = upstream.sim.ledger();
    assert_eq!(
        (ledger.logins_rejected, ledger.logins_accepted, ledger.rejected_in_a_row),
        (2, 2, 0)
    );

    process.terminate();
    let (_, log) = process.wait().await;
    let errors: Vec<_> = log.iter().filter(|line| line.contains("\"ERROR\"")).collect();
    assert_eq!(errors.len(), 2, "each change once: {errors:#?}");
    assert!(
        errors[0].contains("rejected the user name or password of credentials test"),
        "{errors:#?}"
    );
    assert!(errors[1].contains("logins with credentials test are stopped"), "{errors:#?}");
}

/// An order and `unblock`, again and again, with a wrong password.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unblock_in_a_loop_never_locks_the_user() {
    let upstream = Upstream::manual().await;
    write_password(&upstream, "wrong");
    let mut config = upstream.quiet();
    config.thingspace.login_backoff_first = Duration::from_millis(100);
    let process = Process::serve(&config, upstream.dir.path());
    let file = upstream.dir.path().join("gateway.toml");
    let client = process.client().await;
    let blocked = || async {
        eventually("logins are stopped", || {
            let mut client = client.clone();
            async move {
                reason(&place(&mut client, "k", [0]).await.unwrap_err()) == "UPSTREAM_LOGIN_BLOCKED"
            }
        })
        .await;
    };
    let mut refusals = 0;
    for _ in 0..8 {
        blocked().await;
        let output = operate(&file, &["unblock", "test"]).await;
        if !output.status.success() {
            let said = text(&output.stderr);
            assert!(said.contains("may have counted 4 rejected logins in a row"), "{said}");
            assert!(said.contains("unblock test --force"), "{said}");
            refusals += 1;
        }
    }
    let ledger = upstream.sim.ledger();
    assert!(
        refusals > 0 && !ledger.locked && ledger.rejected_in_a_row <= 4,
        "{refusals} {ledger:?}"
    );
    let said = told(&file, &["status"]).await;
    assert!(said.contains("locks the user at 5") && said.contains("--force"), "{said}");

    // An operator logs in elsewhere, with the password that the file then holds.
    upstream.sim.unlock();
    write_password(&upstream, "simulator-password");
    let said = told(&file, &["unblock", "test", "--force"]).await;
    assert!(said.starts_with("One more login with credentials test is allowed"), "{said}");
    assert!(said.contains("count of rejected logins starts again at 1"), "{said}");
    assert!(!said.contains("may have counted"), "{said}");
    eventually_ok("it goes on", || {
        let mut client = client.clone();
        async move { place(&mut client, "k", [0]).await }
    })
    .await;
}

/// `unblock --force` again and again, with wrong passwords and without a login elsewhere, for two
/// sets of credentials with the same user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn force_without_a_login_elsewhere_is_believed_once() {
    let upstream = Upstream::manual().await;
    write_password(&upstream, "wrong");
    let mut config = upstream.quiet();
    config.thingspace.login_backoff_first = Duration::from_millis(100);
    let mut other = config.credentials[0].clone();
    "other".clone_into(&mut other.name);
    other.accounts = vec![config.credentials[0].accounts.pop().unwrap()];
    other.password_file = upstream.dir.path().join("other-password");
    std::fs::write(&other.password_file, "wrong, too").unwrap();
    let other_password = other.password_file.clone();
    config.credentials.push(other);
    let process = Process::serve(&config, upstream.dir.path());
    let file = upstream.dir.path().join("gateway.toml");
    let client = process.client().await;
    let is_rejected = async |account: &str, strikes: u32| {
        eventually("a login is rejected, and then no more are made", || {
            let (mut client, mut order) = (client.clone(), order(account, [0]));
            account.clone_into(&mut order.account_name);
            let ledger = upstream.sim.ledger();
            async move {
                let refused = client.download_profile(order).await.unwrap_err();
                reason(&refused) == "UPSTREAM_LOGIN_BLOCKED" && ledger.rejected_in_a_row == strikes
            }
        })
        .await;
    };
    let [account, others] = [0, 1].map(|set| config.credentials[set].accounts[0].to_string());
    // A new store assumes one rejection, so four count.
    is_rejected(&account, 1).await;
    is_rejected(&others, 3).await;
    told(&file, &["unblock", "test", "--force"]).await;
    is_rejected(&account, 4).await;
    let advice = "unblock test --force --risk-lock";
    let status = told(&file, &["status"]).await;
    assert!(status.contains(advice) && status.contains("no login was accepted"), "{status}");
    write_password(&upstream, "wrong again");
    std::fs::write(other_password, "wrong again, too").unwrap();
    for command in [
        &["unblock", "test"][..],
        &["unblock", "test", "--force"],
        &["unblock", "other"],
        &["unblock", "other", "--force"],
    ] {
        let said = refused(&file, command).await;
        assert!(said.contains("--force --risk-lock") && said.contains("support"), "{said}");
        is_rejected(&account, 4).await;
        is_rejected(&others, 4).await;
    }
    assert!(!upstream.sim.ledger().locked);

    // An operator logs in elsewhere, with the password that the file then holds.
    upstream.sim.unlock();
    write_password(&upstream, "simulator-password");
    refused(&file, &["unblock", "test", "--force"]).await;
    told(&file, &["unblock", "test", "--force", "--risk-lock"]).await;
    eventually_ok("it goes on", || {
        let mut client = client.clone();
        async move { place(&mut client, "k", [0]).await }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_password_file_is_reported_to_callers_and_operators() {
    let upstream = Upstream::manual().await;
    let password = upstream.dir.path().join("password");
    let away = upstream.dir.path().join("away");
    let config = upstream.quiet();
    let process = Process::serve(&config, upstream.dir.path());
    let file = upstream.dir.path().join("gateway.toml");
    let mut login = health(process.address, "thingspace.login/test").await;
    becomes(&mut login, ServingStatus::Serving).await;
    std::fs::rename(&password, &away).unwrap();
    let mut client = process.client().await;
    let status = place(&mut client, "k", [0]).await.unwrap_err();
    assert_eq!(
        kind(&status),
        (Code::FailedPrecondition, "UPSTREAM_CREDENTIALS_UNAVAILABLE".to_owned())
    );
    becomes(&mut login, ServingStatus::NotServing).await;
    let said = told(&file, &["status"]).await;
    assert!(said.contains(password.to_str().unwrap()), "{said}");
    place(&mut client, "k", [0]).await.unwrap_err();
    assert_eq!(upstream.sim.ledger().logins(), 0);

    std::fs::rename(&away, &password).unwrap();
    becomes(&mut login, ServingStatus::Serving).await;
    eventually_ok("it goes on", || {
        let mut client = client.clone();
        async move { place(&mut client, "k", [0]).await }
    })
    .await;
    process.terminate();
    let (_, log) = process.wait().await;
    let errors: Vec<_> = log.iter().filter(|line| line.contains("\"ERROR\"")).collect();
    assert!(errors.len() == 1 && errors[0].contains(password.to_str().unwrap()), "{errors:#?}");
}

/// The password is changed at ThingSpace, which refuses logins with a 5xx or a success: with calls
/// and restarts the user is not locked, and the right password is used once the file holds it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejections_with_odd_statuses_never_lock_the_user() {
    for status in [500, 200] {
        let upstream = Upstream::start(Options {
            mode: Mode::Manual,
            login_refusal: StatusCode::from_u16(status).unwrap(),
            login_refusal_code: "REQUEST_FAILED.InvalidCredentials",
            ..Options::default()
        })
        .await;
        let mut config = upstream.quiet();
        config.thingspace.login_backoff_first = Duration::from_millis(100);
        config.thingspace.login_backoff_max = Duration::from_millis(100);
        let mut process = Process::serve(&config, upstream.dir.path());
        place(&mut process.client().await, "k", [0]).await.unwrap();
        upstream.sim.set_password("changed");
        upstream.sim.expire_sessions();
        for restart in [false, true, true] {
            if restart {
                process.kill();
                process = Process::serve(&config, upstream.dir.path());
            }
            let client = process.client().await;
            eventually("logins are stopped", || {
                let mut client = client.clone();
                async move {
                    reason(&place(&mut client, "l", [1]).await.unwrap_err())
                        == "UPSTREAM_LOGIN_BLOCKED"
                }
            })
            .await;
            for n in 0..20 {
                place(&mut client.clone(), &n.to_string(), [1]).await.unwrap_err();
            }
        }
        let ledger = upstream.sim.ledger();
        assert_eq!((ledger.rejected_in_a_row, ledger.locked), (2, false), "{status}: {ledger:?}");
        write_password(&upstream, "changed");
        let client = process.client().await;
        eventually_ok("the new password is used", || {
            let mut client = client.clone();
            async move { place(&mut client, "l", [1]).await }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_logins_are_reported_after_a_restart_without_a_call() {
    let upstream = Upstream::manual().await;
    write_password(&upstream, "wrong");
    let config = upstream.quiet();
    let process = Process::serve(&config, upstream.dir.path());
    place(&mut process.client().await, "k", [0]).await.unwrap_err();
    process.kill();
    let process = Process::serve(&config, upstream.dir.path());
    let mut login = health(process.address, "thingspace.login/test").await;
    becomes(&mut login, ServingStatus::NotServing).await;
    // The right password needs neither a restart nor a call.
    write_password(&upstream, "simulator-password");
    becomes(&mut login, ServingStatus::Serving).await;
    place(&mut process.client().await, "k", [0]).await.unwrap();
    let ledger = upstream.sim.ledger();
    assert_eq!((ledger.logins_rejected, ledger.logins_accepted), (1, 1));
}

/// Two sets of credentials hold one user, and then the password of one set is changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_sets_with_different_passwords_of_a_user_are_reported_once() {
    const AT_ODDS: &str = "two sets of credentials hold the same user";
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    let mut other = config.credentials[0].clone();
    "other".clone_into(&mut other.name);
    other.accounts = vec![config.credentials[0].accounts.pop().unwrap()];
    other.password_file = upstream.dir.path().join("other-password");
    std::fs::write(&other.password_file, "simulator-password").unwrap();
    let changed = other.password_file.clone();
    config.credentials.push(other);
    let process = Process::serve(&config, upstream.dir.path());
    let file = upstream.dir.path().join("gateway.toml");
    let mut client = process.client().await;
    place(&mut client, "k", [0]).await.unwrap();
    let mut order = order("other", [1]);
    config.credentials[1].accounts[0].as_str().clone_into(&mut order.account_name);
    within("an order", client.download_profile(order)).await.unwrap();
    assert_eq!(upstream.sim.ledger().logins(), 1, "they share a session");

    std::fs::write(changed, "wrong").unwrap();
    eventually("the new password is tried", async || {
        json(&file, &["status"]).await["logins"][1]["healthy"] == false
    })
    .await;
    process.terminate();
    let (_, log) = process.wait().await;
    let told: Vec<_> = log.iter().filter(|line| line.contains(AT_ODDS)).collect();
    assert!(told.len() == 1 && told[0].contains("\"WARN\""), "{told:#?}");
}
