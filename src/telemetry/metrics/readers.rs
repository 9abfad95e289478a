//! One set of values for two readers. The SDK keeps values for each reader, so that each would make
//! each measurement cost more.

use std::{sync::Weak, time::Duration};

use opentelemetry_otlp::MetricExporter;
use opentelemetry_prometheus::PrometheusExporter;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    metrics::{
        InstrumentKind, PeriodicReader, Pipeline, Temporality, data::ResourceMetrics,
        reader::MetricReader,
    },
};

/// The reader of `/metrics`, and the one that sends to the collector. Both read values since the
/// start of the process, so that neither takes values from the other.
#[derive(Debug)]
pub(super) struct Readers {
    pub(super) scraped: PrometheusExporter,
    pub(super) sent: PeriodicReader<MetricExporter>,
}

impl MetricReader for Readers {
    fn register_pipeline(&self, pipeline: Weak<Pipeline>) {
        self.scraped.register_pipeline(pipeline.clone());
        self.sent.register_pipeline(pipeline);
    }

    fn collect(&self, metrics: &mut ResourceMetrics) -> OTelSdkResult {
        self.scraped.collect(metrics)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.sent.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        let sent = self.sent.shutdown_with_timeout(timeout);
        self.scraped.shutdown_with_timeout(timeout).and(sent)
    }

    fn temporality(&self, _: InstrumentKind) -> Temporality {
        Temporality::Cumulative
    }
}
