//! `unblock`, and what `status` and health say of logins.

use std::time::Duration;

use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

use super::*;

async fn health(address: std::net::SocketAddr, service: &str) -> tonic::Streaming<HealthCheckResponse> {
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
    assert_eq!(told(&file, &["unblock", "test"]).await, "Nothing stops credentials test.\n");

    upstream.sim.set_password("changed");
    upstream.sim.expire_sessions();
    eventually("logins are stopped", || {
        let mut client = client.clone();
        async move { reason(&place(&mut client, "l", [1]).await.unwrap_err()) == "UPSTREAM_LOGIN_BLOCKED" }
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
        said.contains("no more logins are made") && said.contains("`thingspace-gateway unblock test`"),
        "{said}"
    );
    // What the gateway knows, and whether it serves, has nothing to do with it.
    upstream.sim.finish_all(&id, thingspace_gateway::simulator::Outcome::Success);
    let mut all = health(process.address, "").await;
    becomes(&mut all, ServingStatus::Serving).await;

    // The password at ThingSpace is the old one again: the gateway cannot know.
    upstream.sim.set_password("simulator-password");
    assert!(refused(&file, &["unblock", "another"]).await.contains("no credentials named another"));
    assert!(told(&file, &["unblock", "test"]).await.starts_with("Credentials test are tried once more"));
    becomes(&mut login, ServingStatus::Serving).await;
    place(&mut client, "l", [1]).await.unwrap();
    let ledger = upstream.sim.ledger();
    assert_eq!((ledger.logins_rejected, ledger.logins_accepted, ledger.strikes), (2, 2, 0));

    process.terminate();
    let (_, log) = process.wait().await;
    let errors: Vec<_> = log.iter().filter(|line| line.contains("\"ERROR\"")).collect();
    assert_eq!(errors.len(), 2, "each change once: {errors:#?}");
    assert!(errors[0].contains("rejected the user name or password of credentials test"), "{errors:#?}");
    assert!(errors[1].contains("no more logins are made with the user name or password"), "{errors:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_stopped_is_said_after_a_restart_without_a_call() {
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
