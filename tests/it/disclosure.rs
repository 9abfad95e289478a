//! The check that nothing discloses a secret or an identity fails when one is planted.

use std::panic::{AssertUnwindSafe, catch_unwind};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};

use crate::{collector::Collector, harness::*};

/// Why the check fails; `None`: it does not.
fn failure(check: impl FnOnce()) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(check)).err()?;
    Some(*panic.downcast::<String>().unwrap())
}

#[test]
fn what_is_planted_in_a_log_a_page_or_a_metric_is_found() {
    let device = device(7);
    for (line, what) in [
        (format!(r#"{{"message":"failed","id":"{}"}}"#, device.eid), "an EID"),
        (format!("<tr><td><code>{}</code></td></tr>", device.imei), "an IMEI"),
        (format!(r#"calls_total{{caller="{}"}} 1"#, device.iccid), "an ICCID"),
        ("password=simulator-password".to_owned(), "a secret"),
    ] {
        let failure = failure(|| assert_discloses_nothing(["well", &line])).expect(&line);
        assert!(failure.starts_with(&format!("{what} is disclosed")), "{failure}");
    }
    let masked = r#"{"eid":"8904…0007","time":"2026-01-01T00:00:00.000000000Z","n":123456789012}"#;
    assert_eq!(failure(|| assert_discloses_nothing([masked])), None);
}

#[test]
fn what_is_planted_in_a_span_is_found() {
    for (name, is_found) in [(device(7).eid, true), ("an order".to_owned(), false)] {
        let span =
            Span { name, start_time_unix_nano: 1_796_094_000_123_456_789, ..Span::default() };
        let scope = ScopeSpans { spans: vec![span], ..ScopeSpans::default() };
        let resource = ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() };
        let collector = Collector::default();
        let request = ExportTraceServiceRequest { resource_spans: vec![resource] };
        collector.received().traces.push(request);
        assert_eq!(failure(|| drop(collector.spans())).is_some(), is_found);
    }
}
