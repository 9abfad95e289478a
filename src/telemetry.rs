//! Logs and traces. `main` sets them up once and flushes them at the end.
//!
//! Logs go to standard error, because `dev` and `check` print to standard output. Traces go to an
//! OTLP collector, if one is configured. The exporter's own traffic is not traced, because each
//! export would cause another one. A collector that does not answer delays only the end of the
//! process, by at most [`FLUSH_TIMEOUT`].

mod audit;
mod collector;
pub(crate) mod recent_errors;
pub(crate) mod rpc;
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

pub(crate) use audit::{AUDIT, AuditEntry, PendingEntry};

const SERVICE_NAME: &str = "thingspace-gateway";

/// How long [`Telemetry::flush`] may take.
pub(crate) const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// The spans that are traced. The others belong to the exporter, or are too detailed for a trace.
const TRACED: &str = "info,hyper=off,h2=off,tonic=off,tower=off,reqwest=off,opentelemetry=off";

/// The exporter of traces, which has to be flushed.
#[derive(Debug)]
#[must_use]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

/// Installs the log, tracer and propagator of the process. Must be called once, inside a runtime.
/// Fails only for a wrong configuration.
pub fn init(config: &TelemetryConfig) -> anyhow::Result<Telemetry> {
    global::set_text_map_propagator(TraceContextPropagator::new());
    let traces = match config.otlp_endpoint.as_str() {
        "" => None,
        _ => Some(exporter(config).context("telemetry.otlp_endpoint")?),
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
    // Filters do not apply to audit lines.
    let audit = filter_fn(|metadata| metadata.target() == AUDIT);
    // Spans are not logged, so lines do not repeat their fields.
    let filter = filter.or(audit).and(filter_fn(|metadata| !metadata.is_span()));
    let registry = tracing_subscriber::registry().with(log(config.log_format).with_filter(filter));
    // A layer that is `None` has no filter. So it would enable every span and every event of all
    // libraries, for example several for each frame of HTTP/2, although nobody reads them.
    match spans {
        Some(spans) => registry.with(spans).try_init()?,
        None => registry.try_init()?,
    }
    Ok(Telemetry { traces })
}

impl Telemetry {
    /// Sends the last spans. Blocks for at most [`FLUSH_TIMEOUT`], so it must not be called on a
    /// worker of a runtime.
    pub fn flush(self) {
        if let Some(traces) = self.traces
            && let Err(error) = traces.shutdown_with_timeout(FLUSH_TIMEOUT)
        {
            tracing::warn!(%error, "the last traces are lost; check telemetry.otlp_endpoint");
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

fn exporter(config: &TelemetryConfig) -> anyhow::Result<SdkTracerProvider> {
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

/// Returns the name and version of the service. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
/// override the name.
fn resource() -> Resource {
    let version = KeyValue::new(semconv::SERVICE_VERSION, env!("CARGO_PKG_VERSION"));
    let detected = Resource::builder().with_attribute(version.clone()).build();
    let is_named = detected
        .get(&semconv::SERVICE_NAME.into())
        .is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    if is_named {
        detected
    } else {
        Resource::builder().with_attribute(version).with_service_name(SERVICE_NAME).build()
    }
}
