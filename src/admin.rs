//! Answers probes: plain HTTP on a port of its own, for Kubernetes and for operators.
//!
//! `/livez` says that the process serves, from before the store is opened until the end, even if
//! the store or ThingSpace fails. `/readyz` says whether calls can be answered, and if not, why.

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
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE},
};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::info;

use crate::{
    auth::Authenticator,
    lock::lock,
    requests::Requests,
    server::{
        ListenerOptions,
        http1::{self, Handler},
    },
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
    Serving(Requests, Authenticator),
    Draining,
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

    /// From now on these decide whether calls can be answered.
    pub(crate) fn serving(&self, requests: Requests, callers: Authenticator) {
        self.readiness.set(Stage::Serving(requests, callers));
    }

    pub(crate) fn draining(&self) {
        self.readiness.set(Stage::Draining);
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

    /// Why calls cannot be answered; `None` if they can.
    fn obstacle(&self) -> Option<Cow<'static, str>> {
        match &*lock(&self.0) {
            Stage::Starting => Some("starting: the store is not open yet".into()),
            Stage::Serving(requests, callers) => {
                requests.waits_for().or_else(|| callers.waits_for()).map(Cow::from)
            }
            Stage::Draining => Some("draining".into()),
        }
    }
}

impl Handler for Readiness {
    type Body = Full<Bytes>;

    async fn handle(self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, text): (_, Cow<'static, str>) = match request.uri().path() {
            "/livez" | "/readyz" if !matches!(*request.method(), Method::GET | Method::HEAD) => {
                (StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are allowed".into())
            }
            "/livez" => (StatusCode::OK, "alive".into()),
            "/readyz" => match self.obstacle() {
                None => (StatusCode::OK, "ready".into()),
                Some(obstacle) => (StatusCode::SERVICE_UNAVAILABLE, obstacle),
            },
            _ => (StatusCode::NOT_FOUND, "not found; there are /livez and /readyz".into()),
        };
        let mut answer = Response::new(format!("{text}\n").into());
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        answer
    }
}
