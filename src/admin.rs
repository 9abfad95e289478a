//! Answers probes and scrapes, and shows the state: plain HTTP on a port of its own, for Kubernetes
//! and for operators.
//!
//! `/livez` says that the process serves, from before the store is opened until the end, even if
//! the store or ThingSpace fails. `/readyz` says whether calls can be answered, and if not, why.
//! `/status` is a [page](mod@page) for people, and JSON for programs. `/metrics` has the metrics of
//! the process, for Prometheus. Nothing here changes anything.

mod page;

use std::{
    borrow::Cow,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{
        ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, VARY,
        X_CONTENT_TYPE_OPTIONS,
    },
};
use http_body_util::Full;
use hyper::body::Incoming;
use jiff::Timestamp;
use tokio::{
    net::TcpListener,
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::info;

use crate::{
    control::{
        GatewayParts,
        status::{self, StatusResponse},
    },
    lock::lock,
    server::{
        ListenerOptions,
        http1::{self, Handler},
    },
    telemetry::metrics::text::{self, Scrape},
};

/// The most open connections, in total and from one host.
const MAX_CONNECTIONS: usize = 64;

/// The listener uses at most one part in this many of the process's file descriptors.
const DESCRIPTORS_PART: usize = 16;

/// How long open requests may take when the gateway ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    readiness: Readiness,
    stop: DropGuard,
    serving: JoinHandle<()>,
}

/// Whether calls can be answered.
#[derive(Debug, Clone, Default)]
struct Readiness(Arc<Mutex<Stage>>);

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Starting,
    Serving(GatewayParts),
    /// `None`: it was not serving yet.
    Draining(Option<GatewayParts>),
}

impl Admin {
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (readiness, stop) = (Readiness::default(), CancellationToken::new());
        let options = ListenerOptions {
            name: "admin",
            max_connections: MAX_CONNECTIONS,
            max_connections_of_address: MAX_CONNECTIONS,
            descriptors_part: DESCRIPTORS_PART,
            networks: Vec::new(),
            connections: TaskTracker::new(),
        };
        let served = http1::serve(options, listener, None, readiness.clone(), stop.clone());
        let serving = tokio::spawn(served);
        info!(%address, "answering probes");
        Ok(Self { address, readiness, stop: stop.drop_guard(), serving })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on `parts` decide whether calls can be answered.
    pub(crate) fn serving(&self, parts: GatewayParts) {
        self.readiness.set(Stage::Serving(parts));
    }

    pub(crate) fn draining(&self) {
        let parts = self.readiness.parts();
        self.readiness.set(Stage::Draining(parts));
    }

    pub(crate) async fn end(self) {
        let Self { stop, mut serving, .. } = self;
        drop(stop);
        if timeout(CLOSE_TIMEOUT, &mut serving).await.is_err() {
            serving.abort();
        }
    }
}

impl Readiness {
    fn set(&self, stage: Stage) {
        *lock(&self.0) = stage;
    }

    /// `None`: the store is not open yet.
    fn parts(&self) -> Option<GatewayParts> {
        match &*lock(&self.0) {
            Stage::Starting => None,
            Stage::Serving(parts) => Some(parts.clone()),
            Stage::Draining(parts) => parts.clone(),
        }
    }

    /// Why calls cannot be answered; `None` if they can.
    fn obstacle(&self) -> Option<Cow<'static, str>> {
        match &*lock(&self.0) {
            Stage::Starting => Some("starting: the store is not open yet".into()),
            Stage::Serving(parts) => parts.waits_for().map(Cow::from),
            Stage::Draining(_) => Some("draining".into()),
        }
    }

    /// Returns the state of the gateway, as JSON if the client accepts JSON and no HTML.
    async fn status(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let status = match self.parts() {
            Some(parts) => Some(status::read(&parts).await),
            None => None,
        };
        let wants_json = accept(request)
            .is_some_and(|accept| accept.contains("json") && !accept.contains("html"));
        let (content_type, body) = if wants_json {
            ("application/json", serde_json::to_string_pretty(&status).unwrap_or_default())
        } else {
            ("text/html; charset=utf-8", page(status.as_ref()))
        };
        let mut answer = Response::new(body.into());
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(VARY, HeaderValue::from_static("accept"));
        headers.insert(CONTENT_SECURITY_POLICY, page::CONTENT_SECURITY_POLICY.clone());
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        answer
    }
}

fn page(status: Option<&StatusResponse>) -> String {
    status.map_or_else(page::starting, |status| page::of(status, Timestamp::now()))
}

fn accept(request: &Request<Incoming>) -> Option<&str> {
    request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok())
}

impl Handler for Readiness {
    type Body = Full<Bytes>;

    async fn handle(self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let mut content_type = "text/plain; charset=utf-8";
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let (status, text): (_, Cow<'static, str>) = match request.uri().path() {
            "/livez" | "/readyz" | "/status" | "/metrics" if !is_read => {
                (StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are allowed\n".into())
            }
            "/livez" => (StatusCode::OK, "alive\n".into()),
            "/readyz" => match self.obstacle() {
                None => (StatusCode::OK, "ready\n".into()),
                Some(obstacle) => (StatusCode::SERVICE_UNAVAILABLE, format!("{obstacle}\n").into()),
            },
            "/status" => return self.status(&request).await,
            "/metrics" => match scrape(&request).await {
                Some(scrape) => {
                    content_type = scrape.content_type;
                    (StatusCode::OK, scrape.text.into())
                }
                None => (StatusCode::NOT_FOUND, "telemetry.metrics is false\n".into()),
            },
            _ => (
                StatusCode::NOT_FOUND,
                "not found; there are /livez, /readyz, /status and /metrics\n".into(),
            ),
        };
        let body = match text {
            Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
            Cow::Owned(text) => Bytes::from(text),
        };
        let mut answer = Response::new(body.into());
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        answer
    }
}

/// Collects the metrics on a thread that may block.
async fn scrape(request: &Request<Incoming>) -> Option<Scrape> {
    let accept = accept(request).map(str::to_owned);
    spawn_blocking(move || text::scrape(accept.as_deref())).await.ok().flatten()
}
