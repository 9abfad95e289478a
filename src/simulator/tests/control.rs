use tokio::net::TcpListener;

use super::*;
use crate::simulator::control;

/// A simulator whose orders stay open, and the URL of its control API.
async fn controlled() -> (World, String) {
    let world = world(manual()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(control::run(listener, world.handle.clone(), CancellationToken::new()));
    (world, url)
}

#[tokio::test]
async fn faults_are_met_before_and_after_the_effect() {
    let (world, url) = controlled().await;
    let faults = format!("{url}/faults");
    let after = r#"{"endpoint": "download", "when": "after_effect", "answer": "drop", "times": 1}"#;
    send(world.http.post(&faults).body(after), 204).await;
    let throttle = r#"{"endpoint": "status", "answer": {"throttle": {"retry_after_seconds": 7}}}"#;
    send(world.http.post(&faults).body(throttle), 204).await;

    world.order(&[device(1)]).send().await.unwrap_err();
    let happened: Value =
        send(world.http.get(format!("{url}/happened")), 200).await.json().await.unwrap();
    assert_eq!(happened["orders"][0]["devices"], json!([device(1).eid.as_str()]));
    assert_eq!(happened["calls"], json!({"token": 1, "login": 1, "download": 1, "status": 0}));
    assert_eq!(happened["logins"]["accepted"], 1);

    let request = world.placed(&[device(2)]).await;
    let throttled = send(world.status(ACCOUNT, request.as_str()), 429).await;
    assert_eq!(throttled.headers()["retry-after"], "7");
    send(world.http.delete(&faults), 204).await;
    world.shown(&request).await;
}

#[tokio::test]
async fn every_documented_answer_is_one() {
    let (world, url) = controlled().await;
    let answers = [
        json!("drop"),
        json!("reset"),
        json!("cut_body"),
        json!({"unavailable": {"retry_after_seconds": null}}),
        json!({"delay": {"milliseconds": 1}}),
        json!({"status": {"code": 500, "body": "{}"}}),
        json!({"status": {"code": 502}}),
    ];
    for answer in answers {
        let fault = json!({"endpoint": "login", "answer": answer, "times": 1});
        send(world.http.post(format!("{url}/faults")).body(fault.to_string()), 204).await;
        let _ = world.login("simulator-password").send().await;
    }
    assert_eq!(world.login("simulator-password").send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn outcomes_are_set_for_coming_orders_and_for_each_request() {
    let (world, url) = controlled().await;
    let outcome = |word: &str| json!({ "outcome": word }).to_string();
    send(world.http.put(format!("{url}/outcome")).body(outcome("failed")), 204).await;
    let failed = world.placed(&[device(1)]).await;
    assert_eq!(world.shown(&failed).await["status"], "Failed");
    send(world.http.put(format!("{url}/outcome")).body(r#"{"outcome": null}"#), 204).await;
    let open = world.placed(&[device(2)]).await;
    assert_eq!(world.shown(&open).await["status"], "Pending");
    let of_open = format!("{url}/requests/{open}");
    let one = json!({"outcome": "success", "device": device(2).iccid.as_str()}).to_string();
    send(world.http.put(&of_open).body(one), 204).await;
    assert_eq!(world.shown(&open).await["status"], "Success");
}

#[tokio::test]
async fn tokens_end_and_the_password_changes() {
    let (world, url) = controlled().await;
    let request = world.placed(&[device(1)]).await;
    send(world.http.delete(format!("{url}/bearer")), 204).await;
    send(world.status(ACCOUNT, request.as_str()), 401).await;
    let world = world_again(world).await;
    send(world.http.delete(format!("{url}/sessions")), 204).await;
    send(world.status(ACCOUNT, request.as_str()), 400).await;
    send(world.http.put(format!("{url}/password")).body(r#"{"password": "new"}"#), 204).await;
    for _ in 0..5 {
        send(world.login("simulator-password"), 400).await;
    }
    send(world.login("new"), 400).await;
    send(world.http.delete(format!("{url}/lock")), 204).await;
    send(world.login("new"), 200).await;
}

async fn world_again(mut world: World) -> World {
    world.bearer = text(&body(world.token(), 200).await["access_token"]);
    world
}

#[tokio::test]
async fn mistakes_are_named() {
    let (world, url) = controlled().await;
    let request = world.placed(&[device(1)]).await;
    let known = format!("/requests/{request}");
    let cases = [
        ("/outcome", "{}x", 400, "trailing"),
        ("/outcome", r#"{"outcome": "lost"}"#, 400, "`pending`, `success`, `failed`"),
        ("/outcome", r#"{"outcom": "failed"}"#, 400, "unknown field"),
        ("/requests/nowhere", r#"{"outcome": "failed"}"#, 404, "no request nowhere"),
        (&known, r#"{"outcome": "failed", "device": "7"}"#, 404, "has no device 7"),
        ("/nowhere", "{}", 404, "GET    /happened"),
    ];
    for (path, wrong, status, named) in cases {
        let said = send(world.http.put(format!("{url}{path}")).body(wrong), status).await;
        let said = said.text().await.unwrap();
        assert!(said.contains(named), "{path} {wrong}: {said}");
    }
    let fault = json!({"endpoint": "download", "answer": {"status": {"code": 99}}}).to_string();
    send(world.http.post(format!("{url}/faults")).body(fault), 400).await;
}
