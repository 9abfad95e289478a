use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceState};

use super::*;
use crate::config::Config;

fn sampler(trace_sampler: TraceSampler, trace_ratio: f64) -> Sampler {
    Sampler::new(&TelemetryConfig { trace_sampler, trace_ratio, ..Config::defaults().telemetry })
}

/// What a caller sent. A ratio above one half chooses its trace id.
fn caller(flags: TraceFlags) -> TraceContext {
    let (trace, span) = (TraceId::from(1 << 63), SpanId::from(1));
    let caller = SpanContext::new(trace, span, flags, true, TraceState::default());
    TraceContext::new().with_remote_span_context(caller)
}

#[test]
fn a_call_is_traced_as_the_sampler_says() {
    let sampled = Some(&caller(TraceFlags::SAMPLED));
    let unsampled = Some(&caller(TraceFlags::NOT_SAMPLED));
    let invalid = Some(&TraceContext::new());
    // An order, and another call: with a caller that traces, with one that does not, and without.
    for (kind, ratio, order, other) in [
        (TraceSampler::Orders, 0.0, [true; 3], [true, false, false]),
        (TraceSampler::Orders, 1.0, [true; 3], [true, false, true]),
        (TraceSampler::AlwaysOn, 0.0, [true; 3], [true; 3]),
        (TraceSampler::AlwaysOff, 1.0, [false; 3], [false; 3]),
        (TraceSampler::TraceIdRatio, 0.0, [false; 3], [false; 3]),
        (TraceSampler::TraceIdRatio, 1.0, [true; 3], [true; 3]),
        (TraceSampler::ParentBasedAlwaysOn, 0.0, [true, false, true], [true, false, true]),
        (TraceSampler::ParentBasedAlwaysOff, 1.0, [true, false, false], [true, false, false]),
        (TraceSampler::ParentBasedTraceIdRatio, 0.0, [true, false, false], [true, false, false]),
        (TraceSampler::ParentBasedTraceIdRatio, 1.0, [true, false, true], [true, false, true]),
    ] {
        let sampler = sampler(kind, ratio);
        for (is_order, [with_sampled, with_unsampled, without]) in [(true, order), (false, other)] {
            let traces = |caller| sampler.traces_call(is_order, caller);
            assert_eq!(traces(sampled), with_sampled, "{kind:?} {ratio} {is_order}");
            assert_eq!(traces(unsampled), with_unsampled, "{kind:?} {ratio} {is_order}");
            assert_eq!(traces(None), without, "{kind:?} {ratio} {is_order}");
            assert_eq!(traces(invalid), without, "{kind:?} {ratio} {is_order}");
        }
    }
}

#[test]
fn a_ratio_is_a_share_of_the_calls_without_a_caller_and_fixed_for_a_trace() {
    let orders = sampler(TraceSampler::Orders, 0.1);
    let traced = (0..10_000).filter(|_| orders.traces_call(false, None)).count();
    assert!((700..1_300).contains(&traced), "{traced}");
    for (ratio, is_traced) in [(0.4, false), (0.6, true)] {
        let by_id = sampler(TraceSampler::TraceIdRatio, ratio);
        let caller = caller(TraceFlags::NOT_SAMPLED);
        assert!((0..100).all(|_| by_id.traces_call(false, Some(&caller)) == is_traced));
    }
}
