//! Sends one request and reads its reply, within bounds.
//!
//! Never follows a redirect, uses no proxy except the configured one, and never repeats a request:
//! the login guard counts logins, and an order must not be sent twice. hyper may try a second
//! connection, but only if nothing was sent: hyper-util repeats a request only if hyper returns it,
//! and hyper returns no request that the task of a pooled connection has taken to write its first
//! byte.
//!
//! Bounds: the time of the whole call, body included; the bytes of the body after decompression;
//! [`MAX_HEADERS`] headers of about 400 KiB together, which is hyper's own limit (reqwest has no
//! setting for it). Interim answers (1xx) are skipped within that time. 101 is an ordinary answer,
//! because no upgrade is requested.
//!
//! Every call needs a pass of its host's [`Breaker`] and reports its outcome there, except status
//! queries about external requests, which report nothing.

mod endpoint;
mod telemetry;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue,
    header::{ACCEPT, CONTENT_TYPE},
};
use reqwest::Url;
use tokio::time::Instant;
use tracing::{Instrument, field::Empty};

pub(crate) use endpoint::Endpoint;

use super::{
    breaker::{Admission, Breaker, BreakerSettings, CallOutcome, HostFailure, HostHealth, Pass},
    reply::{Reply, SendError},
    verdict::{Verdict, judge},
};
use crate::{
    config::ThingSpaceConfig,
    identity::AccountName,
    telemetry::{attribute, names},
    thingspace::BuildError,
};

/// If a pooled connection has died, the outcome of an order on it is unknown, so orders use only
/// connections that were idle for a short time.
const ORDER_IDLE: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(30);
const MAX_STATUS_BYTES: usize = 16 << 20;
const MAX_OTHER_BYTES: usize = 1 << 20;
const MAX_HEADERS: usize = 100;
/// At most this part of `max_connections` (a quarter) is kept idle for each host.
const IDLE_PART: usize = 4;

#[derive(Debug)]
pub(crate) struct Transport {
    orders: reqwest::Client,
    others: reqwest::Client,
    base: Url,
    token: Url,
    api_host: Arc<Breaker>,
    /// The same as `api_host`, unless tokens come from another host.
    token_host: Arc<Breaker>,
    /// The account whose callbacks are listed to probe the API's host.
    probed: Option<AccountName>,
    order_timeout: Duration,
    call_timeout: Duration,
}

impl Transport {
    pub(crate) fn new(
        config: &ThingSpaceConfig,
        probed: Option<AccountName>,
    ) -> Result<Self, BuildError> {
        let urls = Urls::new(config)?;
        let (orders, others) = (client(config, &urls, ORDER_IDLE)?, client(config, &urls, IDLE)?);
        let Urls { base, token } = urls;
        let (failures, first) = (config.breaker_failures, config.breaker_first);
        let settings = BreakerSettings { failures, first, most: config.breaker_max };
        let api_host = Breaker::new(host(&base), settings);
        let token_host = match host(&token) {
            same if same == api_host.host => Arc::clone(&api_host),
            other => Breaker::new(other, settings),
        };
        Ok(Self {
            orders,
            others,
            base,
            token,
            api_host,
            token_host,
            probed,
            order_timeout: config.order_timeout,
            call_timeout: config.call_timeout,
        })
    }

    pub(crate) fn breaker_open_for(&self) -> Option<Duration> {
        self.api_host.refused_for()
    }

    /// Sends a probe to the API's host if one is due. Fails with the time to wait if the breaker is
    /// open.
    pub(crate) async fn probe_if_due(self: &Arc<Self>) -> Result<(), Duration> {
        match self.admit(Endpoint::Download).await {
            Err(SendError::BreakerOpen(wait)) => Err(wait),
            // The pass is dropped unused.
            _ => Ok(()),
        }
    }

    pub(crate) fn health(&self) -> Vec<HostHealth> {
        let mut health = vec![self.api_host.health()];
        if !Arc::ptr_eq(&self.api_host, &self.token_host) {
            health.push(self.token_host.health());
        }
        health
    }

    /// Sends one request. `headers` authenticate it.
    pub(crate) async fn send(
        self: &Arc<Self>,
        endpoint: Endpoint<'_>,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Reply, SendError> {
        let pass = self.admit(endpoint).await?;
        self.send_admitted(pass, endpoint, headers, body).await
    }

    /// Gets a pass. If a probe is due and this call may not be the probe, waits for one.
    async fn admit(self: &Arc<Self>, endpoint: Endpoint<'_>) -> Result<Pass, SendError> {
        let breaker = match endpoint {
            Endpoint::Token => &self.token_host,
            _ => &self.api_host,
        };
        loop {
            match breaker.admit(endpoint.has_no_effect() && endpoint.counts()) {
                Admission::Pass(pass) => return Ok(pass),
                Admission::Refused(wait) => return Err(SendError::BreakerOpen(wait)),
                Admission::ProbeFirst(pass) => match &self.probed {
                    Some(account) if Arc::ptr_eq(breaker, &self.api_host) => {
                        self.probe(pass, account.clone()).await;
                    }
                    // A separate host for tokens gets no other calls. A token request has no
                    // effect, because ThingSpace returns the same token for an hour.
                    _ => return Ok(pass),
                },
            }
        }
    }

    /// Lists callbacks, the smallest call without an effect. It is refused, because it has no
    /// tokens, and a refusal is an answer. Runs in a task of its own, which no caller can cancel.
    async fn probe(self: &Arc<Self>, pass: Pass, account: AccountName) {
        let this = Arc::clone(self);
        let probe = async move {
            let endpoint = Endpoint::Callbacks { account: &account };
            // The pass reports the outcome.
            let _ = this.send_admitted(pass, endpoint, HeaderMap::new(), Bytes::new()).await;
        };
        // After a panic the pass was dropped, and the next call probes.
        let _ = tokio::spawn(probe.in_current_span()).await;
    }

    async fn send_admitted(
        &self,
        pass: Pass,
        endpoint: Endpoint<'_>,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Reply, SendError> {
        let (method, template) = (endpoint.method(), endpoint.template());
        let url = match endpoint {
            Endpoint::Token => self.token.clone(),
            _ => below(&self.base, endpoint.segments()),
        };
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
        let server = [
            attribute(names::SERVER_ADDRESS, url.host_str().unwrap_or_default().to_owned()),
            attribute(names::SERVER_PORT, i64::from(url.port_or_known_default().unwrap_or(0))),
        ];
        let began = Instant::now();
        let result = self.attempt(endpoint, url, headers, body).instrument(span.clone()).await;
        telemetry::measure(endpoint, server, &result, began.elapsed());
        if endpoint.counts() && !matches!(result, Err(SendError::NoDescriptor)) {
            pass.with_failure(failure(endpoint, &result)).report(outcome(endpoint, &result));
        }
        match &result {
            Ok(reply) => span.record("http.response.status_code", reply.status.as_u16()),
            Err(error) => span.record("error.type", error.kind()),
        };
        if !result.as_ref().is_ok_and(|reply| reply.status.is_success()) {
            span.record("otel.status_code", "ERROR");
        }
        result
    }

    async fn attempt(
        &self,
        endpoint: Endpoint<'_>,
        url: Url,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Result<Reply, SendError> {
        let (client, timeout) = match endpoint {
            Endpoint::Download => (&self.orders, self.order_timeout),
            _ => (&self.others, self.call_timeout),
        };
        let limit = match endpoint {
            Endpoint::Status { .. } => MAX_STATUS_BYTES,
            _ => MAX_OTHER_BYTES,
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(endpoint.content_type()));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        telemetry::inject_trace_context(&mut headers);
        let request = client.request(endpoint.method(), url).headers(headers);
        let response = request.timeout(timeout).body(body).send().await;
        match response {
            Ok(response) => Ok(Reply::read(response, limit).await),
            Err(error) => Err(SendError::from_reqwest(&error)),
        }
    }
}

fn outcome(endpoint: Endpoint<'_>, result: &Result<Reply, SendError>) -> CallOutcome {
    let Some(reply) = result.as_ref().ok().filter(|reply| !reply.cut) else {
        return CallOutcome::Failed(None);
    };
    if reply.status.is_success() {
        return CallOutcome::Answered;
    }
    // The `Retry-After` of a status query may concern only its request.
    let wait = reply.retry_after.filter(|_| !matches!(endpoint, Endpoint::Status { .. }));
    // Refused tokens and throttled calls come with any status.
    match judge(reply, |_| None::<()>) {
        Verdict::Throttled(_) => CallOutcome::Throttled(wait),
        Verdict::Unknown { .. } if reply.status.is_server_error() => CallOutcome::Failed(wait),
        Verdict::Unknown { .. } | Verdict::Stale(_) | Verdict::Refused(_) | Verdict::Done(()) => {
            CallOutcome::Answered
        }
    }
}

/// Returns how a call failed, if the host did not answer or answered with a server error.
fn failure(endpoint: Endpoint<'_>, result: &Result<Reply, SendError>) -> Option<HostFailure> {
    let (what, answered) = match result {
        Ok(reply) if reply.cut => ("the answer was cut off".to_owned(), false),
        Ok(reply) if reply.status.is_server_error() => {
            (format!("HTTP {}", reply.status.as_u16()), true)
        }
        Ok(_) => return None,
        Err(error) => (error.to_string(), false),
    };
    let what = format!("{} {}: {what}", endpoint.method(), endpoint.template());
    Some(HostFailure { what, answered })
}

/// The base of all endpoints, and the URL for tokens.
#[derive(Debug)]
pub(super) struct Urls {
    pub(super) base: Url,
    pub(super) token: Url,
}

impl Urls {
    pub(super) fn new(config: &ThingSpaceConfig) -> Result<Self, BuildError> {
        let base =
            parse_url(&config.base_url).ok_or(BuildError::Url { key: "thingspace.base_url" })?;
        let token = match config.token_url.as_str() {
            "" => below(&base, Endpoint::Token.segments()),
            url => parse_url(url).ok_or(BuildError::Url { key: "thingspace.token_url" })?,
        };
        Ok(Self { base, token })
    }
}

/// Builds an HTTP client for these URLs. It closes connections that were idle for `idle`.
pub(super) fn client(
    config: &ThingSpaceConfig,
    urls: &Urls,
    idle: Duration,
) -> Result<reqwest::Client, BuildError> {
    // Fails only if the same provider is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("thingspace-gateway/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        // With HTTP/1.1 a dead connection fails one call. With HTTP/2 all calls would share it, and
        // it would never become idle.
        .http1_only()
        .http1_max_headers(MAX_HEADERS)
        .connect_timeout(config.connect_timeout)
        .pool_max_idle_per_host((config.max_connections / IDLE_PART).max(1))
        .pool_idle_timeout(idle);
    if !config.proxy_url.is_empty() {
        let proxy = reqwest::Proxy::all(&config.proxy_url);
        let proxy = proxy.map_err(|_| BuildError::Url { key: "thingspace.proxy_url" })?;
        builder = builder.proxy(proxy);
    }
    // reqwest requires CA certificates of the system even if TLS is not used.
    if [&urls.base, &urls.token].iter().all(|url| url.scheme() == "http") {
        builder = builder.tls_certs_only([]);
    }
    builder.build().map_err(BuildError::Tls)
}

/// Returns the host and the port of a URL. Each such pair has one breaker.
pub(super) fn host(url: &Url) -> String {
    let port = url.port_or_known_default().unwrap_or_default();
    format!("{}:{port}", url.host_str().unwrap_or_default())
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

pub(super) fn below<'a>(base: &Url, segments: impl IntoIterator<Item = &'a str>) -> Url {
    let mut url = base.clone();
    url.path_segments_mut().expect("an http URL has a path").pop_if_empty().extend(segments);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_appended_and_encoded() {
        for base in ["http://h:1/api", "http://h:1/api/"] {
            let base = parse_url(base).unwrap();
            assert_eq!(below(&base, ["m2m", "a/b", ".."]).as_str(), "http://h:1/api/m2m/a%2Fb");
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
