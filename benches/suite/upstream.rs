//! An upstream that answers as ThingSpace does, with constant bytes and the ids of the call. It
//! costs so little that it is never what a bench measures.

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, server::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use test_support::{
    bench::{Core, Helper, on_core},
    harness::device,
};
use tokio::net::TcpListener;

/// Orders with this service plan get ids that begin so, and their devices have succeeded.
pub(crate) const FINISHED: &str = "finished";

/// An upstream in a process of its own.
pub(crate) struct Upstream {
    process: Helper,
    /// The URL of the API.
    pub(crate) url: String,
}

/// Calls since the start.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) tokens: u64,
    pub(crate) logins: u64,
    pub(crate) statuses: u64,
}

impl Upstream {
    /// Starts one that answers at once.
    pub(crate) fn start() -> Self {
        Self::start_slow(Duration::ZERO)
    }

    /// Starts one that waits before each answer.
    pub(crate) fn start_slow(delay: Duration) -> Self {
        let delay = delay.as_millis().to_string();
        let mut process = on_core(Core::Load, || Helper::start(&["upstream", &delay]));
        let url = format!("http://{}/api", process.line());
        Self { process, url }
    }

    /// Ends the session of the user.
    pub(crate) fn end_session(&mut self) {
        assert_eq!(self.process.ask("end session"), "done");
    }

    /// Ends the bearer token, and with it the session.
    pub(crate) fn end_bearer(&mut self) {
        assert_eq!(self.process.ask("end bearer"), "done");
    }

    pub(crate) fn counts(&mut self) -> Counts {
        serde_json::from_str(&self.process.ask("counts")).unwrap()
    }
}

#[derive(Default)]
struct State {
    delay: Duration,
    /// The number of the valid bearer token, and that of the valid session.
    bearer: AtomicU64,
    session: AtomicU64,
    orders: AtomicU64,
    tokens: AtomicU64,
    logins: AtomicU64,
    statuses: AtomicU64,
}

/// Prints the address, and obeys the lines of standard input.
pub(crate) async fn run(delay: u64) {
    let state = Arc::new(State { delay: Duration::from_millis(delay), ..State::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    let served = Arc::clone(&state);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let state = Arc::clone(&served);
            let service = hyper::service::service_fn(move |request| {
                let state = Arc::clone(&state);
                async move { Ok::<_, Infallible>(state.answer(request).await) }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    let lines = tokio::task::spawn_blocking(move || {
        for line in io::stdin().lines() {
            println!("{}", state.obey(&line.unwrap()));
        }
    });
    lines.await.unwrap();
}

impl State {
    fn obey(&self, line: &str) -> String {
        match line {
            "end session" => _ = self.session.fetch_add(1, Relaxed),
            "end bearer" => _ = self.bearer.fetch_add(1, Relaxed),
            _ => {
                let [tokens, logins, statuses] =
                    [&self.tokens, &self.logins, &self.statuses].map(|count| count.load(Relaxed));
                return serde_json::to_string(&Counts { tokens, logins, statuses }).unwrap();
            }
        }
        "done".to_owned()
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        let bearer = format!("bearer-{}", self.bearer.load(Relaxed));
        let session = format!("session-{}", self.session.load(Relaxed));
        let path = parts.uri.path();
        if path.ends_with("/oauth2/token") {
            self.tokens.fetch_add(1, Relaxed);
            return json(format!(
                r#"{{"access_token":"{bearer}","token_type":"Bearer","expires_in":3600}}"#
            ));
        }
        let header = |name| parts.headers.get(name).map_or(&b""[..], |value| value.as_bytes());
        if header("authorization").strip_prefix(b"Bearer ") != Some(bearer.as_bytes()) {
            let fault = r#"{"fault":{"code":"900901","message":"Invalid Credentials",
                "description":"Access failure: invalid credentials"}}"#;
            return refused(StatusCode::UNAUTHORIZED, fault);
        }
        if path.ends_with("/session/login") {
            self.logins.fetch_add(1, Relaxed);
            return json(format!(r#"{{"sessionToken":"{session}"}}"#));
        }
        if header("vz-m2m-token") != session.as_bytes() {
            let error = r#"{"errorCode":"UnifiedWebService.REQUEST_FAILED.SessionToken.Expired",
                "errorMessage":"The session token has expired."}"#;
            return refused(StatusCode::BAD_REQUEST, error);
        }
        if parts.method == Method::POST {
            let id = self.orders.fetch_add(1, Relaxed);
            let is_finished = body.len() < 1_000
                && body.windows(FINISHED.len()).any(|word| word == FINISHED.as_bytes());
            let prefix = if is_finished { FINISHED } else { "open" };
            return json(format!(r#"{{"requestId":"{prefix}-{id}"}}"#));
        }
        self.statuses.fetch_add(1, Relaxed);
        json(status(path))
    }
}

/// Returns the status of the request in a path. Each request has the first device.
fn status(path: &str) -> String {
    let id = path.split('/').nth_back(1).unwrap();
    let word = if id.starts_with(FINISHED) { "Success" } else { "Pending" };
    let ids = format!(r#"[{{"id":"{}","kind":"Iccid"}}]"#, device(0).iccid);
    let device = format!(r#"{{"ids":{ids},"status":"{word}"}}"#);
    format!(r#"{{"requestId":"{id}","status":"{word}","subRequests":[{device}]}}"#)
}

fn json(body: String) -> Response<Full<Bytes>> {
    let body = Full::new(Bytes::from(body));
    Response::builder().header("content-type", "application/json").body(body).unwrap()
}

fn refused(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = json(body.to_owned());
    *response.status_mut() = status;
    response
}
