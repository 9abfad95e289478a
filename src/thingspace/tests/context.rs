use std::sync::{Arc, Mutex};

use axum::{Router, extract::Request, http::StatusCode};
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_sdk::{propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;

use super::*;

/// The server answers only token requests and logins, and keeps the headers of all requests.
#[tokio::test]
async fn calls_carry_the_trace_of_their_caller() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&seen);
    let router = Router::new().fallback(async move |request: Request| {
        let path = request.uri().path().to_owned();
        keep.lock().unwrap().push((path.clone(), request.headers().clone()));
        match path.as_str() {
            "/api/ts/v1/oauth2/token" => (StatusCode::OK, r#"{"access_token":"b"}"#),
            "/api/m2m/v1/session/login" => (StatusCode::OK, r#"{"sessionToken":"s"}"#),
            _ => (StatusCode::NOT_FOUND, r#"{"errorCode":"404"}"#),
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}/api", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, router).into_future());

    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let provider = SdkTracerProvider::builder().build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    let _subscriber = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));

    let files = tempfile::tempdir().unwrap();
    let client = cold(&thingspace(base_url), &files, &store(&files));
    let span = tracing::info_span!("caller");
    let trace = span.context().span().span_context().trace_id().to_string();
    let request = RequestId::parse("r1").unwrap();
    let lookup = poll(&client, &request).instrument(span).await;
    assert_eq!(lookup.unwrap().0, StatusLookup::NotKnown);

    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 3);
    let (path, headers) = seen.last().unwrap();
    assert_eq!(path, "/api/m2m/v2/accounts/0000123456-00001/requests/r1/status");
    assert_eq!(headers["traceparent"].to_str().unwrap().split('-').nth(1), Some(trace.as_str()));
    assert_eq!(
        (&headers["authorization"], &headers["vz-m2m-token"]),
        (&"Bearer b".parse().unwrap(), &"s".parse().unwrap())
    );
    assert_eq!(headers["content-type"], "application/json");
    // A renewal belongs to no single caller, because several may wait for it.
    assert!(seen[..2].iter().all(|(_, headers)| {
        headers["traceparent"].to_str().unwrap().split('-').nth(1) != Some(trace.as_str())
    }));
}
