//! The endpoints of the API.
//!
//! A call is executed when its whole body has arrived. It has a task of its own, so it continues if
//! its caller disconnects.

use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    body::to_bytes,
    extract::{ConnectInfo, Request, State},
    http::{Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    Options,
    connection::ConnectionCut,
    error::{JSON, TextAnswer},
    faults::{self, Endpoint},
    order,
    state::SimulatorShared,
};
use crate::identity::{AccountName, RequestId};

type EndpointResult = Result<Response, TextAnswer>;

const MAX_BODY: usize = 16 << 20;

#[derive(Clone)]
struct RouterState {
    shared: Arc<SimulatorShared>,
    stop: CancellationToken,
}

struct SimulatedCall {
    parts: Parts,
    body: Bytes,
}

pub(super) fn router(shared: Arc<SimulatorShared>, stop: CancellationToken) -> Router {
    let to = |endpoint| {
        move |state: State<RouterState>, request: Request| call(state, endpoint, request)
    };
    Router::new()
        .route("/api/ts/v1/oauth2/token", post(to(Endpoint::Token)))
        .route("/api/m2m/v1/session/login", post(to(Endpoint::Login)))
        .route("/api/m2m/v1/devices/profile/actions/download", post(to(Endpoint::Download)))
        .route(
            "/api/m2m/v2/accounts/{account}/requests/{request}/status",
            get(to(Endpoint::Status)),
        )
        .route(
            "/api/m2m/v1/callbacks/{account}",
            get(to(Endpoint::ListCallbacks)).post(to(Endpoint::RegisterCallback)),
        )
        .route(
            "/api/m2m/v1/callbacks/{account}/name/{service}",
            delete(to(Endpoint::DeregisterCallback)),
        )
        .fallback(unexpected)
        .method_not_allowed_fallback(unexpected)
        .with_state(RouterState { shared, stop })
}

async fn unexpected(
    State(RouterState { shared, .. }): State<RouterState>,
    request: Request,
) -> Response {
    let path = request.uri().path();
    shared.update(|state| state.ledger.unexpected(format!("{} {path}", request.method())));
    let contexts = ["/api/m2m/v1/", "/api/m2m/v2/", "/api/ts/v1/"];
    let known = contexts.iter().any(|context| path.starts_with(context));
    let error = if known { TextAnswer::no_resource(path) } else { TextAnswer::not_available() };
    error.into_response()
}

async fn call(
    State(RouterState { shared, stop }): State<RouterState>,
    endpoint: Endpoint,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let ConnectInfo(cut) = parts
        .extensions
        .get::<ConnectInfo<ConnectionCut>>()
        .cloned()
        .expect("the router is served with connect info");
    let call = SimulatedCall { parts, body };
    let executed = tokio::spawn(stop.run_until_cancelled_owned(async move {
        let fault = shared.update(|state| {
            state.ledger.arrived(endpoint);
            let polled =
                (endpoint == Endpoint::Status).then(|| request_id(call.target().1)).flatten();
            let fault = state.faults.take(endpoint, polled.as_ref());
            if let Some(id) = polled {
                state.ledger.polled(id);
            }
            fault
        });
        let effect = || {
            let answer = match endpoint {
                Endpoint::Token => token(&shared, &call),
                Endpoint::Login => login(&shared, &call),
                Endpoint::Download => download(&shared, &call),
                Endpoint::Status => status(&shared, &call),
                Endpoint::ListCallbacks => list_callbacks(&shared, &call),
                Endpoint::RegisterCallback => register_callback(&shared, &call),
                Endpoint::DeregisterCallback => deregister_callback(&shared, &call),
            };
            answer.unwrap_or_else(TextAnswer::into_response)
        };
        let answer = faults::execute(fault, &cut, effect).await;
        shared.update(|state| state.ledger.answered(endpoint));
        answer
    }));
    match executed.await {
        Ok(Some(answer)) => answer,
        // The simulator stopped, or the task panicked.
        Ok(None) | Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn token(shared: &SimulatorShared, call: &SimulatedCall) -> EndpointResult {
    call.check_application(&shared.options)?;
    if !call.body.split(|byte| *byte == b'&').any(|field| field == b"grant_type=client_credentials")
    {
        return Err(TextAnswer::missing_grant_type());
    }
    let lifetime = shared.options.bearer_lifetime;
    let (text, left) =
        shared.update(|state| state.tokens.issue(lifetime, &mut state.ledger, Instant::now()));
    Ok(ok(&json!({
        "access_token": text, "scope": "default", "token_type": "Bearer",
        "expires_in": left.as_secs(),
    })))
}

#[derive(Deserialize)]
struct LoginBody {
    username: String,
    password: String,
}

fn login(shared: &SimulatorShared, call: &SimulatedCall) -> EndpointResult {
    call.check_bearer(shared)?;
    call.check_content_type()?;
    let LoginBody { username, password } =
        serde_json::from_slice(&call.body).map_err(|_| TextAnswer::unreadable())?;
    let session = shared.update(|state| {
        let now = Instant::now();
        state.expire_old_sessions(&shared.options, now);
        state.tokens.log_in(&username, &password, &shared.options, &mut state.ledger, now)
    })?;
    Ok(ok(&json!({"sessionToken": session})))
}

fn download(shared: &SimulatorShared, call: &SimulatedCall) -> EndpointResult {
    call.check(shared)?;
    let order = order::read(&call.body, &shared.options)?;
    let id = shared
        .update(|s| s.place(order.account, order.devices, order.service_plan, Instant::now()));
    Ok(ok(&json!({"requestId": id.as_str()})))
}

fn status(shared: &SimulatorShared, call: &SimulatedCall) -> EndpointResult {
    call.check(shared)?;
    let (account, request) = call.target();
    let account = order::account(account, &shared.options)?;
    let unknown = || TextAnswer::http(StatusCode::NOT_FOUND, "The request was not found");
    let id = request_id(request).ok_or_else(unknown)?;
    let now = Instant::now();
    let state = shared.lock();
    let readable = |since: Instant| now.duration_since(since) >= shared.options.readable_after;
    let request = state.requests.get(&id).filter(|r| r.account == account && readable(r.begun));
    let request = request.ok_or_else(unknown)?;
    let (shape, overall, devices) = (state.shape, request.overall, Arc::clone(&request.devices));
    let results = request.results(shared.options.mode, now);
    drop(state);
    let body = shape.write(id.as_str(), overall, &devices, &results);
    Ok(([(header::CONTENT_TYPE, JSON)], body).into_response())
}

fn list_callbacks(shared: &SimulatorShared, call: &SimulatedCall) -> EndpointResult {
    let account = callback_account(shared, call)?;
    Ok(ok(&shared.lock().callbacks.list(&account, &shared.options.callbacks)))
}

fn register_callback(shared: &SimulatorShared, call: &SimulatedCall) -> EndpointResult {
    let account = callback_account(shared, call)?;
    let answer =
        shared.update(|state| state.callbacks.register(&account, &call.body, &shared.options));
    Ok(ok(&answer?))
}

fn deregister_callback(shared: &SimulatorShared, call: &SimulatedCall) -> EndpointResult {
    let account = callback_account(shared, call)?;
    let service = call.target().1;
    Ok(ok(&shared.update(|state| state.callbacks.deregister(&account, service))?))
}

fn callback_account(
    shared: &SimulatorShared,
    call: &SimulatedCall,
) -> Result<AccountName, TextAnswer> {
    call.check(shared)?;
    order::account(call.target().0, &shared.options)
}

fn request_id(text: &str) -> Option<RequestId> {
    RequestId::parse(text).ok()
}

fn ok(body: &Value) -> Response {
    TextAnswer::json(StatusCode::OK, body).into_response()
}

impl SimulatedCall {
    fn check_application(&self, options: &Options) -> Result<(), TextAnswer> {
        let credentials = self.authorization("Basic")?;
        let valid = format!("{}:{}", options.key, options.secret.expose_secret());
        let same = BASE64_STANDARD.decode(credentials).is_ok_and(|text| text == valid.as_bytes());
        if same { Ok(()) } else { Err(TextAnswer::invalid_credentials()) }
    }

    fn check_bearer(&self, shared: &SimulatorShared) -> Result<(), TextAnswer> {
        let token = self.authorization("Bearer")?;
        let valid = shared.lock().tokens.is_bearer(token, Instant::now());
        if valid { Ok(()) } else { Err(TextAnswer::invalid_credentials()) }
    }

    /// Checks the bearer token, the session token and the content type.
    fn check(&self, shared: &SimulatorShared) -> Result<(), TextAnswer> {
        self.check_bearer(shared)?;
        let session = self.header("VZ-M2M-Token").filter(|token| !token.is_empty());
        shared.update(|state| {
            let now = Instant::now();
            state.expire_old_sessions(&shared.options, now);
            state.tokens.use_session(session, &shared.options, now)
        })?;
        self.check_content_type()
    }

    /// Checks the content type. Verizon requires it in every call, but its SDK sends none with GET.
    fn check_content_type(&self) -> Result<(), TextAnswer> {
        let is_json =
            |text: &str| text.split(';').next().is_some_and(|t| t.trim() == "application/json");
        let optional = self.parts.method == Method::GET
            && !self.parts.headers.contains_key(header::CONTENT_TYPE);
        if optional || self.header("Content-Type").is_some_and(is_json) {
            return Ok(());
        }
        let message = "The Content-Type must be application/json.";
        Err(TextAnswer::uws("REQUEST_FAILED.UnexpectedError", message))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Returns the credentials of an `Authorization` header with this scheme.
    fn authorization(&self, scheme: &str) -> Result<&str, TextAnswer> {
        let parts = self.header("Authorization").and_then(|value| value.split_once(' '));
        let found = parts.filter(|(name, _)| name.eq_ignore_ascii_case(scheme));
        found.map(|(_, text)| text.trim()).ok_or_else(TextAnswer::missing_credentials)
    }

    /// Returns the account, and the request or the service, in a path.
    fn target(&self) -> (&str, &str) {
        let mut segments = self.parts.uri.path().split('/').skip(5).step_by(2);
        (segments.next().unwrap_or(""), segments.next().unwrap_or(""))
    }
}
