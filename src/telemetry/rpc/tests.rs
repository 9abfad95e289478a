use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Empty as NoBody, StreamBody};
use opentelemetry::trace::{SpanKind, Status, TracerProvider};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use tower::{ServiceExt, service_fn};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::{Layer, SubscriberExt};

use super::*;
use crate::config::{Config, TelemetryConfig, TraceSampler};

const METHOD: &str = "thingspace.esim.v1.EsimService/WatchRequest";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

fn sampler(trace_sampler: TraceSampler) -> Sampler {
    let telemetry = Config::defaults().telemetry;
    Sampler::new(&TelemetryConfig { trace_sampler, trace_ratio: 0.0, ..telemetry })
}

/// Traces every call.
fn all() -> Sampler {
    sampler(TraceSampler::AlwaysOn)
}

/// Traces orders, and what callers trace.
fn orders() -> Sampler {
    sampler(TraceSampler::Orders)
}

/// Collects the spans that ended.
#[derive(Debug, Clone, Default)]
struct Ended(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Ended {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

impl Ended {
    fn traced() -> (Self, DefaultGuard) {
        Self::sampled(all())
    }

    fn sampled(sampler: Sampler) -> (Self, DefaultGuard) {
        let ended = Self::default();
        let provider = SdkTracerProvider::builder()
            .with_sampler(opentelemetry_sdk::trace::Sampler::AlwaysOn)
            .with_simple_exporter(ended.clone())
            .build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let layer = layer.with_filter(sampler);
        (ended, tracing::subscriber::set_default(tracing_subscriber::registry().with(layer)))
    }

    fn one(&self) -> SpanData {
        let mut spans = self.0.lock().unwrap();
        assert_eq!(spans.len(), 1, "{spans:#?}");
        spans.remove(0)
    }

    fn none(&self) -> bool {
        self.0.lock().unwrap().is_empty()
    }
}

fn attribute(span: &SpanData, name: &str) -> Option<String> {
    let mut values = span.attributes.iter().filter(|pair| pair.key.as_str() == name);
    let value = values.next().map(|pair| pair.value.to_string());
    assert!(values.next().is_none(), "{name} twice");
    value
}

type Frames = Vec<Result<Frame<Bytes>, &'static str>>;
type CallBody = ObservedBody<StreamBody<stream::Iter<<Frames as IntoIterator>::IntoIter>>, RpcCall>;
type RequestBody = ObservedBody<NoBody<Bytes>, ResetFlag>;

/// Makes a call that is answered with this status header and these frames.
async fn call(status: Option<&'static str>, frames: Frames) -> CallBody {
    let mut frames = Some(frames);
    let answer = service_fn(move |_: Request<RequestBody>| {
        let mut response = Response::new(StreamBody::new(stream::iter(frames.take().unwrap())));
        if let Some(status) = status {
            response.headers_mut().insert("grpc-status", status.parse().unwrap());
        }
        async move { Ok::<_, Infallible>(response) }
    });
    Rpc::new(answer, all()).oneshot(request()).await.unwrap().into_body()
}

fn request() -> Request<NoBody<Bytes>> {
    Request::builder()
        .uri(format!("/{METHOD}"))
        .header("traceparent", PARENT)
        .body(NoBody::new())
        .unwrap()
}

fn message() -> Frame<Bytes> {
    Frame::data(Bytes::from_static(b"message"))
}

fn trailers(status: &'static str) -> Frame<Bytes> {
    Frame::trailers(
        [("grpc-status".parse().unwrap(), status.parse().unwrap())].into_iter().collect(),
    )
}

#[tokio::test]
async fn a_span_covers_the_stream_and_continues_the_callers_trace() {
    let (ended, _guard) = Ended::traced();
    let mut body = call(None, vec![Ok(message()), Ok(message()), Ok(trailers("0"))]).await;
    assert!(body.frame().await.unwrap().unwrap().is_data());
    assert!(body.frame().await.unwrap().unwrap().is_data());
    assert!(ended.none());
    assert!(body.frame().await.unwrap().unwrap().is_trailers());
    drop(body);

    let span = ended.one();
    assert_eq!(span.name, METHOD);
    assert_eq!(span.span_kind, SpanKind::Server);
    assert_eq!(span.span_context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(span.parent_span_id.to_string(), "b7ad6b7169203331");
    assert_eq!(span.status, Status::Unset);
    assert_eq!(attribute(&span, "rpc.system.name").as_deref(), Some("grpc"));
    assert_eq!(attribute(&span, "rpc.method").as_deref(), Some(METHOD));
    assert_eq!(attribute(&span, "rpc.response.status_code").as_deref(), Some("OK"));
    assert_eq!(attribute(&span, "error.type"), None);
}

#[tokio::test]
async fn the_code_is_read_from_headers_and_trailers() {
    for (status, frames, code, failure) in [
        (Some("5"), vec![], "NOT_FOUND", false),
        (Some("13"), vec![], "INTERNAL", true),
        (None, vec![Ok(message()), Ok(trailers("14"))], "UNAVAILABLE", true),
        (None, vec![Ok(trailers("8"))], "RESOURCE_EXHAUSTED", false),
        (None, vec![Ok(trailers("99"))], "UNKNOWN", true),
        (None, vec![Ok(trailers("x"))], "UNKNOWN", true),
        (None, vec![Ok(message()), Err("broken")], "UNKNOWN", true),
        (None, vec![Ok(message())], "UNKNOWN", true),
    ] {
        let (ended, _guard) = Ended::traced();
        let body = call(status, frames).await;
        let read: Vec<_> = body.into_data_stream().collect().await;
        drop(read);
        let span = ended.one();
        assert_eq!(attribute(&span, "rpc.response.status_code").as_deref(), Some(code));
        assert_eq!(attribute(&span, "error.type").as_deref(), failure.then_some(code));
        assert_eq!(matches!(span.status, Status::Error { .. }), failure, "{code}");
    }
}

#[tokio::test]
async fn a_path_of_a_callers_choice_is_not_recorded() {
    let (ended, _guard) = Ended::traced();
    let answer = service_fn(|_: Request<RequestBody>| async {
        Ok::<_, Infallible>(Response::new(NoBody::<Bytes>::new()))
    });
    let path = format!("/thingspace.esim.v1.EsimService/{}", "8".repeat(32));
    let request = Request::builder().uri(path).body(NoBody::new()).unwrap();
    drop(Rpc::new(answer, all()).oneshot(request).await.unwrap());
    let span = ended.one();
    assert_eq!(
        (span.name.as_ref(), attribute(&span, "rpc.method").as_deref()),
        ("_OTHER", Some("_OTHER"))
    );
}

#[tokio::test]
async fn a_call_whose_caller_left_is_cancelled() {
    let (ended, _guard) = Ended::traced();
    let mut body = call(None, vec![Ok(message()), Ok(trailers("0"))]).await;
    body.frame().await.unwrap().unwrap();
    drop(body);
    assert_eq!(attribute(&ended.one(), "rpc.response.status_code").as_deref(), Some("CANCELLED"));

    let never =
        service_fn(|_| std::future::pending::<Result<Response<NoBody<Bytes>>, Infallible>>());
    drop(Rpc::new(never, all()).oneshot(request()));
    assert!(ended.none(), "the service was not called yet");
    let mut rpc = Rpc::new(never, all());
    drop(rpc.call(request()));
    assert_eq!(attribute(&ended.one(), "rpc.response.status_code").as_deref(), Some("CANCELLED"));
}

#[tokio::test]
async fn spans_of_the_handler_are_inside_the_span_of_the_call() {
    let (ended, _guard) = Ended::traced();
    let handler = service_fn(|_: Request<RequestBody>| async {
        tracing::info_span!("inner").in_scope(|| ());
        Ok::<_, Infallible>(Response::new(NoBody::<Bytes>::new()))
    });
    drop(Rpc::new(handler, all()).oneshot(request()).await.unwrap());
    let spans = ended.0.lock().unwrap();
    let [inner, outer] = spans.as_slice() else { panic!("{spans:#?}") };
    assert_eq!(inner.parent_span_id, outer.span_context.span_id());
    assert_eq!(attribute(outer, "rpc.response.status_code").as_deref(), Some("UNKNOWN"));
}

/// Makes a call whose handler creates spans, also in a task. Returns the names of all spans.
async fn spans_of(sampler: Sampler, method: &str, parent: Option<&str>) -> Vec<String> {
    let (ended, _guard) = Ended::sampled(sampler.clone());
    let handler = service_fn(|_: Request<RequestBody>| async {
        tracing::info_span!("inner").in_scope(|| ());
        let task = async { tracing::info_span!("in a task").in_scope(|| ()) };
        tokio::spawn(task.in_current_span()).await.unwrap();
        Ok::<_, Infallible>(Response::new(NoBody::<Bytes>::new()))
    });
    let mut request = Request::builder().uri(format!("/{method}"));
    if let Some(parent) = parent {
        request = request.header("traceparent", parent);
    }
    drop(Rpc::new(handler, sampler).oneshot(request.body(NoBody::new()).unwrap()).await.unwrap());
    let spans = ended.0.lock().unwrap();
    spans.iter().map(|span| span.name.to_string()).collect()
}

#[tokio::test]
async fn a_call_that_is_not_traced_has_no_spans_at_all() {
    for (method, parent, is_traced) in [
        (METHOD, Some(PARENT), true),
        (METHOD, Some(UNSAMPLED), false),
        (METHOD, Some("no trace"), false),
        (METHOD, None, false),
        (ORDER, Some(PARENT), true),
        (ORDER, Some(UNSAMPLED), true),
        (ORDER, None, true),
    ] {
        let spans = spans_of(orders(), method, parent).await;
        let expected = if is_traced { vec!["inner", "in a task", method] } else { vec![] };
        assert_eq!(spans, expected, "{method} {parent:?}");
    }
}

#[tokio::test]
async fn what_the_gateway_does_by_itself_begins_traces() {
    let none = sampler(TraceSampler::ParentBasedTraceIdRatio);
    for (sampler, is_traced) in [(orders(), true), (all(), true), (none, false)] {
        let (ended, _guard) = Ended::sampled(sampler);
        tracing::info_span!("poll").in_scope(|| tracing::info_span!("inner").in_scope(|| ()));
        tracing::info_span!("inner").in_scope(|| ());
        let spans = ended.0.lock().unwrap();
        let names: Vec<_> = spans.iter().map(|span| &*span.name).collect();
        assert_eq!(names, if is_traced { vec!["inner", "poll"] } else { vec![] });
    }
}

#[test]
fn the_line_of_a_call_has_the_callers_trace_also_without_a_span() {
    let call = |parent: &str| {
        let request = Request::builder().uri("/x").header("traceparent", parent);
        RpcCall::begin(&request.body(()).unwrap(), &orders()).trace_id()
    };
    assert_eq!(call(UNSAMPLED).as_deref(), Some("0af7651916cd43dd8448eb211c80319c"));
    assert_eq!(call("no trace"), None);
}
