//! The exporters to an OTLP collector, over gRPC or HTTP, with or without TLS.
//!
//! They connect when there is something to send, and never block a call: what does not fit into
//! their queues is dropped. All signals share one connection pool, and the headers of
//! `telemetry.otlp_headers_file`, which may hold a secret.

use std::{path::Path, time::Duration};

use anyhow::{Context, bail};
use async_trait::async_trait;
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    LogExporter, MetricExporter, Protocol, SpanExporter, WithExportConfig, WithHttpConfig,
    WithTonicConfig,
};
use secrecy::ExposeSecret;
use tokio::runtime::Handle;
use tonic::{
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};

use crate::{
    certificate,
    config::{
        self, OtlpProtocol, TelemetryConfig,
        url::{Url, WEB},
    },
    secret_file, tls_client,
};

/// How long the collector may take for one answer, and for a connection.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The largest answer of a collector over HTTP, in bytes. A usual one is empty.
const MAX_ANSWER: usize = 64 << 10;

/// Where telemetry is sent, and how.
pub(super) struct Collector {
    endpoint: String,
    headers: HeaderMap,
    transport: Transport,
}

enum Transport {
    Grpc(Channel),
    Http(HttpSender),
}

impl Collector {
    /// Connects to nothing yet. Must be called inside a runtime. `None`: there is no endpoint.
    pub(super) fn new(config: &TelemetryConfig) -> anyhow::Result<Option<Self>> {
        if config.otlp_endpoint.is_empty() {
            return Ok(None);
        }
        let headers = match config::set(&config.otlp_headers_file) {
            Some(file) => read_headers(&file).map_err(anyhow::Error::msg)?,
            None => HeaderMap::new(),
        };
        let ca_file = config::set(&config.otlp_ca_file);
        let transport = match config.otlp_protocol {
            OtlpProtocol::Grpc => {
                Transport::Grpc(channel(&config.otlp_endpoint, ca_file.as_deref())?)
            }
            OtlpProtocol::Http => Transport::Http(HttpSender::new(ca_file.as_deref())?),
        };
        let endpoint = config.otlp_endpoint.trim_end_matches('/').to_owned();
        Ok(Some(Self { endpoint, headers, transport }))
    }

    pub(super) fn traces(&self) -> anyhow::Result<SpanExporter> {
        let builder = SpanExporter::builder();
        Ok(match &self.transport {
            Transport::Grpc(channel) => self.over_grpc(builder.with_tonic(), channel).build()?,
            Transport::Http(sender) => {
                self.over_http(builder.with_http(), sender, "traces").build()?
            }
        })
    }

    pub(super) fn metrics(&self) -> anyhow::Result<MetricExporter> {
        let builder = MetricExporter::builder();
        Ok(match &self.transport {
            Transport::Grpc(channel) => self.over_grpc(builder.with_tonic(), channel).build()?,
            Transport::Http(sender) => {
                self.over_http(builder.with_http(), sender, "metrics").build()?
            }
        })
    }

    pub(super) fn logs(&self) -> anyhow::Result<LogExporter> {
        let builder = LogExporter::builder();
        Ok(match &self.transport {
            Transport::Grpc(channel) => self.over_grpc(builder.with_tonic(), channel).build()?,
            Transport::Http(sender) => {
                self.over_http(builder.with_http(), sender, "logs").build()?
            }
        })
    }

    fn over_grpc<B: WithTonicConfig>(&self, builder: B, channel: &Channel) -> B {
        builder
            .with_channel(channel.clone())
            .with_metadata(MetadataMap::from_headers(self.headers.clone()))
    }

    fn over_http<B>(&self, builder: B, sender: &HttpSender, signal: &str) -> B
    where
        B: WithHttpConfig + WithExportConfig,
    {
        let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
        let headers = self.headers.iter().map(|(name, value)| (name.to_string(), text(value)));
        builder
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/{signal}", self.endpoint))
            .with_headers(headers.collect())
            .with_http_client(sender.clone())
    }
}

/// Returns a channel that connects when there is something to send.
fn channel(endpoint: &str, ca_file: Option<&Path>) -> anyhow::Result<Channel> {
    let url = Url::parse(endpoint, WEB).map_err(anyhow::Error::msg)?;
    let endpoint = Endpoint::from_shared(endpoint.to_owned())?;
    let endpoint = endpoint.timeout(TIMEOUT).connect_timeout(TIMEOUT);
    if url.scheme == "https" {
        let connect = tls_client::connector(&url, ca_file, None)?;
        Ok(endpoint.connect_with_connector_lazy(connect))
    } else {
        Ok(endpoint.connect_lazy())
    }
}

/// Reads the headers of each request, one on a line: `NAME: VALUE`. Errors quote no value.
pub(crate) fn read_headers(file: &Path) -> Result<HeaderMap, String> {
    let text = secret_file::check_lines(file).map_err(|why| secret_file::problem(file, &why))?;
    let mut headers = HeaderMap::new();
    for (number, line) in (1..).zip(text.expose_secret().lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let header = line.split_once(':').and_then(|(name, value)| {
            let name: HeaderName = name.trim().parse().ok()?;
            let mut value: HeaderValue = value.trim().parse().ok()?;
            value.set_sensitive(true);
            value.to_str().is_ok().then_some((name, value))
        });
        let (name, value) =
            header.ok_or_else(|| format!("{} line {number}: write NAME: VALUE", file.display()))?;
        headers.insert(name, value);
    }
    Ok(headers)
}

/// Sends requests on the gateway's runtime, because the exporters' own threads have none.
#[derive(Debug, Clone)]
struct HttpSender {
    client: reqwest::Client,
    runtime: Handle,
}

impl HttpSender {
    fn new(ca_file: Option<&Path>) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(TIMEOUT);
        let client = match ca_file {
            Some(file) => {
                let authorities =
                    certificate::check_authorities(file).map_err(anyhow::Error::msg)?;
                let authorities = authorities.iter().map(|der| reqwest::Certificate::from_der(der));
                client.tls_certs_only(authorities.collect::<Result<Vec<_>, _>>()?)
            }
            None => client,
        };
        let client = client.build().context("the HTTPS client cannot be set up")?;
        Ok(Self { client, runtime: Handle::current() })
    }
}

#[async_trait]
impl HttpClient for HttpSender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (client, request) = (self.client.clone(), request.try_into()?);
        let exchange = async move {
            let mut answer = client.execute(request).await?;
            let mut response = Response::builder().status(answer.status());
            if let Some(headers) = response.headers_mut() {
                *headers = std::mem::take(answer.headers_mut());
            }
            let mut body = Vec::new();
            while let Some(part) = answer.chunk().await? {
                body.extend_from_slice(&part);
                if body.len() > MAX_ANSWER {
                    bail!("the answer is larger than {MAX_ANSWER} bytes");
                }
            }
            Ok(response.body(Bytes::from(body))?)
        };
        Ok(self.runtime.spawn(exchange).await??)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_and_never_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("headers");
        std::fs::write(&file, "authorization: Bearer hidden:1\n\nx-tenant:esim\n").unwrap();
        let headers = read_headers(&file).unwrap();
        assert_eq!(headers["authorization"], "Bearer hidden:1");
        assert_eq!(headers["x-tenant"], "esim");
        assert!(!format!("{headers:?}").contains("hidden"));
        for wrong in ["hidden", "x y: hidden", "x-tenant: hid\u{7f}den"] {
            std::fs::write(&file, format!("a: b\n{wrong}\n")).unwrap();
            let why = read_headers(&file).unwrap_err();
            assert!(why.contains("line 2") && !why.contains("hid"), "{why}");
        }
    }
}
