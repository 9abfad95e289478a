//! The endpoints.
//!
//! A call that has arrived whole is carried through in a task of its own, as in any real service: a
//! caller that goes away stops nothing.

use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    body::to_bytes,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    Options, callbacks,
    connection::Cut,
    faults::{self, Endpoint},
    order,
    refusal::{JSON, Refusal},
    state::Shared,
};
use crate::identity::{AccountName, RequestId};

/// A request's body.
const BODY_BYTES: usize = 16 << 20;

#[derive(Clone)]
struct Serving {
    shared: Arc<Shared>,
    stop: CancellationToken,
}

struct Call {
    parts: Parts,
    body: Bytes,
}

pub(super) fn router(shared: Arc<Shared>, stop: CancellationToken) -> Router {
    let to = |endpoint| {
        move |serving: State<Serving>, request: Request| call(serving, endpoint, request)
    };
    Router::new()
        .route("/api/ts/v1/oauth2/token", post(to(Endpoint::Token)))
        .route("/api/ts/v1/oauth2/revoke", post(to(Endpoint::Revoke)))
        .route("/api/m2m/v1/session/login", post(to(Endpoint::Login)))
        .route("/api/m2m/v1/session/logout", post(to(Endpoint::Logout)))
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
        .fallback(nowhere)
        .method_not_allowed_fallback(nowhere)
        .with_state(Serving { shared, stop })
}

async fn nowhere(State(Serving { shared, .. }): State<Serving>, request: Request) -> Response {
    let path = request.uri().path();
    shared.update(|state| state.ledger.lost(format!("{} {path}", request.method())));
    let known = ["/api/m2m/v1/", "/api/m2m/v2/", "/api/ts/v1/"]
        .iter()
        .any(|context| path.starts_with(context));
    let refusal = if known { Refusal::no_resource(path) } else { Refusal::not_available() };
    refusal.respond(shared.options.numeric_codes)
}

async fn call(
    State(Serving { shared, stop }): State<Serving>,
    endpoint: Endpoint,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_BYTES).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let ConnectInfo(cut) = parts
        .extensions
        .get::<ConnectInfo<Cut>>()
        .cloned()
        .expect("the router is served with connect info");
    let call = Call { parts, body };
    let carried = tokio::spawn(stop.run_until_cancelled_owned(async move {
        let fault = shared.update(|state| {
            state.ledger.arrived(endpoint);
            let asked =
                (endpoint == Endpoint::Status).then(|| request_id(call.target().1)).flatten();
            let fault = state.faults.take(endpoint, asked.as_ref());
            if let Some(id) = asked {
                state.ledger.polled(id);
            }
            fault
        });
        let effect = || {
            let outcome = match endpoint {
                Endpoint::Token => token(&shared, &call),
                Endpoint::Revoke => revoke(&shared, &call),
                Endpoint::Login => login(&shared, &call),
                Endpoint::Logout => logout(&shared, &call),
                Endpoint::Download => download(&shared, &call),
                Endpoint::Status => status(&shared, &call),
                Endpoint::ListCallbacks => list_callbacks(&shared, &call),
                Endpoint::RegisterCallback => register_callback(&shared, &call),
                Endpoint::DeregisterCallback => deregister_callback(&shared, &call),
            };
            outcome.unwrap_or_else(|refusal| refusal.respond(shared.options.numeric_codes))
        };
        let answer = faults::suffer(fault, &cut, effect).await;
        shared.update(|state| state.ledger.answered(endpoint));
        answer
    }));
    match carried.await {
        Ok(Some(answer)) => answer,
        // Stopped, and the connection with it, or a panic, which has been printed.
        Ok(None) | Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn token(shared: &Shared, call: &Call) -> Result<Response, Refusal> {
    call.check_application(&shared.options)?;
    if call.form("grant_type") != Some("client_credentials") {
        return Err(Refusal::oauth("invalid_request", "Missing grant_type parameter value"));
    }
    let lifetime = shared.options.bearer_lifetime;
    let (text, left) =
        shared.update(|state| state.tokens.issue(lifetime, &mut state.ledger, Instant::now()));
    let expires_in = if shared.options.expires_in_counts_down { left } else { lifetime };
    Ok(written(&json!({
        "access_token": text, "scope": "default", "token_type": "Bearer", "expires_in": expires_in.as_secs(),
    })))
}

fn revoke(shared: &Shared, call: &Call) -> Result<Response, Refusal> {
    call.check_application(&shared.options)?;
    let text = call
        .form("token")
        .ok_or(Refusal::oauth("invalid_request", "Missing token parameter value"))?;
    shared.update(|state| state.tokens.revoke(text));
    Ok([("RevokedAccessToken", text)].into_response())
}

#[derive(Deserialize)]
struct Credentials {
    username: String,
    password: String,
}

fn login(shared: &Shared, call: &Call) -> Result<Response, Refusal> {
    call.check_bearer(shared)?;
    call.check_content_type()?;
    let Credentials { username, password } = serde_json::from_slice(&call.body)
        .map_err(|_| Refusal::uws("DeserializationFailed", "The request could not be read."))?;
    let session = shared.update(|state| {
        let now = Instant::now();
        state.sweep(&shared.options, now);
        state.tokens.log_in(&username, &password, &shared.options, &mut state.ledger, now)
    })?;
    Ok(written(&json!({"sessionToken": session})))
}

fn logout(shared: &Shared, call: &Call) -> Result<Response, Refusal> {
    call.check_both(shared)?;
    let session = call.session().unwrap_or_default();
    shared.update(|state| state.tokens.log_out(session));
    Ok(written(&json!({"sessionToken": session})))
}

fn download(shared: &Shared, call: &Call) -> Result<Response, Refusal> {
    call.check_both(shared)?;
    call.check_content_type()?;
    let order = order::read(&call.body, &shared.options)?;
    let id = shared
        .update(|s| s.place(order.account, order.devices, order.service_plan, Instant::now()));
    Ok(written(&json!({"requestId": id.as_str()})))
}

fn status(shared: &Shared, call: &Call) -> Result<Response, Refusal> {
    call.check_both(shared)?;
    call.check_content_type()?;
    let (account, request) = call.target();
    let account = order::account(account, &shared.options)?;
    let unknown = || Refusal::http(StatusCode::NOT_FOUND, "The request was not found");
    let id = request_id(request).ok_or_else(unknown)?;
    let now = Instant::now();
    let state = shared.lock();
    let readable = |since: Instant| now.duration_since(since) >= shared.options.readable_after;
    let request = state.requests.get(&id).filter(|r| r.account == account && readable(r.begun));
    let request = request.ok_or_else(unknown)?;
    let (shape, overall, devices) = (state.shape, request.overall, Arc::clone(&request.devices));
    let outcomes = request.outcomes(shared.options.mode, now);
    drop(state);
    let body = shape.write(id.as_str(), overall, &devices, &outcomes);
    Ok(([(header::CONTENT_TYPE, JSON)], body).into_response())
}

fn list_callbacks(shared: &Shared, call: &Call) -> Result<Response, Refusal> {
    let account = callback_account(shared, call)?;
    Ok(written(&callbacks::list(&shared.lock().callbacks, &account, &shared.options.callbacks)))
}

fn register_callback(shared: &Shared, call: &Call) -> Result<Response, Refusal> {
    let account = callback_account(shared, call)?;
    let answer = shared
        .update(|s| callbacks::register(&mut s.callbacks, &account, &call.body, &shared.options));
    Ok(written(&answer?))
}

fn deregister_callback(shared: &Shared, call: &Call) -> Result<Response, Refusal> {
    let account = callback_account(shared, call)?;
    let service = call.target().1;
    Ok(written(
        &shared.update(|state| callbacks::deregister(&mut state.callbacks, &account, service))?,
    ))
}

fn callback_account(shared: &Shared, call: &Call) -> Result<AccountName, Refusal> {
    call.check_both(shared)?;
    call.check_content_type()?;
    order::account(call.target().0, &shared.options)
}

fn request_id(text: &str) -> Option<RequestId> {
    RequestId::parse(text).ok()
}

fn written(body: &serde_json::Value) -> Response {
    ([(header::CONTENT_TYPE, JSON)], body.to_string()).into_response()
}

impl Call {
    /// Key and secret of the application.
    fn check_application(&self, options: &Options) -> Result<(), Refusal> {
        let given =
            credentials(&self.parts.headers, "Basic").ok_or_else(Refusal::missing_credentials)?;
        let wanted = format!("{}:{}", options.key, options.secret.expose_secret());
        let same = BASE64_STANDARD.decode(given).is_ok_and(|given| given == wanted.as_bytes());
        if same { Ok(()) } else { Err(Refusal::invalid_credentials()) }
    }

    fn check_bearer(&self, shared: &Shared) -> Result<(), Refusal> {
        let given =
            credentials(&self.parts.headers, "Bearer").ok_or_else(Refusal::missing_credentials)?;
        let holds = shared.lock().tokens.bearer_holds(given, Instant::now());
        if holds { Ok(()) } else { Err(Refusal::invalid_credentials()) }
    }

    /// Bearer, then session.
    fn check_both(&self, shared: &Shared) -> Result<(), Refusal> {
        self.check_bearer(shared)?;
        shared.update(|state| {
            let now = Instant::now();
            state.sweep(&shared.options, now);
            state.tokens.use_session(self.session(), &shared.options, now)
        })
    }

    /// Verizon demands a content type of every call, but its own SDK sends none with a GET.
    fn check_content_type(&self) -> Result<(), Refusal> {
        if self.parts.method == Method::GET
            && !self.parts.headers.contains_key(header::CONTENT_TYPE)
        {
            return Ok(());
        }
        let json =
            |text: &str| text.split(';').next().is_some_and(|t| t.trim() == "application/json");
        let said =
            self.parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if said.is_some_and(json) {
            Ok(())
        } else {
            Err(Refusal::uws(
                "REQUEST_FAILED.UnexpectedError",
                "The Content-Type must be application/json.",
            ))
        }
    }

    fn session(&self) -> Option<&str> {
        self.parts
            .headers
            .get("VZ-M2M-Token")
            .and_then(|value| value.to_str().ok())
            .filter(|text| !text.is_empty())
    }

    /// A field of a form whose values need no decoding, as those of OAuth here do not.
    fn form(&self, name: &str) -> Option<&str> {
        let body = std::str::from_utf8(&self.body).ok()?;
        body.split('&')
            .filter_map(|field| field.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }

    /// Account and request in a status path; account and service in a path of callbacks.
    fn target(&self) -> (&str, &str) {
        let mut segments = self.parts.uri.path().split('/').skip(5).step_by(2);
        (segments.next().unwrap_or(""), segments.next().unwrap_or(""))
    }
}

fn credentials<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a str> {
    let (said, credentials) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    said.eq_ignore_ascii_case(scheme).then_some(credentials.trim())
}
