use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Bytes, http::HeaderMap};

use super::*;
use crate::simulator::{
    CallbackOptions, CallbackRetries, CallbackShape, Case, DeviceResult, Endpoint, Fault, Gate,
    Sequence, ServiceField, SimulatedRegistration, What, When,
};

const SERVICE: &str = "DeviceProfileService";

/// Receives callbacks. It gives the first ones the chosen answers, and 200 to all others.
struct Receiver {
    url: String,
    seen: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
}

enum Answer {
    Status(u16),
    /// 200, once the gate is open.
    After(Gate),
}

impl Receiver {
    async fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let answers = Arc::new(Mutex::new(answers.into_iter().collect::<VecDeque<_>>()));
        let router = Router::new().fallback({
            let seen = Arc::clone(&seen);
            async move |headers: HeaderMap, body: Bytes| {
                seen.lock().unwrap().push((headers, body));
                let answer = answers.lock().unwrap().pop_front();
                match answer {
                    None => StatusCode::OK,
                    Some(Answer::Status(status)) => StatusCode::from_u16(status).unwrap(),
                    Some(Answer::After(gate)) => {
                        gate.opened().await;
                        StatusCode::OK
                    }
                }
            }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/somewhere", listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, router).into_future());
        Self { url, seen }
    }

    fn bodies(&self) -> Vec<Value> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .map(|(_, body)| serde_json::from_slice(body).unwrap())
            .collect()
    }

    fn texts(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        seen.iter().map(|(_, body)| String::from_utf8(body.to_vec()).unwrap()).collect()
    }
}

fn options() -> CallbackOptions {
    let retries = CallbackRetries { times: 3, interval: Duration::from_millis(10) };
    CallbackOptions {
        any_port: true,
        retries,
        patience: PATIENCE,
        senders: 1,
        ..CallbackOptions::default()
    }
}

fn calling(callbacks: CallbackOptions) -> Options {
    Options { callbacks, ..manual() }
}

impl World {
    fn callbacks(&self, account: &str) -> String {
        format!("{}/m2m/v1/callbacks/{account}", self.url)
    }

    fn list(&self) -> RequestBuilder {
        self.with_tokens(self.http.get(self.callbacks(ACCOUNT)))
    }

    fn register(&self, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.with_tokens(self.http.post(self.callbacks(ACCOUNT))).body(body)
    }

    fn deregister(&self, service: &str) -> RequestBuilder {
        self.with_tokens(self.http.delete(format!("{}/name/{service}", self.callbacks(ACCOUNT))))
    }

    /// Registers a receiver with a call.
    async fn calls(&self, receiver: &Receiver, password: &str) {
        send(self.register(registration(&receiver.url, password).to_string()), 200).await;
    }

    async fn acknowledged(&self, count: u64) {
        self.handle.wait_until(PATIENCE, |ledger| ledger.callbacks().acknowledged == count).await;
    }
}

fn registration(url: &str, password: &str) -> Value {
    json!({"name": SERVICE, "url": url, "username": "gateway", "password": password})
}

#[tokio::test]
async fn one_registration_per_service() {
    let world = world(manual()).await;
    assert_eq!(body(world.list(), 200).await, json!([]));
    let url = "https://gateway.example:28200/secret";
    let answer = json!({"accountName": ACCOUNT, "serviceName": SERVICE});
    let registration = registration(url, "open sesame").to_string();
    assert_eq!(body(world.register(registration.clone()), 200).await, answer);
    let listed = json!([{
        "accountName": ACCOUNT, "serviceName": SERVICE, "url": url,
        "username": "gateway", "password": "open sesame",
    }]);
    assert_eq!(body(world.list(), 200).await, listed);

    let taken = "REQUEST_FAILED.CallbackService.AlreadyRegistered";
    assert_eq!(code(world.register(registration.clone())).await, taken);
    let other = json!({"name": "CarrierService", "url": url});
    send(world.register(other.to_string()), 200).await;
    assert_eq!(body(world.list(), 200).await.as_array().unwrap().len(), 2);
    assert!(world.handle.registered(&AccountName::parse("0000123456-00002").unwrap()).is_none());

    assert_eq!(body(world.deregister(SERVICE), 200).await, answer);
    assert_eq!(code(world.deregister(SERVICE)).await, "REQUEST_FAILED.CallbackService.NotFound");
    send(world.register(registration), 200).await;
    let ledger = world.handle.ledger();
    let calls = [Endpoint::ListCallbacks, Endpoint::RegisterCallback, Endpoint::DeregisterCallback];
    assert_eq!(calls.map(|endpoint| ledger.calls(endpoint)), [3, 4, 2]);
}

#[tokio::test]
async fn wrong_registrations_are_refused() {
    let world = world(manual()).await;
    let changed = |key: &str, value: &str| {
        let mut body = registration("https://gateway.example/", "p");
        body[key] = value.into();
        body.to_string()
    };
    let cases = [
        ("{".to_owned(), "DeserializationFailed"),
        (changed("nome", "x"), "DeserializationFailed"),
        (changed("password", "it's"), "INPUT_INVALID.Request.InvalidCharacter"),
        (changed("name", "NoService"), "INPUT_INVALID.ServiceName.Invalid"),
        (changed("url", "gateway.example"), "INPUT_INVALID.Url.Invalid"),
        (changed("url", "ftp://gateway.example:80/"), "INPUT_INVALID.Url.Invalid"),
        (changed("url", "https://gateway.example:8443/"), "INPUT_INVALID.Url.Invalid"),
        (changed("url", "https://gateway.example:28221/"), "INPUT_INVALID.Url.Invalid"),
        (changed("password", &"x".repeat(41)), "INPUT_INVALID.Credentials.Invalid"),
        (changed("username", &"x".repeat(41)), "INPUT_INVALID.Credentials.Invalid"),
        (changed("username", "simulator-user"), "INPUT_INVALID.Credentials.Invalid"),
    ];
    for (body, wanted) in cases {
        assert_eq!(code(world.register(body.clone())).await, wanted, "{body}");
    }
    let foreign = world.with_tokens(world.http.get(world.callbacks("0000999999-00001")));
    assert_eq!(code(foreign).await, "REQUEST_FAILED.AccountName");
    assert!(world.handle.registered(&account()).is_none());
    for port in [80, 443, 9001, 9006, 50_551, 50_559, 28_200, 28_220] {
        let url = format!("http://gateway.example:{port}/");
        send(world.register(registration(&url, &"x".repeat(40)).to_string()), 200).await;
        send(world.deregister(SERVICE), 200).await;
    }
}

#[tokio::test]
async fn the_listing_may_call_a_service_by_another_name() {
    let world =
        world(calling(CallbackOptions { service_field: ServiceField::Name, ..options() })).await;
    send(world.register(registration("http://h:1/", "p").to_string()), 200).await;
    let listed = body(world.list(), 200).await;
    assert_eq!((&listed[0]["name"], listed[0].get("serviceName")), (&json!(SERVICE), None));
}

#[tokio::test]
async fn a_callback_is_as_on_the_download_page() {
    let world = world(calling(options())).await;
    let receiver = Receiver::new([]).await;
    world.calls(&receiver, "open sesame").await;
    let request = world.placed(&[device(1), device(2)]).await;
    world.handle.finish(&request, device(1).eid.as_str(), DeviceResult::Success);
    world.acknowledged(1).await;
    world.handle.finish(&request, device(2).iccid.as_str(), DeviceResult::Failed);
    world.acknowledged(2).await;

    let ids = |n: u64| {
        json!([
            {"id": format!("{n:032}"), "kind": "Eid"}, {"id": format!("{n:020}"), "kind": "Iccid"},
            {"id": format!("{n:015}"), "kind": "Imei"},
        ])
    };
    let success = json!({
        "username": "gateway", "password": "open sesame", "requestId": request.as_str(),
        "deviceIds": ids(1),
        "deviceResponse": {"deviceProfileResponse": {
            "deviceIdentifierCollection": ids(1),
            "state": "ACTIVE", "profileStatus": "ENABLE", "profileRole": "LOCAL",
        }},
        "status": "SUCCESS", "callbackCount": 1, "maxCallbackThreshold": 4,
    });
    let failure = json!({
        "username": "gateway", "password": "open sesame", "requestId": request.as_str(),
        "deviceIds": ids(2),
        "faultResponse": {
            "faultcode": "DeviceProfileService.REQUEST_FAILED.DownloadFailed",
            "faultstring": "The profile could not be downloaded.",
        },
        "status": "Failed", "callbackCount": 1, "maxCallbackThreshold": 4,
    });
    assert_eq!(receiver.bodies(), [success, failure]);
    let headers = receiver.seen.lock().unwrap()[0].0.clone();
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(headers["user-agent"], "Verizon's callback service");
    assert!(!headers.contains_key("authorization"));
    let attempts = world.handle.ledger().callbacks_of(&request);
    assert_eq!((attempts.sent, attempts.acknowledged), (2, 2));
}

#[tokio::test]
async fn each_device_is_reported_once_and_only_to_a_registered_url() {
    let world = world(calling(options())).await;
    let request = world.placed(&[device(1), device(2), device(3)]).await;
    world.handle.finish(&request, device(1).eid.as_str(), DeviceResult::Success);
    let receiver = Receiver::new([]).await;
    world.calls(&receiver, "p").await;
    world.handle.finish(&request, device(2).eid.as_str(), DeviceResult::Pending);
    world.handle.finish_all(&request, DeviceResult::Success);
    world.handle.finish_all(&request, DeviceResult::Success);
    world.acknowledged(2).await;
    let of = |body: &Value| text(&body["deviceIds"][0]["id"]);
    let told: Vec<String> = receiver.bodies().iter().map(of).collect();
    assert_eq!(told, [device(2), device(3)].map(|device| device.eid.as_str().to_owned()));
    world.handle.forget_registration(&account());
    world.handle.finish_all(&request, DeviceResult::Failed);
    world.handle.register(&account(), registered(&receiver, "p"));
    world.handle.finish_all(&request, DeviceResult::Success);
    world.acknowledged(5).await;
    assert_eq!(receiver.bodies().len(), 5);
}

fn registered(receiver: &Receiver, password: &str) -> SimulatedRegistration {
    SimulatedRegistration {
        url: receiver.url.clone(),
        username: "gateway".into(),
        password: password.into(),
    }
}

#[tokio::test]
async fn devices_that_finish_by_themselves_are_reported() {
    let after = Duration::from_millis(10);
    let auto = Options { mode: Mode::Auto { after }, callbacks: options(), ..Options::default() };
    let world = world(auto).await;
    let receiver = Receiver::new([]).await;
    world.calls(&receiver, "p").await;
    let request = world.placed(&[device(7), device(8), device(1), device(5)]).await;
    world.acknowledged(4).await;
    let words =
        |body: &Value| (text(&body["deviceIds"][0]["id"]).pop().unwrap(), text(&body["status"]));
    let told: Vec<_> = receiver.bodies().iter().map(words).collect();
    let wanted = [('8', "Failed"), ('1', "SUCCESS"), ('5', "SUCCESS"), ('7', "SUCCESS")];
    assert_eq!(told, wanted.map(|(digit, word)| (digit, word.to_owned())));
    assert_eq!(world.handle.ledger().callbacks_of(&request).acknowledged, 4);
}

#[tokio::test]
async fn a_callback_that_is_not_acknowledged_is_repeated() {
    let world = world(calling(options())).await;
    let receiver = Receiver::new([503, 401, 500, 404, 503].map(Answer::Status)).await;
    world.calls(&receiver, "p").await;
    let request = world.placed(&[device(1)]).await;
    world.handle.finish_all(&request, DeviceResult::Success);
    world.handle.wait_until(PATIENCE, |l| l.callbacks().refused.values().sum::<u64>() == 4).await;
    // There is one sender, so the second shows that the first has ended.
    world.handle.finish_all(&request, DeviceResult::Failed);
    world.acknowledged(1).await;
    let counts: Vec<Value> =
        receiver.bodies().iter().map(|body| body["callbackCount"].clone()).collect();
    assert_eq!(counts, [1, 2, 3, 4, 1, 2]);
    let attempts = world.handle.ledger().callbacks_of(&request);
    assert_eq!((attempts.sent, attempts.acknowledged), (6, 1));
    assert_eq!(
        attempts.refused.into_iter().collect::<Vec<_>>(),
        [(401, 1), (404, 1), (500, 1), (503, 2)]
    );
}

#[tokio::test]
async fn a_receiver_that_is_away() {
    let world = world(calling(options())).await;
    let mut nowhere = registration("http://127.0.0.1:1/", "p");
    nowhere["username"] = "".into();
    send(world.register(nowhere.to_string()), 200).await;
    let request = world.placed(&[device(1)]).await;
    world.handle.finish_all(&request, DeviceResult::Success);
    world.handle.wait_until(PATIENCE, |ledger| ledger.callbacks().broken == 4).await;
}

#[tokio::test]
async fn a_slow_attempt_is_followed_by_another_while_it_is_open() {
    let patience = Duration::from_millis(50);
    let retries = CallbackRetries { times: 1, interval: Duration::ZERO };
    let world =
        world(calling(CallbackOptions { patience, retries, senders: 2, ..options() })).await;
    let gate = Gate::default();
    let receiver = Receiver::new([Answer::After(gate.clone())]).await;
    world.calls(&receiver, "p").await;
    let request = world.placed(&[device(1)]).await;
    world.handle.finish_all(&request, DeviceResult::Success);
    world.acknowledged(1).await;
    assert_eq!(world.handle.ledger().callbacks().sent, 2);
    gate.open();
    world.acknowledged(2).await;
    let counts: Vec<Value> =
        receiver.bodies().iter().map(|body| body["callbackCount"].clone()).collect();
    assert_eq!(counts, [1, 2]);
}

#[tokio::test]
async fn the_old_pair_is_sent_for_a_while() {
    let old_pair = Duration::from_hours(1);
    let world = world(calling(CallbackOptions { old_pair, ..options() })).await;
    let receiver = Receiver::new([]).await;
    world.calls(&receiver, "old").await;
    send(world.deregister(SERVICE), 200).await;
    world.calls(&receiver, "new").await;
    let request = world.placed(&[device(1), device(2), device(3), device(4)]).await;
    world.handle.finish_all(&request, DeviceResult::Success);
    world.acknowledged(4).await;
    let passwords: Vec<String> =
        receiver.bodies().iter().map(|body| text(&body["password"])).collect();
    assert_eq!(passwords, ["old", "new", "old", "new"]);
}

#[tokio::test]
async fn held_callbacks_come_in_another_order() {
    let world = world(calling(options())).await;
    let receiver = Receiver::new([]).await;
    world.calls(&receiver, "p").await;
    let request = world.placed(&[device(1), device(2), device(3)]).await;
    world.handle.hold_callbacks();
    world.handle.finish_all(&request, DeviceResult::Success);
    // This one is not held, so it shows that the others are.
    let shape = CallbackShape::default();
    world.handle.deliver(&request, device(1).eid.as_str(), DeviceResult::Failed, shape);
    world.acknowledged(1).await;
    world.handle.release_callbacks(Sequence::Reversed);
    world.acknowledged(4).await;
    let told: Vec<Value> =
        receiver.bodies()[1..].iter().map(|body| body["deviceIds"][1]["id"].clone()).collect();
    assert_eq!(told, [3, 2, 1].map(|n: u64| format!("{n:020}")));
}

#[tokio::test]
async fn a_shuffled_flood_loses_none() {
    let world = world(calling(CallbackOptions { senders: 64, ..options() })).await;
    let receiver = Receiver::new([]).await;
    world.calls(&receiver, "p").await;
    let devices: Vec<_> = (0..500).map(device).collect();
    let request = world.placed(&devices).await;
    world.handle.hold_callbacks();
    world.handle.finish_all(&request, DeviceResult::Success);
    world.handle.release_callbacks(Sequence::Shuffled);
    world.acknowledged(500).await;
    let mut told: Vec<String> =
        receiver.bodies().iter().map(|body| text(&body["deviceIds"][0]["id"])).collect();
    told.sort();
    assert!(told.iter().eq(devices.iter().map(|device| device.eid.as_str())));
}

#[tokio::test]
async fn a_callback_may_overtake_the_answer_to_its_order() {
    let world = world(calling(options())).await;
    let receiver = Receiver::new([]).await;
    world.calls(&receiver, "p").await;
    let gate = Gate::default();
    world.handle.inject(Fault::once(
        Endpoint::Download,
        When::AfterEffect,
        What::Hold(gate.clone()),
    ));
    let order = tokio::spawn(world.order(&[device(1)]).send());
    let ledger = world.handle.wait_until(PATIENCE, |ledger| ledger.orders.len() == 1).await;
    world.handle.finish_all(&ledger.orders[0].request_id, DeviceResult::Success);
    world.acknowledged(1).await;
    assert_eq!(world.handle.ledger().in_flight(Endpoint::Download), 1);
    gate.open();
    assert_eq!(order.await.unwrap().unwrap().status(), StatusCode::OK);
}

/// Returns the bodies of one shape for one result.
async fn written(result: DeviceResult, shape: CallbackShape) -> Vec<String> {
    let world = world(calling(options())).await;
    let receiver = Receiver::new([]).await;
    world.calls(&receiver, "p").await;
    let request = world.handle.add_request(account(), [device(1)]);
    world.handle.deliver(&request, device(1).eid.as_str(), result, shape);
    world.acknowledged(if shape.warning_first { 2 } else { 1 }).await;
    receiver.texts().into_iter().map(|text| text.replace(request.as_str(), "R")).collect()
}

#[tokio::test]
async fn the_oldest_shape() {
    let shape = CallbackShape { case: Case::Pascal, ..CallbackShape::default() };
    let bodies = written(DeviceResult::Failed, shape).await;
    assert_eq!(
        serde_json::from_str::<Value>(&bodies[0]).unwrap(),
        json!({
            "username": "gateway", "password": "p", "RequestId": "R", "Status": "Failed",
            "Device": [
                {"Kind": "Eid", "Identifier": format!("{:032}", 1)},
                {"Kind": "Iccid", "Identifier": format!("{:020}", 1)},
                {"Kind": "Imei", "Identifier": format!("{:015}", 1)},
            ],
            "FaultResponse": {
                "Faultcode": "DeviceProfileService.REQUEST_FAILED.DownloadFailed",
                "Faultstring": "The profile could not be downloaded.",
            },
            "CallbackCount": 1, "MaxCallbackThreshold": 4,
        })
    );
}

#[tokio::test]
async fn a_warning_is_sent_before_the_final_callback() {
    let shape = CallbackShape { warning_first: true, ..CallbackShape::default() };
    let bodies = written(DeviceResult::Success, shape).await;
    let words: Vec<String> = bodies
        .iter()
        .map(|body| text(&serde_json::from_str::<Value>(body).unwrap()["status"]))
        .collect();
    assert_eq!(words, ["warning", "SUCCESS"]);
}
