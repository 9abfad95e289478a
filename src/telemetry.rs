//! Logs, metrics and traces. `main` sets them up once and flushes them at the end.
//!
//! - Logs go to standard error, because `dev` and `check` print to standard output.
//! - Metrics are at `/metrics` of the admin listener; [`names`] lists them.
//! - An OTLP [`collector`] gets logs, metrics and traces, if one is configured. The exporter's own
//!   traffic is neither logged there nor traced, because each export would cause another one.
//!   Without a collector, no span is created, and with one only those that the [`sampler`]
//!   chooses.
//!
//! A collector that does not answer delays only the end of the process, by at most
//! [`FLUSH_TIMEOUT`].

mod audit;
pub(crate) mod causes;
mod collector;
pub(crate) mod metrics;
pub(crate) mod names;
pub(crate) mod recent_errors;
pub(crate) mod rpc;
mod sampler;

use std::{
    io::{self, IsTerminal},
    thread,
    time::Duration,
};

use anyhow::Context;
use opentelemetry::{KeyValue, global, trace::TracerProvider};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    logs::SdkLoggerProvider,
    metrics::SdkMeterProvider,
    propagation::TraceContextPropagator,
    trace::{Sampler as SpanSampler, SdkTracerProvider},
};
use tracing::{Metadata, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, filter_fn},
    fmt,
    layer::{Filter, SubscriberExt},
    util::SubscriberInitExt,
};

use crate::config::{LogFormat, OtlpSignals, TelemetryConfig};
use collector::Collector;

pub(crate) use audit::{AUDIT, AuditEntry, PendingEntry};
pub(crate) use collector::read_headers;
pub(crate) use metrics::{attribute, metrics};
pub(crate) use sampler::Sampler;

const SERVICE_NAME: &str = "thingspace-gateway";

/// How long [`Telemetry::flush`] may take.
pub(crate) const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// The libraries through which telemetry is exported. They also serve other connections, but their
/// spans are too detailed for a trace.
const EXPORTERS: [&str; 6] = ["hyper", "h2", "tonic", "tower", "reqwest", "opentelemetry"];

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// What has to be flushed.
#[derive(Debug)]
#[must_use]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
    logs: Option<SdkLoggerProvider>,
}

/// Installs the log, the metrics, the tracer and the propagator of the process. Must be called
/// once, inside the runtime. Fails only for a wrong configuration.
pub fn init(config: &TelemetryConfig) -> anyhow::Result<Telemetry> {
    global::set_text_map_propagator(TraceContextPropagator::new());
    let collector = Collector::new(config).context("telemetry.otlp_endpoint")?;
    let collector = collector.as_ref();
    let OtlpSignals { traces, metrics, logs } = config.otlp_signals;
    let traces = collector.filter(|_| traces).map(Collector::traces).transpose()?.map(|exporter| {
        SdkTracerProvider::builder()
            // Spans that are not sampled are not created.
            .with_sampler(SpanSampler::AlwaysOn)
            .with_batch_exporter(exporter)
            .with_resource(resource())
            .build()
    });
    let logs = collector.filter(|_| logs).map(Collector::logs).transpose()?.map(|exporter| {
        SdkLoggerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build()
    });
    let metrics = if config.metrics {
        let exporter = collector.filter(|_| metrics).map(Collector::metrics).transpose()?;
        Some(metrics::install(resource(), exporter)?)
    } else {
        None
    };
    let mut layers = vec![log(config.log_format).with_filter(lines(config)?).boxed()];
    if let Some(traces) = &traces {
        let spans = tracing_opentelemetry::layer()
            .with_tracer(traces.tracer(SERVICE_NAME))
            .with_location(false)
            .with_target(false)
            .with_threads(false)
            .with_tracked_inactivity(false);
        layers.push(spans.with_filter(Sampler::new(config)).boxed());
    }
    if let Some(logs) = &logs {
        let sent = filter_fn(is_not_exporter).with_max_level_hint(LevelFilter::TRACE);
        let filter = lines(config)?.and(sent);
        layers.push(OpenTelemetryTracingBridge::new(logs).with_filter(filter).boxed());
    }
    tracing_subscriber::registry().with(layers).try_init()?;
    Ok(Telemetry { traces, metrics, logs })
}

/// Returns the filter of log lines. It lets no span pass, so lines do not repeat the fields of
/// spans, and every audit line.
fn lines(config: &TelemetryConfig) -> anyhow::Result<impl Filter<Registry> + use<>> {
    let filter = EnvFilter::try_new(&config.log_filter).context("telemetry.log_filter")?;
    let audit =
        filter_fn(|metadata| *metadata.level() <= LevelFilter::INFO && metadata.target() == AUDIT);
    let is_line = filter_fn(|metadata| !metadata.is_span());
    // Without these hints, the most detailed lines and spans of libraries are looked at, too.
    let audit = audit.with_max_level_hint(LevelFilter::INFO);
    Ok(filter.or(audit).and(is_line.with_max_level_hint(LevelFilter::TRACE)))
}

fn is_not_exporter(metadata: &Metadata<'_>) -> bool {
    let library = metadata.target().split("::").next().unwrap_or_default();
    // This module's own lines say that the exporters have ended.
    !EXPORTERS.iter().any(|exporter| library.starts_with(exporter))
        && metadata.target() != module_path!()
}

impl Telemetry {
    /// Sends the last spans, values and lines. Blocks for at most [`FLUSH_TIMEOUT`], so it must not
    /// be called on a worker of a runtime.
    pub fn flush(self) {
        let Self { traces, metrics, logs } = self;
        // At the same time, because a collector that does not answer delays each of them.
        thread::scope(|scope| {
            let flush = |signal, flushed: OTelSdkResult| {
                if let Err(error) = flushed {
                    tracing::warn!(
                        signal,
                        %error,
                        "the last telemetry is lost; check telemetry.otlp_endpoint"
                    );
                }
            };
            if let Some(traces) = &traces {
                scope.spawn(move || flush("traces", traces.shutdown_with_timeout(FLUSH_TIMEOUT)));
            }
            if let Some(metrics) = &metrics {
                scope.spawn(move || flush("metrics", metrics.shutdown_with_timeout(FLUSH_TIMEOUT)));
            }
            if let Some(logs) = &logs {
                scope.spawn(move || flush("logs", logs.shutdown_with_timeout(FLUSH_TIMEOUT)));
            }
        });
    }
}

fn log(format: LogFormat) -> BoxedLayer {
    let layer = fmt::layer().with_writer(io::stderr);
    match format {
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
        LogFormat::Text if io::stderr().is_terminal() => layer.boxed(),
        LogFormat::Text => layer.with_ansi(false).boxed(),
    }
}

/// Returns the name and version of the service. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
/// override the name.
fn resource() -> Resource {
    let version = KeyValue::new(names::SERVICE_VERSION, env!("CARGO_PKG_VERSION"));
    let detected = Resource::builder().with_attribute(version.clone()).build();
    let is_named = detected
        .get(&names::SERVICE_NAME.into())
        .is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    if is_named {
        detected
    } else {
        Resource::builder().with_attribute(version).with_service_name(SERVICE_NAME).build()
    }
}
