//! The page `/status`: it says first what is wrong, agrees with `status`, and has no secret.

use std::{net::SocketAddr, time::Duration};

use http::StatusCode;
use reqwest::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use serde_json::Value;
use thingspace_gateway::{
    app::App,
    shutdown::Stop,
    simulator::{CallbackOptions, Endpoint, Fault, What, When},
};

use crate::harness::*;

/// The page, as a browser asks for it.
async fn page(admin: SocketAddr) -> String {
    let Page { headers, body, .. } =
        page_of(admin, "/status", "text/html,application/xhtml+xml,*/*;q=0.8").await;
    assert_eq!(headers[CONTENT_TYPE], "text/html; charset=utf-8");
    let policy = headers[CONTENT_SECURITY_POLICY].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    assert!(!body.contains("<script") && !body.contains("src=") && !body.contains("href="));
    body
}

async fn status(admin: SocketAddr) -> Value {
    let Page { headers, body, .. } = page_of(admin, "/status", "application/json").await;
    assert_eq!(headers[CONTENT_TYPE], "application/json");
    serde_json::from_str(&body).unwrap()
}

/// The sentence on top of the page.
fn headline(page: &str) -> &str {
    page.split("<h1>").nth(1).unwrap().split("</h1>").next().unwrap()
}

/// The sentences about what is wrong.
fn issues(status: &Value) -> Vec<&str> {
    status["issues"].as_array().unwrap().iter().map(|one| one["what"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_says_that_all_is_well_and_shows_no_identity() {
    let upstream = Upstream::calling(CallbackOptions::default()).await;
    let gateway = Gateway::start(upstream.called()).await;
    place(&mut gateway.client().await, "key", 0..2).await.unwrap();
    eventually("callbacks are registered", async || {
        status(gateway.admin).await["registrations"][ACCOUNT] == "registered"
    })
    .await;
    let (page, status) = (page(gateway.admin).await, status(gateway.admin).await);
    assert_eq!(headline(&page), "Everything is well.");
    assert_eq!(issues(&status), [""; 0], "{status}");
    assert_eq!((&status["open_requests"], &status["open_devices"]), (&1.into(), &2.into()));
    assert_eq!(status["open_by_age"][0]["requests"], 1);
    let secrets = ["key", "secret", "username", "password"];
    let secrets =
        secrets.map(|name| std::fs::read_to_string(upstream.dir.path().join(name)).unwrap());
    let registered = upstream.sim.registered(&upstream.accounts[0]).unwrap();
    let path = registered.url.rsplit('/').next().unwrap().to_owned();
    for hidden in secrets.iter().chain([&path, &device(0).eid, &device(1).iccid]) {
        assert!(!page.contains(hidden) && !status.to_string().contains(hidden), "{hidden}");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_says_what_is_wrong_and_what_to_do() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    upstream.sim.inject(Fault::once(Endpoint::Download, When::AfterEffect, What::Drop));
    place(&mut client, "lost", [0]).await.unwrap_err();
    let page_ = page(gateway.admin).await;
    assert!(page_.contains("has an unknown outcome") && page_.contains("orders settle"), "{page_}");
    assert!(page_.contains("<code>ORDER_OUTCOME_UNKNOWN</code>"), "{page_}");

    upstream.sim.inject(Fault::once(Endpoint::Download, When::AfterEffect, What::Drop));
    place(&mut client, "lost as well", [1]).await.unwrap_err();
    let page_ = page(gateway.admin).await;
    assert!(page_.contains("2 orders have") && page_.contains("whether they were"), "{page_}");

    upstream.sim.set_password("changed elsewhere");
    upstream.sim.expire_sessions();
    place(&mut client, "refused", [2]).await.unwrap_err();
    let status_ = status(gateway.admin).await;
    assert_eq!(status_["issues"][0]["level"], "failure", "{status_}");
    assert_eq!(status_["logins"][0]["has_tokens"], false, "{status_}");
    let said = headline(&page(gateway.admin).await).to_owned();
    assert!(
        said.contains("credentials test") && said.ends_with(", so calls to ThingSpace fail."),
        "{said}"
    );

    upstream.cut();
    eventually("ThingSpace does not answer", async || {
        let _ = place(&mut client.clone(), "down", [3]).await;
        let status = status(gateway.admin).await;
        issues(&status).iter().any(|what| what.contains("it does not answer (POST "))
    })
    .await;
    gateway.stop().await;
}

/// The network is well, and only some calls fail: the others are answered, so that the breaker
/// opens and closes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_says_that_thingspace_answers_with_errors() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    config.thingspace.breaker_failures = 1;
    config.thingspace.breaker_first = Duration::from_millis(10);
    config.polling.min_age = Duration::ZERO;
    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "key", [0]).await.unwrap();
    let error = What::page(StatusCode::INTERNAL_SERVER_ERROR);
    upstream.sim.inject(Fault::always(Endpoint::Status, When::BeforeEffect, error));
    client.get_request_status(status_call(&id)).await.unwrap_err();
    let call = "GET /m2m/v2/accounts/{account}/requests/{request}/status: HTTP 500";
    let says = |status: &Value| {
        issues(status).iter().any(|what| what.contains("fail on") && what.contains(call))
    };
    let told = status(gateway.admin).await;
    assert!(says(&told), "{told}");
    assert!(!told["issues"].to_string().contains("does not answer"), "{told}");
    upstream.sim.clear_faults();
    eventually("other calls are answered", async || {
        let _ = client.clone().get_request_status(status_call(&id)).await;
        status(gateway.admin).await["hosts"][0]["left_alone_ms"].is_null()
    })
    .await;
    let told = status(gateway.admin).await;
    assert!(says(&told) && told["issues"][0]["level"] == "warning", "{told}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_there_from_the_start_to_the_end_of_the_drain() {
    let upstream = Upstream::manual().await;
    let app = App::bind(upstream.quiet()).await.unwrap();
    let (address, admin, requests) = (app.address, app.admin.address(), app.requests.clone());
    assert_eq!(headline(&page(admin).await), "The gateway is starting.");
    assert_eq!(status(admin).await, Value::Null);
    let stop = Stop::default();
    let running = tokio::spawn(app.run(stop.clone()));
    within("the gateway is ready", requests.ready()).await;
    let held = HeldOrder::begin(&upstream, &connect(address).await, "held", 0..1).await;
    stop.soft.cancel();
    eventually("it drains", async || headline(&page(admin).await) == "The gateway is stopping.")
        .await;
    assert_eq!(status(admin).await["waits_for"], "draining");
    held.answer().await.unwrap();
    within("the gateway drains", running).await.unwrap().unwrap();
}
