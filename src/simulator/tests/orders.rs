use futures_util::future::join_all;

use super::*;
use crate::simulator::{DeviceResult, Endpoint};

#[tokio::test]
async fn every_order_is_a_new_request() {
    let world = world(manual()).await;
    let first = world.placed(&[device(1), device(2)]).await;
    let second = world.placed(&[device(2)]).await;
    assert_ne!(first, second);
    let ledger = world.handle.ledger();
    let placed: Vec<_> =
        ledger.orders.iter().map(|o| (&o.request_id, o.devices.to_vec())).collect();
    assert_eq!(placed, [(&first, vec![device(1), device(2)]), (&second, vec![device(2)])]);
    assert_eq!(ledger.orders[0].account, account());
    assert_eq!(ledger.orders[0].service_plan.as_deref(), Some("service plan name"));
    let times = [1, 2, 3].map(|n| ledger.times_ordered(device(n).eid.as_str()));
    assert_eq!(times, [1, 2, 0]);
}

/// Changed orders, and the codes of their refusals.
fn wrong_orders() -> Vec<(String, &'static str)> {
    let changed = |change: fn(&mut Value)| {
        let mut body = order(&[device(1)]);
        change(&mut body);
        body.to_string()
    };
    let mut iccid_only = device(1);
    iccid_only.eid = Digits::default();
    let many: Vec<_> = (0..10_001).map(device).collect();
    vec![
        (String::new(), "INPUT_INVALID.RequestUndefined"),
        ("{".into(), "DeserializationFailed"),
        (changed(|body| body["serviceplan"] = "x".into()), "DeserializationFailed"),
        (changed(|body| body["accountName"] = 123_456.into()), "DeserializationFailed"),
        (
            changed(|body| body["servicePlan"] = "it's".into()),
            "INPUT_INVALID.Request.InvalidCharacter",
        ),
        (
            changed(|body| body["servicePlan"] = "<".into()),
            "INPUT_INVALID.Request.InvalidCharacter",
        ),
        (
            changed(|body| body["servicePlan"] = "\\".into()),
            "INPUT_INVALID.Request.InvalidCharacter",
        ),
        (changed(|body| body["servicePlan"] = "".into()), "REQUEST_FAILED.UnexpectedError"),
        (changed(|body| body["servicePlan"] = "other".into()), "REQUEST_FAILED.other.NotFound"),
        (changed(|body| drop(body["accountName"].take())), "INPUT_INVALID.Account.NotDefined"),
        (
            changed(|body| body["accountName"] = "0000000000-00000".into()),
            "REQUEST_FAILED.AccountNotFound",
        ),
        (
            changed(|body| body["accountName"] = "0000999999-00001".into()),
            "REQUEST_FAILED.AccountName",
        ),
        (changed(|body| body["devices"] = json!([])), "REQUEST_FAILED.UnexpectedError"),
        (
            changed(|body| body["devices"][0]["deviceIds"][0]["kind"] = "mdn".into()),
            "INPUT_INVALID.Device.Kind.Invalid",
        ),
        (
            changed(|body| body["devices"][0]["deviceIds"][0]["id"] = "12".into()),
            "INPUT_INVALID.Device.Identifier.Invalid",
        ),
        (
            changed(|body| body["devices"][0]["deviceIds"][0]["kind"] = "iccid".into()),
            "INPUT_INVALID.Device.Identifier.Invalid",
        ),
        (order(&[iccid_only]).to_string(), "INPUT_INVALID.Device.Identifier.Invalid"),
        (order(&many).to_string(), "INPUT_INVALID.MaxRequestsExceeded"),
    ]
}

#[tokio::test]
async fn wrong_orders_are_refused() {
    let world =
        world(Options { service_plans: vec!["service plan name".into()], ..manual() }).await;
    for (body, wanted) in wrong_orders() {
        assert_eq!(code(world.download(body.clone())).await, wanted, "{body:.300}");
    }
    assert_eq!(world.handle.ledger().orders.len(), 0);
    // Only the plan is optional.
    let mut body = order(&[device(1)]);
    body.as_object_mut().unwrap().remove("servicePlan");
    send(world.download(body.to_string()), 200).await;
    assert_eq!(world.handle.ledger().orders[0].service_plan, None);
}

#[tokio::test]
async fn every_call_with_a_body_must_be_json() {
    let world = world(manual()).await;
    let request = world.placed(&[device(1)]).await;
    let status = format!("{}/m2m/v2/accounts/{ACCOUNT}/requests/{request}/status", world.url);
    let download = format!("{}/m2m/v1/devices/profile/actions/download", world.url);
    let with_tokens = |bare: RequestBuilder| {
        bare.bearer_auth(&world.bearer).header("VZ-M2M-Token", &world.session)
    };
    let order = with_tokens(world.http.post(download).body(order(&[device(1)]).to_string()));
    assert_eq!(code(order).await, "REQUEST_FAILED.UnexpectedError");
    // As Verizon's SDK does.
    body(with_tokens(world.http.get(&status)), 200).await;
    let text = with_tokens(world.http.get(&status).header("Content-Type", "text/plain"));
    assert_eq!(code(text).await, "REQUEST_FAILED.UnexpectedError");
    assert_eq!(world.handle.ledger().orders.len(), 1);
}

#[tokio::test]
async fn unknown_paths() {
    let world = cold(manual()).await;
    let resource = world.http.get(format!("{}/m2m/v1/session/login", world.url));
    assert_eq!(body(resource, 400).await["fault"]["code"], "900906");
    let page = send(world.http.get(format!("{}/m3m", world.url)), 404).await;
    assert_eq!(page.text().await.unwrap(), "requested resource is not available");
    assert_eq!(world.handle.ledger().unexpected, ["GET /api/m2m/v1/session/login", "GET /api/m3m"]);
}

#[tokio::test]
async fn unknown_and_foreign_requests() {
    let world = world(manual()).await;
    let request = world.placed(&[device(1)]).await;
    for (account, id) in
        [(ACCOUNT, "d1f08526"), (ACCOUNT, "a%20b"), ("0000123456-00002", request.as_str())]
    {
        assert_eq!(body(world.status(account, id), 404).await["errorCode"], "404");
    }
    let status = |account| world.status(account, request.as_str());
    assert_eq!(code(status("0000999999-00001")).await, "REQUEST_FAILED.AccountName");
    assert_eq!(code(status("0000000000-00000")).await, "REQUEST_FAILED.AccountNotFound");
    let ledger = world.handle.ledger();
    assert_eq!((ledger.polls(), ledger.polls_of(&request)), (5, 3));
}

#[tokio::test]
async fn a_new_request_may_be_unreadable_for_a_while() {
    let world = world(Options { readable_after: Duration::from_hours(1), ..manual() }).await;
    let request = world.placed(&[device(1)]).await;
    body(world.status(ACCOUNT, request.as_str()), 404).await;
}

#[tokio::test]
async fn devices_finish_by_themselves() {
    let fate = |after, device: Device| async move {
        let world = world(Options { mode: Mode::Auto { after }, ..Options::default() }).await;
        let request = world.handle.add_request(account(), [device]);
        assert_eq!(world.handle.ledger().orders.len(), 0);
        text(&world.shown(&request).await["subRequests"][0]["status"])
    };
    for digit in 0..10 {
        let wanted = if digit == 8 { "Failed" } else { "Success" };
        assert_eq!(fate(Duration::ZERO, device(digit)).await, wanted);
        assert_eq!(fate(Duration::from_hours(1), device(digit)).await, "Pending");
    }
}

#[tokio::test]
async fn ten_thousand_devices() {
    let world = world(manual()).await;
    let devices: Vec<_> = (0..10_000).map(device).collect();
    let request = world.placed(&devices).await;
    for device in &devices[1..] {
        world.handle.finish(&request, device.eid.as_str(), DeviceResult::Success);
    }
    let shown = world.shown(&request).await;
    let subs = shown["subRequests"].as_array().unwrap();
    assert_eq!(subs.len(), 10_000);
    assert_eq!(subs.iter().filter(|sub| sub["status"] == "Success").count(), 9_999);
    assert_eq!(subs[0]["status"], "Pending");
}

#[tokio::test]
async fn five_hundred_orders_at_once() {
    let world = world(manual()).await;
    let placed = join_all((0..500).map(|n| {
        let devices = [device(n)];
        let world = &world;
        async move { world.placed(&devices).await }
    }))
    .await;
    let ledger = world.handle.wait_until(PATIENCE, |ledger| ledger.orders.len() == 500).await;
    assert!((0..500).all(|n| ledger.times_ordered(device(n).eid.as_str()) == 1));
    assert!(placed.iter().all(|id| ledger.orders.iter().any(|order| order.request_id == *id)));
    assert_eq!((ledger.calls(Endpoint::Download), ledger.in_flight(Endpoint::Download)), (500, 0));
}
