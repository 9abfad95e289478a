//! Connects what happens to a request: an order, its polls and callbacks, and the messages of
//! watches are traces of their own, because each begins by itself. A span links to the span that
//! caused it (OpenTelemetry: span links).
//!
//! The last cause of each request is only in memory. So there is no link to what another replica
//! did, or to what happened before a restart. Without a collector, nothing is kept.

use std::{
    collections::{HashMap, VecDeque},
    sync::{LazyLock, Mutex},
};

use opentelemetry::trace::{SpanContext, TraceContextExt};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::{identity::RequestId, lock::lock};

/// The most requests whose causes are kept. Those that had a cause first are forgotten first.
const MAX_CAUSES: usize = 10_000;

static CAUSES: LazyLock<Mutex<Causes>> = LazyLock::new(Mutex::default);

#[derive(Debug, Default)]
struct Causes {
    by_request: HashMap<RequestId, SpanContext>,
    oldest_first: VecDeque<RequestId>,
}

impl Causes {
    fn set(&mut self, request: &RequestId, cause: SpanContext) {
        if self.by_request.insert(request.clone(), cause).is_some() {
            return;
        }
        self.oldest_first.push_back(request.clone());
        if self.oldest_first.len() > MAX_CAUSES
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.by_request.remove(&oldest);
        }
    }
}

/// Records that the current span causes what happens next to a request.
pub(crate) fn set(request: &RequestId) {
    let span = Span::current();
    if span.is_disabled() {
        return;
    }
    let cause = span.context().span().span_context().clone();
    if cause.is_valid() {
        lock(&CAUSES).set(request, cause);
    }
}

/// Links a span to the last cause of a request.
pub(crate) fn link(span: &Span, request: &RequestId) {
    if span.is_disabled() {
        return;
    }
    let cause = lock(&CAUSES).by_request.get(request).cloned();
    if let Some(cause) = cause {
        span.add_link(cause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_requests_are_forgotten() {
        let mut causes = Causes::default();
        let id = |n: usize| RequestId::parse(&format!("request-{n}")).unwrap();
        for n in 0..MAX_CAUSES + 10 {
            // A second cause of the same request takes no second place.
            causes.set(&id(n), SpanContext::NONE);
            causes.set(&id(n), SpanContext::NONE);
        }
        assert_eq!(causes.by_request.len(), MAX_CAUSES);
        assert_eq!(causes.oldest_first.len(), MAX_CAUSES);
        assert!(!causes.by_request.contains_key(&id(9)));
        assert!(causes.by_request.contains_key(&id(10)));
    }
}
