//! What is traced. The decision is made before a span is created, so that a call that is not traced
//! costs nothing.
//!
//! [`super::rpc`] decides about a call with [`Sampler::traces_call`]. For all other spans the
//! sampler is the filter of their layer. It decides about the spans in [`ROOTS`], which begin
//! traces of their own. Each other span is recorded only inside a recorded one, so that no span of
//! a call that is not traced becomes the root of a trace.

use std::sync::Arc;

use opentelemetry::{
    Context as TraceContext,
    trace::{SpanKind, TraceContextExt, TraceId},
};
use opentelemetry_sdk::trace::{SamplingDecision, ShouldSample};
use tracing::{Metadata, Subscriber, level_filters::LevelFilter, subscriber::Interest};
use tracing_subscriber::{
    layer::{Context, Filter},
    registry::LookupSpan,
};

use super::is_not_exporter;
use crate::config::{TelemetryConfig, TraceSampler};

/// The name of the spans of calls.
pub(super) const CALL: &str = "rpc";

/// The names of the spans of what the gateway does by itself.
const ROOTS: [&str; 4] = ["poll", "callback", "renewal", "registration"];

/// Decides what is traced.
#[derive(Debug, Clone)]
pub(crate) struct Sampler(Arc<SamplerInner>);

#[derive(Debug)]
struct SamplerInner {
    /// Whether orders, and what the gateway does by itself, are always traced.
    traces_orders: bool,
    others: opentelemetry_sdk::trace::Sampler,
}

impl Sampler {
    pub(crate) fn new(config: &TelemetryConfig) -> Self {
        use opentelemetry_sdk::trace::Sampler::{
            AlwaysOff, AlwaysOn, ParentBased, TraceIdRatioBased,
        };
        let ratio = TraceIdRatioBased(config.trace_ratio);
        let others = match config.trace_sampler {
            TraceSampler::AlwaysOn => AlwaysOn,
            TraceSampler::AlwaysOff => AlwaysOff,
            TraceSampler::TraceIdRatio => ratio,
            TraceSampler::ParentBasedAlwaysOn => ParentBased(Box::new(AlwaysOn)),
            TraceSampler::ParentBasedAlwaysOff => ParentBased(Box::new(AlwaysOff)),
            TraceSampler::Orders | TraceSampler::ParentBasedTraceIdRatio => {
                ParentBased(Box::new(ratio))
            }
        };
        let traces_orders = config.trace_sampler == TraceSampler::Orders;
        Self(Arc::new(SamplerInner { traces_orders, others }))
    }

    /// Whether a call is traced. `caller` is the trace that the caller sent, if any.
    pub(super) fn traces_call(&self, is_order: bool, caller: Option<&TraceContext>) -> bool {
        (self.0.traces_orders && is_order) || self.samples(caller)
    }

    fn samples(&self, caller: Option<&TraceContext>) -> bool {
        let caller = caller.filter(|caller| caller.span().span_context().is_valid());
        let trace = caller.map_or_else(
            // The span gets another id. Only its distribution matters here.
            || TraceId::from(fastrand::u128(1..)),
            |caller| caller.span().span_context().trace_id(),
        );
        let result = self.0.others.should_sample(caller, trace, CALL, &SpanKind::Server, &[], &[]);
        result.decision == SamplingDecision::RecordAndSample
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Filter<S> for Sampler {
    fn enabled(&self, metadata: &Metadata<'_>, context: &Context<'_, S>) -> bool {
        is_recorded(metadata)
            && match metadata.name() {
                _ if metadata.is_event() => true,
                CALL => true,
                name if ROOTS.contains(&name) => self.0.traces_orders || self.samples(None),
                _ => context.lookup_current().is_some(),
            }
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        match (is_recorded(metadata), metadata.is_event()) {
            (false, _) => Interest::never(),
            (true, true) => Interest::always(),
            (true, false) => Interest::sometimes(),
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }
}

/// Whether a span, or an event in a span, may be part of a trace.
fn is_recorded(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= LevelFilter::INFO && is_not_exporter(metadata)
}

#[cfg(test)]
mod tests;
