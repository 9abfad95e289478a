//! What is measured of a request to ThingSpace, and the trace context that it carries.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use opentelemetry::{KeyValue, propagation::Injector};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{Endpoint, Reply, SendError};
use crate::telemetry::{attribute, metrics, names};

/// Measures a request to a server with this address and port.
pub(super) fn measure(
    endpoint: Endpoint<'_>,
    [address, port]: [KeyValue; 2],
    result: &Result<Reply, SendError>,
    took: Duration,
) {
    let method = match endpoint.method() {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => names::OTHER,
    };
    let mut attributes = vec![
        attribute(names::HTTP_REQUEST_METHOD, method),
        address,
        port,
        attribute(names::URL_TEMPLATE, endpoint.template()),
    ];
    match result {
        Ok(reply) => {
            let status = i64::from(reply.status.as_u16());
            attributes.push(attribute(names::HTTP_RESPONSE_STATUS_CODE, status));
            if reply.status.is_client_error() || reply.status.is_server_error() {
                attributes.push(attribute(names::ERROR_TYPE, status.to_string()));
            }
        }
        Err(error) => attributes.push(attribute(names::ERROR_TYPE, error.kind())),
    }
    metrics().http_client_request_duration.record(took, &attributes);
}

/// Adds the context of the current span (W3C Trace Context).
pub(super) fn inject_trace_context(headers: &mut HeaderMap) {
    struct HeaderInjector<'a>(&'a mut HeaderMap);
    impl Injector for HeaderInjector<'_> {
        fn set(&mut self, key: &str, value: String) {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value))
            {
                self.0.insert(name, value);
            }
        }
    }
    let context = Span::current().context();
    opentelemetry::global::get_text_map_propagator(|p| {
        p.inject_context(&context, &mut HeaderInjector(headers));
    });
}
