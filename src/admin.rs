//! Whether the gateway lives, and whether it can answer: plain HTTP on a port of its own, for those
//! who run it. Never the API.
//!
//! `/livez` says that the process serves, whatever becomes of the store and of ThingSpace, from
//! before the store is opened. `/readyz` says whether calls can be answered, and in a sentence why
//! not.

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
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::info;

use crate::{
    lock::lock,
    requests::Requests,
    server::http::{self as listener, Answer, Listening},
};

/// Connections at once. The clients are few, and often one host.
const MAX_CONNECTIONS: usize = 64;

/// How long those who are looking may take to finish once the gateway ends.
const GOODBYE: Duration = Duration::from_secs(1);

/// A listener that answers from the moment it is bound until this is dropped.
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
    Serving(Requests),
    Draining,
}

impl Admin {
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (readiness, stop) = (Readiness::default(), CancellationToken::new());
        let listening = Listening {
            name: "admin",
            max_connections: MAX_CONNECTIONS,
            max_connections_of_address: MAX_CONNECTIONS,
            networks: Vec::new(),
        };
        let serving = tokio::spawn(listener::serve(
            listening,
            listener,
            None,
            readiness.clone(),
            stop.clone(),
        ));
        info!(%address, "answering probes");
        Ok(Self { address, readiness, stop: stop.drop_guard(), serving })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The store is open: from now on it is they who know.
    pub fn serving(&self, requests: Requests) {
        self.readiness.turn(Stage::Serving(requests));
    }

    pub fn draining(&self) {
        self.readiness.turn(Stage::Draining);
    }

    /// Finishes what is open.
    pub async fn end(self) {
        let Self { stop, mut serving, .. } = self;
        drop(stop);
        if timeout(GOODBYE, &mut serving).await.is_err() {
            serving.abort();
        }
    }
}

impl Readiness {
    fn turn(&self, stage: Stage) {
        *lock(&self.0) = stage;
    }

    /// `None`: calls can be answered.
    fn obstacle(&self) -> Option<Cow<'static, str>> {
        match &*lock(&self.0) {
            Stage::Starting => Some("starting: the store is not open yet".into()),
            Stage::Serving(requests) => requests.waits_for().map(Cow::from),
            Stage::Draining => Some("draining".into()),
        }
    }
}

impl Answer for Readiness {
    type Body = Full<Bytes>;

    async fn answer(self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, text): (_, Cow<'static, str>) = match request.uri().path() {
            "/livez" | "/readyz" if !matches!(*request.method(), Method::GET | Method::HEAD) => {
                (StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD".into())
            }
            "/livez" => (StatusCode::OK, "alive".into()),
            "/readyz" => match self.obstacle() {
                None => (StatusCode::OK, "ready".into()),
                Some(why_not) => (StatusCode::SERVICE_UNAVAILABLE, why_not),
            },
            _ => (StatusCode::NOT_FOUND, "here are /livez and /readyz".into()),
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
