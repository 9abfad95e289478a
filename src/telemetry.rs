//! Logs and traces: set up once, by `main`, and flushed at its end.
//!
//! Logs go to standard error, because standard output belongs to what `dev` and `check` print.
//! Traces go to an OTLP collector where one is configured. Nothing of the exporter's own traffic is
//! traced, or each export would cause the next. A dead collector delays the end of the process by
//! [`FLUSH`] at most, and nothing else.

mod collector;
pub mod rpc;
mod semconv;

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use anyhow::Context;
use opentelemetry::{KeyValue, global, trace::TracerProvider};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, filter_fn},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::config::{LogFormat, TelemetryConfig};

const SERVICE_NAME: &str = "thingspace-gateway";

/// The target of lines about who did what. No filter takes them away.
pub const AUDIT: &str = "audit";

/// How long the last spans may take to get out.
pub const FLUSH: Duration = Duration::from_secs(3);

/// What is traced. The rest is on the exporter's own way, or beneath what a reader of traces looks
/// at.
const TRACED: &str = "info,hyper=off,h2=off,tonic=off,tower=off,reqwest=off,opentelemetry=off";

/// What has to be flushed.
#[derive(Debug)]
#[must_use]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

/// Installs the process's log, tracer and propagator. To be called once, inside a runtime. An error
/// is one of configuration.
pub fn init(config: &TelemetryConfig) -> anyhow::Result<Telemetry> {
    global::set_text_map_propagator(TraceContextPropagator::new());
    let traces = match config.otlp_endpoint.as_str() {
        "" => None,
        _ => Some(exporting(config).context("telemetry.otlp_endpoint")?),
    };
    let spans = traces.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(SERVICE_NAME))
            .with_location(false)
            .with_target(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(EnvFilter::new(TRACED))
    });
    let filter = EnvFilter::try_new(&config.log_filter).context("telemetry.log_filter")?;
    let audit = filter_fn(|metadata| metadata.target() == AUDIT);
    // A line says all it has to say; spans are for traces.
    let filter = filter.or(audit).and(filter_fn(|metadata| !metadata.is_span()));
    tracing_subscriber::registry()
        .with(log(config.log_format).with_filter(filter))
        .with(spans)
        .try_init()?;
    Ok(Telemetry { traces })
}

impl Telemetry {
    /// Sends what is left. Blocks, for [`FLUSH`] at most: not to be called on a runtime's worker.
    pub fn flush(self) {
        if let Some(traces) = self.traces
            && let Err(error) = traces.shutdown_with_timeout(FLUSH)
        {
            tracing::warn!("traces are lost: {error}");
        }
    }
}

fn log(format: LogFormat) -> Box<dyn Layer<Registry> + Send + Sync> {
    let layer = fmt::layer().with_writer(io::stderr);
    match format {
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
        LogFormat::Text if io::stderr().is_terminal() => layer.boxed(),
        LogFormat::Text => layer.with_ansi(false).boxed(),
    }
}

fn exporting(config: &TelemetryConfig) -> anyhow::Result<SdkTracerProvider> {
    let exporter = SpanExporter::builder().with_tonic();
    let exporter = match collector::over_tls(config)? {
        Some(channel) => exporter.with_channel(channel),
        None => exporter.with_endpoint(&config.otlp_endpoint),
    };
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter.build()?)
        .with_resource(resource())
        .build())
}

/// Who we are, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES say otherwise.
fn resource() -> Resource {
    let version = KeyValue::new(semconv::SERVICE_VERSION, env!("CARGO_PKG_VERSION"));
    let detected = Resource::builder().with_attribute(version.clone()).build();
    let named = detected
        .get(&semconv::SERVICE_NAME.into())
        .is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    if named {
        detected
    } else {
        Resource::builder().with_attribute(version).with_service_name(SERVICE_NAME).build()
    }
}
