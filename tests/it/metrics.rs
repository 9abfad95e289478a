//! `/metrics` of the real binary, and the same metrics over OTLP.

mod text;

use std::{collections::BTreeSet, time::Duration};

use http::StatusCode;
use opentelemetry_proto::tonic::metrics::v1::{metric::Data, number_data_point::Value};
use secrecy::ExposeSecret;
use test_support::sender::about;
use thingspace_gateway::{
    config::Config,
    identity::{AccountName, RequestId},
    proto::esim::watch_request_response::Event,
    simulator::{CallbackOptions, DeviceResult, Endpoint, Fault, What, When},
};
use tokio::net::TcpStream;

use crate::{
    callers::{ORDERS, entry, line, with},
    collector::{Collector, command},
    harness::*,
    http2,
    nats_server::NatsServer,
};
use text::{Scrape, get, scrape};

const METHODS: &str = "thingspace.esim.v1.EsimService/";

/// More connections than the listener for probes allows.
const CROWD: usize = 80;

/// Another test drives this.
const ELSEWHERE: [&str; 1] = ["thingspace_gateway_slow_readers_total"];

/// A gateway whose callers have tokens and whose callbacks are registered, and a sender of
/// callbacks.
struct Scenario {
    upstream: Upstream,
    config: Config,
    gateway: Process,
}

impl Scenario {
    async fn start() -> Self {
        let upstream = Upstream::calling(CallbackOptions::default()).await;
        let mut config = upstream.called_process();
        config.auth.tokens_file = upstream.dir.path().join("tokens");
        std::fs::write(&config.auth.tokens_file, line("orders", ORDERS)).unwrap();
        config.auth.allow = vec![entry(&["token:orders"], &["*"], &[ACCOUNT])];
        config.limits.caller_open_devices = 4;
        config.thingspace.breaker_failures = 1;
        config.thingspace.breaker_first = Duration::from_millis(10);
        let gateway = Process::serve(&config, upstream.dir.path());
        Self { upstream, config, gateway }
    }

    async fn scrape(&self) -> Scrape {
        scrape(self.gateway.admin).await
    }

    /// Waits until a family has a value of at least this with these labels.
    async fn reaches(&self, name: &str, labels: &[(&str, &str)], least: f64) {
        eventually(name, async || {
            self.scrape().await.sum(name, labels).is_some_and(|sum| sum >= least)
        })
        .await;
    }

    /// Posts a body to the registered URL.
    async fn call_back(&self, body: String) -> u16 {
        let account = AccountName::parse(ACCOUNT).unwrap();
        let registered = self.upstream.sim.registered(&account).unwrap();
        let body = body
            .replace(r#""user""#, &format!("{:?}", registered.username))
            .replace(r#""secret""#, &format!("{:?}", registered.password.expose_secret()));
        let answer = reqwest::Client::new().post(registered.url).body(body).send();
        within("an answer", answer).await.unwrap().status().as_u16()
    }
}

/// What alerts count is there before its first event.
fn begins_at_zero(now: &Scrape) {
    for (name, label, value) in [
        ("thingspace_gateway_orders_total", "outcome", "unknown"),
        ("thingspace_gateway_renewals_total", "outcome", "rejected"),
        ("thingspace_gateway_callbacks_total", "outcome", "stored"),
        ("thingspace_gateway_calls_denied_total", "reason", "not_allowed"),
        ("thingspace_gateway_call_failures_total", "reason", "UPSTREAM_UNAVAILABLE"),
        ("thingspace_gateway_reloads_total", "outcome", "refused"),
        ("thingspace_gateway_files_refused", "files", "tokens"),
    ] {
        assert_eq!(now.sum(name, &[(label, value)]), Some(0.0), "{name}");
    }
}

/// Everything that a gateway with an embedded store measures.
async fn embedded() -> Scrape {
    let it = Scenario::start().await;
    it.reaches("thingspace_gateway_registration_state", &[("state", "registered")], 1.0).await;
    let mut client = it.gateway.client().await;
    let sim = &it.upstream.sim;

    begins_at_zero(&it.scrape().await);

    // An order, its poll, a watch that sees a callback, and one that resumes.
    let placed = client.download_profile(with(order("k", 0..2), ORDERS)).await.unwrap();
    let id = RequestId::parse(&placed.into_inner().request_id).unwrap();
    it.reaches("thingspace_gateway_polls_total", &[("outcome", "answered")], 1.0).await;
    let watch = |token: &str| thingspace_gateway::proto::esim::WatchRequestRequest {
        account_name: ACCOUNT.to_owned(),
        request_id: id.to_string(),
        resume_token: token.to_owned(),
    };
    let mut watching = client.watch_request(with(watch(""), ORDERS)).await.unwrap().into_inner();
    let first = within("a snapshot", watching.message()).await.unwrap().unwrap();
    let again = watch(&first.resume_token);
    let mut resumed = client.watch_request(with(again, ORDERS)).await.unwrap().into_inner();
    within("a heartbeat", resumed.message()).await.unwrap().unwrap();
    it.reaches("thingspace_gateway_watches_open", &[], 2.0).await;
    it.reaches("thingspace_gateway_requests_open", &[("age", "1m")], 1.0).await;
    it.reaches("thingspace_gateway_devices_open", &[("account", ACCOUNT)], 2.0).await;
    drop(resumed);
    // More devices than the caller may have open, with those of the first order.
    client.download_profile(with(order("many", 10..13), ORDERS)).await.unwrap_err();
    sim.finish(&id, &device(0).eid, DeviceResult::Success);
    loop {
        let message = within("a change", watching.message()).await.unwrap().unwrap();
        if matches!(message.event, Some(Event::Change(_))) {
            break;
        }
    }
    sim.finish(&id, &device(1).eid, DeviceResult::Failed);
    while within("the end", watching.message()).await.unwrap().is_some() {}
    let stray = RequestId::parse("00000000-0000-4000-8000-000000000000").unwrap();
    assert_eq!(it.call_back(about(&stray, &device(9), "Success")).await, 200);
    for number in 0..6 {
        assert_eq!(it.call_back(format!("{number}{}", "x".repeat(240 << 10))).await, 200);
    }

    // Calls that fail, each in its own way.
    client.download_profile(order("k", 0..2)).await.unwrap_err();
    client.download_profile(with(order("k", 0..1), ORDERS)).await.unwrap_err();
    let body =
        r#"{"errorCode":"UnifiedWebService.REQUEST_FAILED.DeviceNotFound","errorMessage":"no"}"#;
    let refusal = What::Json { status: StatusCode::BAD_REQUEST, body: body.to_owned() };
    sim.inject(Fault::once(Endpoint::Download, When::BeforeEffect, refusal));
    client.download_profile(with(order("refused", 20..21), ORDERS)).await.unwrap_err();
    sim.inject(Fault::once(Endpoint::Download, When::AfterEffect, What::Drop));
    client.download_profile(with(order("unknown", 30..31), ORDERS)).await.unwrap_err();

    // Wrong tokens, then new ones, and more connections than one listener allows.
    std::fs::write(&it.config.auth.tokens_file, "no line of tokens\n").unwrap();
    it.reaches("thingspace_gateway_files_refused", &[("files", "tokens")], 1.0).await;
    let tokens = line("orders", ORDERS) + &line("other", "another token");
    std::fs::write(&it.config.auth.tokens_file, tokens).unwrap();
    let used = [("files", "tokens"), ("outcome", "used")];
    it.reaches("thingspace_gateway_reloads_total", &used, 1.0).await;
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        crowd.push(TcpStream::connect(it.gateway.admin).await.unwrap());
    }
    let evicted = [("listener", "admin"), ("reason", "evicted")];
    it.reaches("thingspace_gateway_connections_refused_total", &evicted, 1.0).await;
    drop(crowd);

    let now = it.scrape().await;
    let method = format!("{METHODS}DownloadProfile");
    let order = |status| [("rpc_method", method.as_str()), ("rpc_response_status_code", status)];
    let calls = "rpc_server_call_duration_seconds";
    assert_eq!(now.count(calls, &order("OK")), Some(1.0));
    assert_eq!(now.count(calls, &order("UNAUTHENTICATED")), Some(1.0));
    assert_eq!(now.sum("thingspace_gateway_calls_total", &[("caller", "token:orders")]), Some(7.0));
    let orders = |outcome| {
        let labels = [("account", ACCOUNT), ("outcome", outcome)];
        now.sum("thingspace_gateway_orders_total", &labels)
    };
    assert_eq!(["accepted", "refused", "unknown"].map(orders), [Some(1.0); 3]);
    assert_eq!(now.sum("thingspace_gateway_orders_unknown", &[]), Some(1.0));
    let limit = [("limit", "limits.caller_open_devices")];
    assert_eq!(now.sum("thingspace_gateway_limits_reached_total", &limit), Some(1.0));
    let denied = [("reason", "no_credentials")];
    assert_eq!(now.sum("thingspace_gateway_calls_denied_total", &denied), Some(1.0));
    let ended = |reason| now.sum("thingspace_gateway_watches_ended_total", &[("reason", reason)]);
    assert_eq!(["FINAL", "LEFT"].map(ended), [Some(1.0); 2]);
    assert_eq!(now.sum("thingspace_gateway_watches_open", &[]), Some(0.0));
    let by = [("by", "callback"), ("state", "partially_succeeded")];
    assert_eq!(now.count("thingspace_gateway_request_duration_seconds", &by), Some(1.0));
    assert_eq!(now.count("thingspace_gateway_watch_delay_seconds", &[]), Some(2.0));
    let stored = [("account", ACCOUNT), ("outcome", "stored")];
    assert_eq!(now.sum("thingspace_gateway_callbacks_total", &stored), Some(3.0));
    let login = [("credentials", "test"), ("state", "logged_in")];
    assert_eq!(now.sum("thingspace_gateway_login_state", &login), Some(1.0));
    let left = now.sum("thingspace_gateway_login_rejections_left", &[("credentials", "test")]);
    assert_eq!(left, Some(2.0));
    let renewed = [("token", "session"), ("outcome", "renewed")];
    assert_eq!(now.sum("thingspace_gateway_renewals_total", &renewed), Some(1.0));
    assert_eq!(now.sum("thingspace_gateway_ready", &[]), Some(1.0));
    assert!(now.sum("thingspace_gateway_follower_lag", &[]).unwrap() < 10.0);

    // No identity, no id and no secret.
    let (_, text) = get(it.gateway.admin, "text/plain").await;
    for hidden in [&id.to_string(), &device(0).eid, &device(0).iccid, "simulator-", ORDERS] {
        assert!(!text.contains(hidden), "{hidden} is in the metrics");
    }
    now
}

/// What a gateway measures only with NATS, or with TLS.
async fn nats_and_tls() -> Scrape {
    let (server, upstream) = (NatsServer::start().await, Upstream::manual().await);
    let mut config = upstream.replica(&upstream.quiet(), &server.url(), 1, 0);
    let file = |name: &str| upstream.dir.path().join(name);
    (config.grpc.tls_cert_file, config.grpc.tls_key_file) = (file("tls.pem"), file("tls.key"));
    let authority = test_support::pki::Authority::new();
    let identity = authority.issue(test_support::pki::GATEWAY, test_support::pki::VALID);
    identity.write(&config.grpc.tls_cert_file, &config.grpc.tls_key_file);
    let gateway = Process::serve(&config, upstream.dir.path());
    // No TLS handshake.
    let mut plain = http2::Peer::connect(gateway.address).await;
    plain.rest().await;
    let handshake = [("listener", "grpc"), ("reason", "handshake")];
    eventually("a handshake failed", async || {
        let now = scrape(gateway.admin).await;
        now.sum("thingspace_gateway_connections_refused_total", &handshake).is_some()
    })
    .await;
    let now = scrape(gateway.admin).await;
    assert_eq!(now.sum("thingspace_gateway_nats_connected", &[]), Some(2.0));
    let certificate = [("listener", "grpc")];
    let remaining = now.sum("thingspace_gateway_certificate_remaining_seconds", &certificate);
    let renewal = now.sum("thingspace_gateway_certificate_renewal_seconds", &certificate);
    assert!(renewal.unwrap() < remaining.unwrap() && remaining.unwrap() > 0.0);
    assert!(now.sum("thingspace_gateway_store_room_bytes", &[]).unwrap() > 0.0);
    now
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_of_the_page_is_measured() {
    let page = std::fs::read_to_string("docs/metrics.md").unwrap();
    let listed: BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.split_once("<br>`")?.1.split('`').next())
        .map(str::to_owned)
        .filter(|name| !ELSEWHERE.contains(&&**name))
        .collect();
    let (embedded, nats) = (embedded().await, nats_and_tls().await);
    let measured: BTreeSet<_> = embedded.0.into_keys().chain(nats.0.into_keys()).collect();
    let missing: Vec<_> = listed.difference(&measured).collect();
    assert!(missing.is_empty(), "not measured: {missing:#?}");
    let unlisted: Vec<_> =
        measured.difference(&listed).filter(|name| *name != "target_info").collect();
    assert!(unlisted.is_empty(), "not in docs/metrics.md: {unlisted:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scraper_chooses_the_format() {
    let upstream = Upstream::manual().await;
    let gateway = Process::serve(&upstream.config(), upstream.dir.path());
    place(&mut gateway.client().await, "k", 0..2).await.unwrap();
    let (kind, text) = get(gateway.admin, "*/*").await;
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    let plain = Scrape::parse(&text, false);
    // What Prometheus 2 sends.
    let accept = "application/openmetrics-text;version=1.0.0,\
                  application/openmetrics-text;version=0.0.1;q=0.75,\
                  text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let (kind, text) = get(gateway.admin, accept).await;
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let open = Scrape::parse(&text, true);
    assert_eq!(plain.0["thingspace_gateway_orders_total"].kind, "counter");
    assert_eq!(open.0["thingspace_gateway_orders"].kind, "counter");

    let http = reqwest::Client::new();
    let url = format!("http://{}/metrics", gateway.admin);
    assert_eq!(http.post(&url).send().await.unwrap().status(), 405);
    drop(gateway);
    let mut off = upstream.config();
    off.telemetry.metrics = false;
    let gateway = Process::serve(&off, upstream.dir.path());
    let url = format!("http://{}/metrics", gateway.admin);
    assert_eq!(http.get(&url).send().await.unwrap().status(), 404);
}

/// A scrape takes no values from the collector, whether they share them or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrape_and_a_collector_get_the_same_values() {
    let upstream = Upstream::manual().await;
    for temporality in ["cumulative", "delta"] {
        let (collector, address) = Collector::start().await;
        let mut config = upstream.config();
        config.telemetry.otlp_endpoint = format!("http://{address}");
        let process = Process::spawn(
            command(&upstream, &config)
                .env("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", temporality),
        );
        place(&mut process.client().await, temporality, 0..2).await.unwrap();
        for _ in 0..2 {
            let scraped = scrape(process.admin).await;
            assert_eq!(scraped.sum("thingspace_gateway_orders_total", &[]), Some(1.0));
        }
        process.terminate();
        assert!(process.wait().await.0.success());
        let metrics = collector.metrics();
        let orders = metrics.iter().find(|metric| metric.name == "thingspace.gateway.orders");
        let Some(Data::Sum(orders)) = &orders.unwrap().data else { panic!("{orders:?}") };
        let values = orders.data_points.iter().filter_map(|point| match point.value? {
            Value::AsInt(value) => Some(value),
            Value::AsDouble(_) => None,
        });
        assert_eq!(values.sum::<i64>(), 1, "{temporality}: {orders:#?}");
    }
}

/// A collector gets the same metrics, with their units, at the end of the process at the latest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_gets_names_units_and_attributes() {
    let upstream = Upstream::manual().await;
    let (collector, address) = Collector::start().await;
    let mut config = upstream.config();
    config.telemetry.otlp_endpoint = format!("http://{address}");
    let process = Process::spawn(&mut command(&upstream, &config));
    place(&mut process.client().await, "k", 0..2).await.unwrap();
    process.terminate();
    let (status, log) = process.wait().await;
    assert!(status.success(), "{log:#?}");

    let metrics = collector.metrics();
    assert!(!metrics.is_empty(), "{log:#?}");
    let metric = |name: &str| {
        metrics.iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("{name}"))
    };
    let calls = metric("rpc.server.call.duration");
    assert_eq!(calls.unit, "s");
    let Some(Data::Histogram(calls)) = &calls.data else { panic!("{calls:?}") };
    let attributes = |point: &[opentelemetry_proto::tonic::common::v1::KeyValue], key: &str| {
        crate::collector::text(point, key).map(str::to_owned)
    };
    let order = calls.data_points.iter().find(|point| {
        attributes(&point.attributes, "rpc.method") == Some(format!("{METHODS}DownloadProfile"))
    });
    let order = order.unwrap();
    assert_eq!((order.count, order.explicit_bounds.len()), (1, 14));
    assert_eq!(attributes(&order.attributes, "rpc.system.name").unwrap(), "grpc");
    assert_eq!(attributes(&order.attributes, "rpc.response.status_code").unwrap(), "OK");
    assert_eq!(attributes(&order.attributes, "error.type"), None);
    let http = metric("http.client.request.duration");
    let Some(Data::Histogram(http)) = &http.data else { panic!("{http:?}") };
    let post = http.data_points.iter().find(|point| {
        attributes(&point.attributes, "url.template").as_deref()
            == Some("/m2m/v1/devices/profile/actions/download")
    });
    let post = post.unwrap();
    assert_eq!(attributes(&post.attributes, "http.request.method").unwrap(), "POST");
    assert_eq!(attributes(&post.attributes, "server.address").unwrap(), "127.0.0.1");
    let Some(Data::Sum(orders)) = &metric("thingspace.gateway.orders").data else { panic!() };
    assert!(orders.is_monotonic);
    assert_eq!(metric("process.memory.usage").unit, "By");
}

/// A connection gets old. Then a response that its caller does not read ends soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_that_nobody_reads_is_counted() {
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let upstream = Upstream::manual().await;
    let mut config = upstream.config();
    config.grpc.connection_age = Duration::from_secs(10);
    let gateway = Process::serve(&config, upstream.dir.path());
    let mut caller = http2::Peer::connect_with(gateway.address, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    let block = http2::call("/grpc.health.v1.Health/Check", "");
    caller.send(&http2::unary(1, &block, &[0; 5])).await.unwrap();
    eventually("it is counted", async || {
        scrape(gateway.admin).await.sum("thingspace_gateway_slow_readers_total", &[]) == Some(1.0)
    })
    .await;
}
