//! An OpenTelemetry collector that keeps what it receives, over gRPC and HTTP.

use std::{
    net::SocketAddr,
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{
            ExportLogsServiceRequest, ExportLogsServiceResponse,
            logs_service_server::{LogsService, LogsServiceServer},
        },
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{AnyValue, KeyValue, any_value},
    logs::v1::LogRecord,
    metrics::v1::Metric,
    trace::v1::Span,
};
use prost::Message;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

use crate::harness::*;

/// Variables of the developer's shell that change what is exported.
const VARIABLES: [&str; 7] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_SDK_DISABLED",
];

#[derive(Debug, Default)]
pub struct Received {
    pub traces: Vec<ExportTraceServiceRequest>,
    pub metrics: Vec<ExportMetricsServiceRequest>,
    pub logs: Vec<ExportLogsServiceRequest>,
    /// The header `x-tenant` of each request, if it had one.
    pub tenants: Vec<Option<String>>,
}

#[derive(Debug, Clone, Default)]
pub struct Collector(Arc<Mutex<Received>>);

impl Collector {
    /// Starts one that speaks gRPC.
    pub async fn start() -> (Self, SocketAddr) {
        let collector = Self::default();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .add_service(MetricsServiceServer::new(collector.clone()))
            .add_service(LogsServiceServer::new(collector.clone()));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        (collector, address)
    }

    /// Starts one that speaks HTTP.
    pub async fn start_http() -> (Self, SocketAddr) {
        let collector = Self::default();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/prefix/v1/traces", post(traces_over_http))
            .route("/prefix/v1/metrics", post(metrics_over_http))
            .route("/prefix/v1/logs", post(logs_over_http))
            .with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (collector, address)
    }

    /// What was received, which discloses nothing.
    pub fn received(&self) -> MutexGuard<'_, Received> {
        let received = self.lock();
        // Pretty, so that the message of a failure has only the line.
        let shown = format!("{received:#?}");
        assert_discloses_nothing(shown.lines());
        received
    }

    fn lock(&self) -> MutexGuard<'_, Received> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn spans(&self) -> Vec<Span> {
        let received = self.received();
        let scopes = received.traces.iter().flat_map(|r| &r.resource_spans);
        scopes.flat_map(|r| &r.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }

    /// The metrics of the last export.
    pub fn metrics(&self) -> Vec<Metric> {
        let received = self.received();
        let scopes = received.metrics.last().into_iter().flat_map(|r| &r.resource_metrics);
        scopes.flat_map(|r| &r.scope_metrics).flat_map(|scope| scope.metrics.clone()).collect()
    }

    pub fn logs(&self) -> Vec<LogRecord> {
        let received = self.received();
        let scopes = received.logs.iter().flat_map(|r| &r.resource_logs);
        scopes.flat_map(|r| &r.scope_logs).flat_map(|scope| scope.log_records.clone()).collect()
    }
}

/// A command that serves, with no variable of OpenTelemetry.
pub fn command(upstream: &Upstream, config: &thingspace_gateway::config::Config) -> Command {
    let mut command = serve_command(config, upstream.dir.path());
    for name in VARIABLES {
        command.env_remove(name);
    }
    command
}

/// The text of an attribute.
pub fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text),
        _ => None,
    }
}

/// The text of a log record's message.
pub fn message(record: &LogRecord) -> &str {
    match &record.body {
        Some(AnyValue { value: Some(any_value::Value::StringValue(text)), .. }) => text,
        _ => "",
    }
}

fn tenant(text: Option<&str>) -> Option<String> {
    text.map(str::to_owned)
}

impl Collector {
    fn keep<T>(&self, request: Request<T>, keep: impl FnOnce(&mut Received, T)) {
        let text = request.metadata().get("x-tenant").and_then(|value| value.to_str().ok());
        let mut received = self.lock();
        received.tenants.push(tenant(text));
        keep(&mut received, request.into_inner());
    }

    fn keep_over_http<T: Message + Default>(
        &self,
        headers: &HeaderMap,
        body: &Bytes,
        keep: impl FnOnce(&mut Received, T),
    ) {
        assert_eq!(headers["content-type"], "application/x-protobuf");
        let text = headers.get("x-tenant").and_then(|value| value.to_str().ok());
        let mut received = self.lock();
        received.tenants.push(tenant(text));
        keep(&mut received, T::decode(&body[..]).unwrap());
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.keep(request, |received, traces| received.traces.push(traces));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.keep(request, |received, metrics| received.metrics.push(metrics));
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.keep(request, |received, logs| received.logs.push(logs));
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

async fn traces_over_http(State(to): State<Collector>, headers: HeaderMap, body: Bytes) {
    to.keep_over_http(&headers, &body, |received, traces| received.traces.push(traces));
}

async fn metrics_over_http(State(to): State<Collector>, headers: HeaderMap, body: Bytes) {
    to.keep_over_http(&headers, &body, |received, metrics| received.metrics.push(metrics));
}

async fn logs_over_http(State(to): State<Collector>, headers: HeaderMap, body: Bytes) {
    to.keep_over_http(&headers, &body, |received, logs| received.logs.push(logs));
}
