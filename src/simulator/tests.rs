//! Tests with a real client over real sockets, and raw JSON.

mod callbacks;
mod control;
mod faults;
mod orders;
mod shapes;
mod tokens;

use std::time::Duration;

use axum::http::StatusCode;
use reqwest::{Client, RequestBuilder, Response, redirect::Policy};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Handle, Mode, Options, Simulator};
use crate::identity::{AccountName, Device, Digits, RequestId};

const ACCOUNT: &str = "0000123456-00001";
/// The longest that a test waits for a condition.
const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    url: String,
    handle: Handle,
    http: Client,
    bearer: String,
    session: String,
    /// Stops the simulator.
    _running: DropGuard,
}

fn manual() -> Options {
    Options { mode: Mode::Manual, ..Options::default() }
}

/// A simulator and a client that is logged in.
async fn world(options: Options) -> World {
    let mut world = cold(options).await;
    world.bearer = text(&body(world.token(), 200).await["access_token"]);
    world.session = text(&body(world.login("simulator-password"), 200).await["sessionToken"]);
    world
}

/// A simulator and a client without tokens.
async fn cold(options: Options) -> World {
    let simulator = Simulator::bind(options).await.unwrap();
    let stop = CancellationToken::new();
    let (url, handle) = (simulator.base_url(), simulator.handle());
    tokio::spawn(simulator.run(stop.clone()));
    let http = Client::builder().redirect(Policy::none()).timeout(PATIENCE).build().unwrap();
    World {
        url,
        handle,
        http,
        bearer: String::new(),
        session: String::new(),
        _running: stop.drop_guard(),
    }
}

impl World {
    fn token(&self) -> RequestBuilder {
        let url = format!("{}/ts/v1/oauth2/token", self.url);
        let form = [("grant_type", "client_credentials")];
        self.http.post(url).basic_auth("simulator-key", Some("simulator-secret")).form(&form)
    }

    fn login(&self, password: &str) -> RequestBuilder {
        let body = json!({"username": "simulator-user", "password": password});
        self.http
            .post(format!("{}/m2m/v1/session/login", self.url))
            .bearer_auth(&self.bearer)
            .json(&body)
    }

    fn download(&self, body: impl Into<reqwest::Body>) -> RequestBuilder {
        let url = format!("{}/m2m/v1/devices/profile/actions/download", self.url);
        self.with_tokens(self.http.post(url)).body(body)
    }

    fn order(&self, devices: &[Device]) -> RequestBuilder {
        self.download(order(devices).to_string())
    }

    fn status(&self, account: &str, request: &str) -> RequestBuilder {
        self.with_tokens(
            self.http
                .get(format!("{}/m2m/v2/accounts/{account}/requests/{request}/status", self.url)),
        )
    }

    fn with_tokens(&self, request: RequestBuilder) -> RequestBuilder {
        request
            .bearer_auth(&self.bearer)
            .header("VZ-M2M-Token", &self.session)
            .header("Content-Type", "application/json")
    }

    async fn placed(&self, devices: &[Device]) -> RequestId {
        RequestId::parse(&text(&body(self.order(devices), 200).await["requestId"])).unwrap()
    }

    async fn shown(&self, request: &RequestId) -> Value {
        body(self.status(ACCOUNT, request.as_str()), 200).await
    }
}

async fn send(request: RequestBuilder, status: u16) -> Response {
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::from_u16(status).unwrap());
    answer
}

/// Returns the JSON of the answer, which must have this status.
async fn body(request: RequestBuilder, status: u16) -> Value {
    let answer = send(request, status).await;
    assert_eq!(answer.headers()["content-type"], "application/json; charset=UTF-8");
    answer.json().await.unwrap()
}

/// Returns the `errorCode` of a refusal with HTTP 400, without the name of the service.
async fn code(request: RequestBuilder) -> String {
    let code = text(&body(request, 400).await["errorCode"]);
    code.strip_prefix("UnifiedWebService.").unwrap().to_owned()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn account() -> AccountName {
    AccountName::parse(ACCOUNT).unwrap()
}

fn device(number: u64) -> Device {
    Device {
        eid: Digits::new(&format!("{number:032}")),
        iccid: Digits::new(&format!("{number:020}")),
        imei: Digits::new(&format!("{number:015}")),
        mdn: Digits::default(),
    }
}

fn order(devices: &[Device]) -> Value {
    let ids = |d: &Device| -> Vec<Value> {
        d.present().map(|(kind, id)| json!({"kind": kind.as_str(), "id": id.as_str()})).collect()
    };
    let devices: Vec<Value> =
        devices.iter().map(|device| json!({"deviceIds": ids(device)})).collect();
    json!({"devices": devices, "accountName": ACCOUNT, "servicePlan": "service plan name"})
}
