//! The one way to ThingSpace: a request goes out once, its answer comes back whole, bounded and
//! unjudged.
//!
//! Never follows a redirect, uses no proxy but the configured one, and repeats nothing: each
//! attempt is counted elsewhere, logins by the lock-out and orders by the promise never to order
//! twice. What remains is hyper's own second try, in which nothing can be sent twice: hyper-util
//! repeats a request only if hyper gives it back, and hyper gives back only what is still in the
//! channel to the task of a pooled connection. Once that task has taken it out to write its first
//! byte, whatever happens is an error without the request.
//!
//! Bounds: the time for the whole call, body included; the body, in bytes after decompression;
//! [`MAX_HEADERS`] headers, and of them less than 1 MiB: hyper stops reading a head at about 400
//! KiB (reqwest has no setting for it). Interim answers (1xx) are passed over in that time and
//! never kept; 101 is an answer like any other that was not asked for.
//!
//! Every call passes its host's [`Breaker`], and tells it what came of it.

mod endpoint;

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{ACCEPT, CONTENT_ENCODING, CONTENT_LOCATION, CONTENT_TYPE, LOCATION, RETRY_AFTER},
};
use opentelemetry::propagation::Injector;
use reqwest::Url;
use rustix::io::Errno;
use tracing::{Instrument, Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt;

pub(crate) use endpoint::Endpoint;

use super::{
    breaker::{Admission, Breaker, HostHealth, LONGEST_RETRY_AFTER, Outcome, Pass, Settings},
    verdict::{Verdict, judge},
};
use crate::{config::ThingSpaceConfig, identity::AccountName, thingspace::BuildError};

/// A dead pooled connection makes an order ambiguous, so orders use only fresh ones.
const ORDER_IDLE: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(30);
const MAX_STATUS_BYTES: usize = 16 << 20;
const MAX_OTHER_BYTES: usize = 1 << 20;
const MAX_HEADERS: usize = 100;
/// A request id outside the body. `X-Request-Id` is another thing; see [`super::verdict`].
const REQUEST_ID: HeaderName = HeaderName::from_static("requestid");
/// Of `max_connections`, how many may be kept idle for each host: what is used no more than this is
/// closed.
const IDLE_PART: usize = 4;

/// An answer: any status, and the body unless it was cut, too long or in an encoding that cannot be
/// decoded.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) retry_after: Option<Duration>,
    /// The addresses in `Location` and `Content-Location`.
    pub(crate) locations: Vec<String>,
    /// The values of headers named `requestId`.
    pub(crate) request_ids: Vec<String>,
    pub(crate) body: Option<Bytes>,
    /// The body did not come whole: the connection broke, or it took too long.
    pub(crate) cut: bool,
}

/// No answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Certainly nothing was sent.
    NotConnected(String),
    /// Nothing was sent, because this process can open no more files. It says nothing about the
    /// host.
    NoDescriptor,
    /// It may have arrived.
    Broken(String),
    /// Nothing was sent: the host does not answer, and is left alone for so long.
    LeftAlone(Duration),
}

#[derive(Debug)]
pub(crate) struct Transport {
    orders: reqwest::Client,
    others: reqwest::Client,
    base: Url,
    token: Url,
    api_host: Arc<Breaker>,
    /// The same, unless tokens come from elsewhere.
    token_host: Arc<Breaker>,
    /// Any account, to ask the API host for a sign of life.
    probed: Option<AccountName>,
    order_timeout: Duration,
    call_timeout: Duration,
}

impl Transport {
    pub(crate) fn new(
        config: &ThingSpaceConfig,
        probed: Option<AccountName>,
    ) -> Result<Self, BuildError> {
        // Refused when somebody was first, which is as good: the whole process has this one
        // provider.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let base =
            parse_url(&config.base_url).ok_or(BuildError::Url { key: "thingspace.base_url" })?;
        let token = match config.token_url.as_str() {
            "" => below(&base, &["ts", "v1", "oauth2", "token"]),
            url => parse_url(url).ok_or(BuildError::Url { key: "thingspace.token_url" })?,
        };
        let plaintext = [&base, &token].iter().all(|url| url.scheme() == "http");
        let proxy = match config.proxy_url.as_str() {
            "" => None,
            url => Some(
                reqwest::Proxy::all(url)
                    .map_err(|_| BuildError::Url { key: "thingspace.proxy_url" })?,
            ),
        };
        let client = |idle| {
            let builder = reqwest::Client::builder()
                .user_agent(concat!("thingspace-gateway/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .no_proxy()
                // A connection carries one call, so that one which died unnoticed fails one call.
                // With HTTP/2 every call would join it, and none would ever find it idle for too
                // long.
                .http1_only()
                .http1_max_headers(MAX_HEADERS)
                .connect_timeout(config.connect_timeout)
                .pool_max_idle_per_host((config.max_connections / IDLE_PART).max(1))
                .pool_idle_timeout(idle);
            let builder = match &proxy {
                Some(proxy) => builder.proxy(proxy.clone()),
                None => builder,
            };
            // Without TLS the system's CA certificates are not needed, but reqwest would insist on
            // them.
            let builder = if plaintext { builder.tls_certs_only([]) } else { builder };
            builder.build().map_err(BuildError::Tls)
        };
        let settings = Settings::new(config);
        let api_host = Breaker::new(host(&base), settings);
        let token_host = match host(&token) {
            same if same == api_host.host() => Arc::clone(&api_host),
            other => Breaker::new(other, settings),
        };
        Ok(Self {
            orders: client(ORDER_IDLE)?,
            others: client(IDLE)?,
            base,
            token,
            api_host,
            token_host,
            probed,
            order_timeout: config.order_timeout,
            call_timeout: config.call_timeout,
        })
    }

    /// For how long the API's host is left alone, if it is.
    pub(crate) fn left_alone(&self) -> Option<Duration> {
        self.api_host.refuses()
    }

    /// Probes the API's host if it is time to; or for how long it is left alone.
    pub(crate) async fn ensure_it_answers(self: &Arc<Self>) -> Result<(), Duration> {
        match self.admit(Endpoint::Download).await {
            Err(Failure::LeftAlone(wait)) => Err(wait),
            // The pass was for no call.
            Ok(_) | Err(Failure::NotConnected(_) | Failure::NoDescriptor | Failure::Broken(_)) => {
                Ok(())
            }
        }
    }

    /// How each host is doing.
    pub(crate) fn health(&self) -> Vec<HostHealth> {
        let mut health = vec![self.api_host.health()];
        if !Arc::ptr_eq(&self.api_host, &self.token_host) {
            health.push(self.token_host.health());
        }
        health
    }

    /// Sends one request. `headers` carries what authenticates it.
    pub(crate) async fn send(
        self: &Arc<Self>,
        endpoint: Endpoint<'_>,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Reply, Failure> {
        let pass = self.admit(endpoint).await?;
        self.send_admitted(pass, endpoint, headers, body).await
    }

    /// A call with an effect does not probe: it is preceded by one without.
    async fn admit(self: &Arc<Self>, endpoint: Endpoint<'_>) -> Result<Pass, Failure> {
        let breaker = match endpoint {
            Endpoint::Token => &self.token_host,
            _ => &self.api_host,
        };
        loop {
            match breaker.admit(endpoint.has_no_effect() && endpoint.counts()) {
                Admission::Pass(pass) => return Ok(pass),
                Admission::Refused(wait) => return Err(Failure::LeftAlone(wait)),
                Admission::ProbeFirst(pass) => match &self.probed {
                    Some(account) if Arc::ptr_eq(breaker, &self.api_host) => {
                        self.probe(pass, account.clone()).await;
                    }
                    // A host of its own for tokens has nothing else to ask for, and asking for one
                    // has no effect: within the hour it is the same token.
                    _ => return Ok(pass),
                },
            }
        }
    }

    /// The transport's own probe: the smallest call without effect. Without tokens it is refused,
    /// which is an answer. A task of its own, so that it comes to an end whoever waits for it.
    async fn probe(self: &Arc<Self>, pass: Pass, account: AccountName) {
        let this = Arc::clone(self);
        let probe = async move {
            let endpoint = Endpoint::Callbacks { account: &account };
            // What came of it, the pass has told.
            let _ = this.send_admitted(pass, endpoint, HeaderMap::new(), Bytes::new()).await;
        };
        // A panic told nothing, and left the probe to the next.
        let _ = tokio::spawn(probe.in_current_span()).await;
    }

    async fn send_admitted(
        &self,
        pass: Pass,
        endpoint: Endpoint<'_>,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Reply, Failure> {
        let (method, template) = (endpoint.method(), endpoint.template());
        let url = self.url(endpoint);
        let span = tracing::info_span!(
            "thingspace",
            otel.name = format!("{method} {template}"),
            otel.kind = "client",
            otel.status_code = Empty,
            error.r#type = Empty,
            http.request.method = method.as_str(),
            http.response.status_code = Empty,
            server.address = url.host_str(),
            url.template = template,
        );
        let result =
            self.attempt(endpoint, method, url, headers, body).instrument(span.clone()).await;
        if endpoint.counts() && !matches!(result, Err(Failure::NoDescriptor)) {
            pass.report(told_by(endpoint, &result));
        }
        let failed = match &result {
            Ok(reply) => {
                span.record("http.response.status_code", reply.status.as_u16());
                !reply.status.is_success()
            }
            Err(failure) => {
                span.record("error.type", failure.kind());
                true
            }
        };
        if failed {
            span.record("otel.status_code", "ERROR");
        }
        result
    }

    async fn attempt(
        &self,
        endpoint: Endpoint<'_>,
        method: Method,
        url: Url,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Result<Reply, Failure> {
        let (client, timeout, limit) = match endpoint {
            Endpoint::Download => (&self.orders, self.order_timeout, MAX_OTHER_BYTES),
            Endpoint::Status { .. } => (&self.others, self.call_timeout, MAX_STATUS_BYTES),
            Endpoint::Token
            | Endpoint::Login
            | Endpoint::Callbacks { .. }
            | Endpoint::RegisterCallback { .. }
            | Endpoint::DeregisterCallback { .. } => {
                (&self.others, self.call_timeout, MAX_OTHER_BYTES)
            }
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(endpoint.content_type()));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        inject_trace_context(&mut headers);
        let request = client.request(method, url).headers(headers).timeout(timeout).body(body);
        let mut response = request.send().await.map_err(|error| Failure::from_reqwest(&error))?;
        let retry_after = response.headers().get(RETRY_AFTER).and_then(retry_after);
        let status = response.status();
        let locations = values(response.headers(), &[LOCATION, CONTENT_LOCATION]);
        let request_ids = values(response.headers(), &[REQUEST_ID]);
        // reqwest takes the header away from what it has decoded.
        let is_encoded =
            response.headers().get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity");
        let (body, cut) = match read(&mut response, limit).await {
            Ok(body) => (Some(body).filter(|_| !is_encoded), false),
            Err(Unread::Cut) => (None, true),
            Err(Unread::TooLong) => (None, false),
        };
        Ok(Reply { status, retry_after, locations, request_ids, body, cut })
    }

    fn url(&self, endpoint: Endpoint<'_>) -> Url {
        match endpoint {
            Endpoint::Token => self.token.clone(),
            Endpoint::Login => below(&self.base, &["m2m", "v1", "session", "login"]),
            Endpoint::Download => {
                below(&self.base, &["m2m", "v1", "devices", "profile", "actions", "download"])
            }
            Endpoint::Status { account, request, .. } => below(
                &self.base,
                &[
                    "m2m",
                    "v2",
                    "accounts",
                    account.as_str(),
                    "requests",
                    request.as_str(),
                    "status",
                ],
            ),
            Endpoint::Callbacks { account } | Endpoint::RegisterCallback { account } => {
                below(&self.base, &["m2m", "v1", "callbacks", account.as_str()])
            }
            Endpoint::DeregisterCallback { account, service } => {
                below(&self.base, &["m2m", "v1", "callbacks", account.as_str(), "name", service])
            }
        }
    }
}

impl Failure {
    /// reqwest calls DNS errors, refused connections, failed handshakes and the connect time-out
    /// all "connect". The time-out of the whole call is not among them, even if it strikes while
    /// connecting.
    fn from_reqwest(error: &reqwest::Error) -> Self {
        let mut root: &dyn std::error::Error = error;
        while let Some(source) = root.source() {
            root = source;
        }
        let code = root.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        if code.is_some_and(is_lack_of_descriptors) {
            Self::NoDescriptor
        } else if error.is_connect() {
            Self::NotConnected(format!("no connection: {root}"))
        } else if error.is_builder() {
            Self::NotConnected("the request could not be built".to_owned())
        } else if error.is_timeout() {
            Self::Broken("no answer in time".to_owned())
        } else {
            Self::Broken(format!("connection broke: {root}"))
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::NotConnected(_) => "not_connected",
            Self::NoDescriptor => "no_descriptor",
            Self::Broken(_) => "no_answer",
            Self::LeftAlone(_) => "left_alone",
        }
    }
}

/// The limit of the process, or of the system. Only what opens a file fails so, hence before
/// anything is sent.
fn is_lack_of_descriptors(code: i32) -> bool {
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| errno.raw_os_error() == code)
}

/// What a call tells of its host.
fn told_by(endpoint: Endpoint<'_>, result: &Result<Reply, Failure>) -> Outcome {
    let Some(reply) = result.as_ref().ok().filter(|reply| !reply.cut) else {
        return Outcome::Failed(None);
    };
    if reply.status.is_success() {
        return Outcome::Answered;
    }
    // How long to wait may concern only the request that was asked about.
    let wait = reply.retry_after.filter(|_| !matches!(endpoint, Endpoint::Status { .. }));
    // Tokens are refused, and calls throttled, with any status.
    match judge(reply, |_| None::<()>) {
        Verdict::Throttled(_) => Outcome::Throttled(wait),
        Verdict::Unclear { .. } if reply.status.is_server_error() => Outcome::Failed(wait),
        Verdict::Unclear { .. } | Verdict::Stale(_) | Verdict::Refused(_) | Verdict::Done(()) => {
            Outcome::Answered
        }
    }
}

/// Why there is no body.
enum Unread {
    Cut,
    TooLong,
}

/// `limit` is in bytes as they are read here, after decompression: what is longer is never held.
async fn read(response: &mut reqwest::Response, limit: usize) -> Result<Bytes, Unread> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|_| Unread::Cut)? {
        if body.len() + chunk.len() > limit {
            return Err(Unread::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Host and port: what has a breaker of its own.
fn host(url: &Url) -> String {
    format!(
        "{}:{}",
        url.host_str().unwrap_or_default(),
        url.port_or_known_default().unwrap_or_default()
    )
}

/// The values of the headers of these names.
fn values(headers: &HeaderMap, names: &[HeaderName]) -> Vec<String> {
    let named = headers.iter().filter(|(name, _)| names.contains(name));
    named.map(|(_, value)| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
}

/// Seconds or an HTTP date; [`LONGEST_RETRY_AFTER`] at most.
fn retry_after(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    let wait = if let Ok(seconds) = text.parse() {
        Duration::from_secs(seconds)
    } else {
        let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
        date.duration_since(jiff::Timestamp::now()).try_into().unwrap_or(Duration::ZERO)
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

fn parse_url(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    plain.then_some(url)
}

fn below(base: &Url, segments: &[&str]) -> Url {
    let mut url = base.clone();
    url.path_segments_mut().expect("an http URL has a path").pop_if_empty().extend(segments);
    url
}

fn inject_trace_context(headers: &mut HeaderMap) {
    struct Into<'a>(&'a mut HeaderMap);
    impl Injector for Into<'_> {
        fn set(&mut self, key: &str, value: String) {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value))
            {
                self.0.insert(name, value);
            }
        }
    }
    let context = Span::current().context();
    opentelemetry::global::get_text_map_propagator(|p| {
        p.inject_context(&context, &mut Into(headers));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_and_bounded() {
        let parse = |text: &str| retry_after(&HeaderValue::from_str(text).unwrap());
        assert_eq!(parse("0"), Some(Duration::ZERO));
        assert_eq!(parse("17"), Some(Duration::from_secs(17)));
        assert_eq!(parse("86400"), Some(LONGEST_RETRY_AFTER));
        assert_eq!(parse("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(parse("Tue, 01 Jan 2999 00:00:00 GMT"), Some(LONGEST_RETRY_AFTER));
        for junk in ["", "-1", "soon", "1.5"] {
            assert_eq!(parse(junk), None, "{junk}");
        }
    }

    #[test]
    fn paths_are_appended_and_encoded() {
        for base in ["http://h:1/api", "http://h:1/api/"] {
            let base = parse_url(base).unwrap();
            assert_eq!(below(&base, &["m2m", "a/b", ".."]).as_str(), "http://h:1/api/m2m/a%2Fb");
        }
    }

    #[test]
    fn only_plain_urls() {
        for wrong in [
            "",
            "thingspace",
            "ftp://h/api",
            "http://u@h/api",
            "http://u:p@h/",
            "http://h/api?x",
            "http://h/#x",
        ] {
            assert!(parse_url(wrong).is_none(), "{wrong}");
        }
    }
}
