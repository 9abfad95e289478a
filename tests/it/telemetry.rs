//! What a collector receives from the real binary, over gRPC and HTTP, with and without TLS.

use std::{
    collections::HashSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind};
use thingspace_gateway::{
    identity::RequestId,
    simulator::{CallbackOptions, DeviceResult},
};
use tokio::net::TcpListener;
use tonic::{Code, Request};

use crate::{
    collector::{Collector, command, message},
    harness::*,
};

/// The trace of the caller.
const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
const PARENT: u64 = 0x00f0_67aa_0ba9_02b7;

const SERVICE: &str = "thingspace.esim.v1.EsimService";
const POST: &str = "POST /m2m/v1/devices/profile/actions/download";
const GET: &str = "GET /m2m/v2/accounts/{account}/requests/{request}/status";

fn trace(span: &Span) -> u128 {
    u128::from_be_bytes(span.trace_id.as_slice().try_into().unwrap())
}

fn parent(span: &Span) -> u64 {
    u64::from_be_bytes(span.parent_span_id.as_slice().try_into().unwrap())
}

fn traced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let context = format!("00-{TRACE:032x}-{PARENT:016x}-01");
    request.metadata_mut().insert("traceparent", context.parse().unwrap());
    request
}

/// A call whose caller has a trace and does not record it.
fn unsampled<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let context = format!("00-{TRACE:032x}-{PARENT:016x}-00");
    request.metadata_mut().insert("traceparent", context.parse().unwrap());
    request
}

/// The only span of this kind and name in the caller's trace.
#[track_caller]
fn the<'a>(spans: &'a [Span], kind: SpanKind, name: &str) -> &'a Span {
    let named = |span: &&Span| span.name == name && span.kind() == kind && trace(span) == TRACE;
    let found: Vec<_> = spans.iter().filter(named).collect();
    let [span] = found[..] else { panic!("{} spans {name} among {spans:#?}", found.len()) };
    span
}

#[track_caller]
fn assert_descends(spans: &[Span], span: &Span, ancestor: &Span) {
    let mut at = span;
    while at.span_id != ancestor.span_id {
        let parent = spans.iter().find(|other| other.span_id == at.parent_span_id);
        at = parent
            .unwrap_or_else(|| panic!("{} does not descend from {}", span.name, ancestor.name));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_a_span_of_its_callers_trace_with_its_upstream_calls_below() {
    let upstream = Upstream::manual().await;
    let (collector, address) = Collector::start().await;
    let process = Process::spawn(
        command(&upstream, &upstream.config())
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}")),
    );
    let mut client = process.client().await;
    let answer = client.download_profile(traced(order("k", 0..2))).await.unwrap().into_inner();
    let id = RequestId::parse(&answer.request_id).unwrap();
    client.get_request_status(traced(status_call(&id))).await.unwrap();
    client.download_profile(traced(order("k", 0..1))).await.unwrap_err();
    process.terminate();
    assert!(process.wait().await.0.success());

    // The gateway flushes its spans at its end, so all have arrived.
    let spans = collector.spans();
    let orders: Vec<_> =
        spans.iter().filter(|span| span.name == format!("{SERVICE}/DownloadProfile")).collect();
    assert_eq!(orders.len(), 2, "{spans:#?}");
    assert!(orders.iter().all(|span| span.kind() == SpanKind::Server));
    let post = the(&spans, SpanKind::Client, POST);
    let asked = the(&spans, SpanKind::Server, &format!("{SERVICE}/GetRequestStatus"));
    for call in orders.iter().copied().chain([asked]) {
        assert_eq!((trace(call), parent(call)), (TRACE, PARENT));
    }
    let first = orders.iter().min_by_key(|span| span.start_time_unix_nano).unwrap();
    assert_descends(&spans, post, first);
    let status_calls: Vec<_> = spans.iter().filter(|span| span.name == GET).collect();
    assert!(
        !status_calls.is_empty() && status_calls.iter().all(|span| span.kind() == SpanKind::Client)
    );

    // The lines of the call have the ids of its trace and of a span.
    let logs = collector.logs();
    let accepted = logs.iter().find(|line| message(line) == "order accepted").unwrap();
    assert_eq!(accepted.trace_id, TRACE.to_be_bytes());
    assert!(spans.iter().any(|span| span.span_id == accepted.span_id), "{accepted:?}");

    let received = format!("{:?}", *collector.received());
    assert!(received.contains("service.name") && received.contains("thingspace-gateway"));
    for secret in [&device(0).eid, &device(0).iccid, "simulator-secret", "simulator-password"] {
        assert!(!received.contains(secret), "{secret} is exported");
    }
}

/// Orders are traced, and what the gateway does for them. Other calls have no spans, nor has what
/// they cause.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_orders_are_traced_if_no_caller_traces() {
    let upstream = Upstream::manual().await;
    let (collector, address) = Collector::start().await;
    let mut config = upstream.config();
    config.telemetry.otlp_endpoint = format!("http://{address}");
    config.telemetry.trace_ratio = 0.0;
    let process = Process::spawn(&mut command(&upstream, &config));
    let mut client = process.client().await;
    let answer = client.download_profile(unsampled(order("k", 0..2))).await.unwrap().into_inner();
    let id = RequestId::parse(&answer.request_id).unwrap();
    watch(&mut client, &id, "").await.unwrap().snapshot().await;
    // The gateway asks ThingSpace about a request that it does not know.
    let elsewhere = status_call(&RequestId::parse("elsewhere").unwrap());
    for call in [Request::new(elsewhere.clone()), unsampled(elsewhere)] {
        assert_eq!(client.get_request_status(call).await.unwrap_err().code(), Code::NotFound);
    }
    process.terminate();
    assert!(process.wait().await.0.success());

    let spans = collector.spans();
    let order = the(&spans, SpanKind::Server, &format!("{SERVICE}/DownloadProfile"));
    assert_eq!(parent(order), PARENT);
    assert_descends(&spans, the(&spans, SpanKind::Client, POST), order);
    for span in &spans {
        let is_root = ["poll", "renewal"].contains(&&*span.name);
        assert_eq!(span.parent_span_id.is_empty(), is_root, "{span:#?}");
        let is_order = span.name.ends_with("/DownloadProfile");
        assert_eq!(span.kind() == SpanKind::Server, is_order, "{span:#?}");
    }
    let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let polls = named("poll");
    for query in named(GET) {
        let parent = |poll: &&&Span| poll.span_id == query.parent_span_id;
        assert!(polls.iter().any(|poll| parent(&poll)), "{query:#?}");
    }
    assert_eq!(named("renewal").len(), 2);
}

/// The variables of OpenTelemetry choose another sampler, also for orders.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sampler_of_opentelemetry() {
    let upstream = Upstream::manual().await;
    for (sampler, ratio, traces) in
        [("always_on", "", true), ("traceidratio", "0", false), ("always_off", "", false)]
    {
        let (collector, address) = Collector::start().await;
        let mut config = upstream.config();
        config.telemetry.otlp_endpoint = format!("http://{address}");
        let mut command = command(&upstream, &config);
        command.env("OTEL_TRACES_SAMPLER", sampler).env("OTEL_TRACES_SAMPLER_ARG", ratio);
        let process = Process::spawn(&mut command);
        let mut client = process.client().await;
        let answer = client.download_profile(traced(order(sampler, 0..2))).await.unwrap();
        let id = RequestId::parse(&answer.into_inner().request_id).unwrap();
        get_status(&mut client, status_call(&id)).await.unwrap();
        process.terminate();
        assert!(process.wait().await.0.success());
        let spans = collector.spans();
        assert_eq!(spans.is_empty(), !traces, "{sampler}: {spans:#?}");
        let is_status = |span: &Span| span.name == format!("{SERVICE}/GetRequestStatus");
        assert_eq!(spans.iter().any(is_status), traces, "{sampler}: {spans:#?}");
    }
}

/// Whether a span is caused by another one: by its parents and links.
fn is_caused(spans: &[Span], span: &Span, by: &Span) -> bool {
    let mut seen = HashSet::new();
    let mut next = vec![span];
    while let Some(at) = next.pop() {
        if at.span_id == by.span_id {
            return true;
        }
        if seen.insert(&at.span_id) {
            let causes: Vec<_> = at.links.iter().map(|link| &link.span_id).collect();
            next.extend(spans.iter().filter(|other| {
                other.span_id == at.parent_span_id || causes.contains(&&other.span_id)
            }));
        }
    }
    false
}

/// An order, its polls and callbacks, and the messages of watches begin by themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_connect_what_happens_to_a_request() {
    let upstream = Upstream::calling(CallbackOptions::default()).await;
    let (collector, address) = Collector::start().await;
    let mut config = upstream.called_process();
    config.telemetry.trace_ratio = 1.0;
    let process = Process::spawn(
        command(&upstream, &config).env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}")),
    );
    let mut client = process.client().await;
    let id = place(&mut client, "k", 0..2).await.unwrap();
    let mut watching = watch(&mut client, &id, "").await.unwrap();
    watching.snapshot().await;
    // One result comes by a callback, and the other by a poll.
    upstream.sim.finish(&id, &device(0).eid, DeviceResult::Success);
    watching.event().await;
    upstream.sim.hold_callbacks();
    upstream.sim.finish(&id, &device(1).eid, DeviceResult::Success);
    watching.rest().await;
    process.terminate();
    assert!(process.wait().await.0.success());

    let spans = collector.spans();
    let named = |name: &str| -> Vec<&Span> {
        spans.iter().filter(|span| span.name.ends_with(name)).collect()
    };
    let [order] = named("/DownloadProfile")[..] else { panic!("{spans:#?}") };
    let [callback] = named("callback")[..] else { panic!("{spans:#?}") };
    let [watched] = named("/WatchRequest")[..] else { panic!("{spans:#?}") };
    let polls = named("poll");
    assert!(!polls.is_empty());
    for span in polls.iter().copied().chain([callback, watched]) {
        assert!(is_caused(&spans, span, order), "{span:#?}");
    }
    assert!(is_caused(&spans, watched, callback));
    assert!(polls.into_iter().any(|poll| is_caused(&spans, watched, poll)));
}

/// Terminates TLS in front of a collector. Returns the address and the file of its certificate.
async fn in_front_of(collector: SocketAddr, dir: &Path) -> (SocketAddr, PathBuf) {
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let ca_file = dir.join("collector.pem");
    std::fs::write(&ca_file, issued.cert.pem()).unwrap();
    let key =
        rustls::pki_types::PrivateKeyDer::try_from(issued.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![issued.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that does not trust the certificate closes the connection.
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                let mut plain = tokio::net::TcpStream::connect(collector).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut tls, &mut plain).await;
            });
        }
    });
    (address, ca_file)
}

/// Over HTTP, with headers from a file, and only what is selected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_over_http() {
    let upstream = Upstream::manual().await;
    let headers = upstream.dir.path().join("headers");
    std::fs::write(&headers, "x-tenant: esim\nauthorization: Bearer a-hidden-token\n").unwrap();
    for (signals, key, [traces, metrics, logs]) in
        [("traces,metrics,logs", "all", [true; 3]), ("logs , metrics", "some", [false, true, true])]
    {
        let (collector, address) = Collector::start_http().await;
        let mut config = upstream.config();
        config.telemetry.otlp_endpoint = format!("http://{address}/prefix/");
        config.telemetry.otlp_signals = signals.to_owned().try_into().unwrap();
        config.telemetry.otlp_headers_file.clone_from(&headers);
        let mut command = command(&upstream, &config);
        command.env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
        let process = Process::spawn(&mut command);
        place(&mut process.client().await, key, 0..2).await.unwrap();
        process.terminate();
        let (status, log) = process.wait().await;
        assert!(status.success() && !log.iter().any(|line| line.contains("a-hidden-token")));
        assert_eq!(!collector.spans().is_empty(), traces, "{log:#?}");
        assert_eq!(!collector.metrics().is_empty(), metrics);
        assert_eq!(collector.logs().iter().any(|line| message(line) == "ready"), logs);
        let received = collector.received();
        assert!(received.tenants.iter().all(|tenant| tenant.as_deref() == Some("esim")));
        assert!(!format!("{received:?}").contains("a-hidden-token"));
    }
}

/// Traces are sent over TLS to a collector with a trusted certificate, and to no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_over_tls() {
    let upstream = Upstream::manual().await;
    let (collector, address) = Collector::start().await;
    let (address, ca_file) = in_front_of(address, upstream.dir.path()).await;
    let endpoint = format!("https://localhost:{}", address.port());
    for (trusted, file) in [(false, Path::new("")), (true, &ca_file)] {
        let mut command = command(&upstream, &upstream.config());
        command
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
            .env("THINGSPACE_GATEWAY__TELEMETRY__OTLP_CA_FILE", file);
        let process = Process::spawn(&mut command);
        place(&mut process.client().await, "k", 0..2).await.unwrap();
        process.terminate();
        assert!(process.wait().await.0.success());
        assert_eq!(!collector.spans().is_empty(), trusted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_endpoint_nothing_is_exported() {
    let upstream = Upstream::manual().await;
    let (collector, address) = Collector::start().await;
    let endpoint = format!("http://{address}");
    let mut disabled = command(&upstream, &upstream.config());
    disabled.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).env("OTEL_SDK_DISABLED", "true");
    for mut command in [command(&upstream, &upstream.config()), disabled] {
        let process = Process::spawn(&mut command);
        let traced = process.client().await.download_profile(traced(order("k", 0..2))).await;
        assert!(traced.is_ok());
        process.terminate();
        let (status, log) = process.wait().await;
        assert!(status.success());
        let bad: Vec<_> = log
            .iter()
            .filter(|line| line.contains("\"ERROR\"") || line.contains("opentelemetry"))
            .collect();
        assert!(bad.is_empty(), "{bad:#?}");
    }
    assert!(collector.received().tenants.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_down_does_not_affect_callers() {
    let upstream = Upstream::manual().await;
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let nobody = taken.local_addr().unwrap();
    drop(taken);
    let process = Process::spawn(
        command(&upstream, &upstream.config())
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{nobody}")),
    );
    place(&mut process.client().await, "k", 0..2).await.unwrap();
    process.terminate();
    assert!(process.wait().await.0.success());
}
