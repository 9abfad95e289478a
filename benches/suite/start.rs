//! Starts with a history, and the memory of open requests.

use std::{collections::HashSet, path::Path, sync::Arc, time::Instant};

use futures_util::StreamExt as _;
use prost::Message as _;
use tempfile::TempDir;
use test_support::{
    bench::{Core, Helper, Usage, on_core},
    harness::usable,
    nats_server::NatsCluster,
};
use thingspace_gateway::{
    config::{Config, NatsConfig, StoreKind},
    store::{Followed, MAX_READ, Store, embedded::Embedded, nats::Nats},
};

use crate::{
    Context,
    gateway::{self, Gateway, folder},
    history::{self, RETENTION, stored},
    plan::{float, grouped, short},
    plot::{Series, lines},
    report::{Goal, Section, Unit},
    upstream::Upstream,
};

/// What is in a store before a start.
#[derive(Clone, Copy)]
enum History {
    Empty,
    /// Finished requests only.
    Finished,
    /// One request that is still open, and finished ones that began after it.
    Stuck,
    Open,
}

impl History {
    async fn write(self, store: &dyn Store, requests: usize) {
        match self {
            Self::Empty => {}
            Self::Finished => history::finished(store, 0..requests).await,
            Self::Stuck => {
                history::open(store, 0..1, 1).await;
                history::finished(store, 1..requests).await;
            }
            Self::Open => history::open(store, 0..requests, 1).await,
        }
    }
}

/// A start: its time in milliseconds, its processor time in milliseconds.
struct Started {
    time: f64,
    cpu: f64,
}

pub(crate) async fn measure(context: &mut Context) {
    let upstream = Upstream::start();
    for &requests in context.plan.histories {
        embedded(context, &upstream, requests).await;
    }
    if context.plan.nats {
        for &requests in context.plan.histories {
            nats(context, &upstream, requests).await;
        }
    }
    open_requests(context, &upstream).await;
}

async fn embedded(context: &mut Context, upstream: &Upstream, requests: usize) {
    let mut section = Section::new(
        format!("Starts with {} requests, embedded store", grouped(requests)),
        "From the start of the process until it is ready. The time is compared with that for an \
         empty store, the CPU with a process that follows the same store and reads each log once.",
    );
    let kinds = [History::Empty, History::Finished, History::Stuck, History::Open];
    let mut stores = Vec::new();
    for kind in kinds {
        let folder = folder();
        let config = gateway::config(folder.path(), &upstream.url);
        let store = Embedded::open(&config.store.path, RETENTION).unwrap();
        kind.write(&store, requests).await;
        store.close().await;
        drop(store);
        // The first start stores the low-water mark.
        start(&config, &folder).await;
        stores.push((folder, config));
    }
    let mut starts: [Vec<Started>; 4] = Default::default();
    let mut reads: [Vec<Started>; 4] = Default::default();
    for _ in 0..context.plan.runs {
        for (n, (folder, config)) in stores.iter().enumerate() {
            starts[n].push(start(config, folder).await);
            reads[n].push(read(&config.store.path));
        }
    }
    let values = |of: &[Started], value: fn(&Started) -> f64| of.iter().map(value).collect();
    let times: [Vec<f64>; 4] = starts.each_ref().map(|of| values(of, |start| start.time));
    let cpus: [Vec<f64>; 4] = starts.each_ref().map(|of| values(of, |start| start.cpu));
    let reads: [Vec<f64>; 4] = reads.each_ref().map(|of| values(of, |read| read.cpu));
    let size = short(requests);
    let rows = [
        (0, "empty", "empty store", Goal::Value(100.0)),
        (1, "finished", "all finished", Goal::Ratio(1.3)),
        (2, "stuck", "all finished but the first", Goal::Ratio(1.3)),
        (3, "open", "all open", Goal::Value(3_000.0)),
    ];
    for (n, id, what, goal) in rows {
        let reference = (n > 0).then_some(("empty", &times[0][..]));
        let row = (format!("start_{size}_{id}"), what);
        section.row(row, Unit::Millis, &times[n], reference, Some(goal));
    }
    for (n, id, what, _) in &rows[2..] {
        let reference = Some(("follow and read", &reads[*n][..]));
        let row = (format!("start_{size}_{id}_cpu"), format!("CPU, {what}"));
        section.row(row, Unit::CpuMillis, &cpus[*n], reference, None);
    }
    context.report.sections.push(section);
}

/// Starts a gateway, and stops it as an operator does.
async fn start(config: &Config, folder: &TempDir) -> Started {
    let began = Instant::now();
    let gateway = Gateway::start_with(config, folder.path());
    let time = began.elapsed().as_secs_f64() * 1e3;
    let cpu = Usage::of(gateway.process.pid()).processor.as_secs_f64() * 1e3;
    gateway.stop().await;
    Started { time, cpu }
}

/// Follows a store and reads each log in a process of its own.
fn read(store: &Path) -> Started {
    let began = Instant::now();
    let mut reader = on_core(Core::Server, || Helper::start(&["read", store.to_str().unwrap()]));
    assert_eq!(reader.line(), "done");
    let time = began.elapsed().as_secs_f64() * 1e3;
    Started { time, cpu: Usage::of(reader.pid()).processor.as_secs_f64() * 1e3 }
}

/// Reads all events of a store, and each log, and prints `done`.
pub(crate) async fn run_reader(path: &Path) {
    let store = Embedded::open(path, RETENTION).unwrap();
    let mut followed = store.follow(None);
    let mut logs = HashSet::new();
    while let Some(item) = followed.next().await {
        match item {
            Followed::Event(log, _) => _ = logs.insert(log),
            Followed::CaughtUp(_) => break,
            _ => {}
        }
    }
    for log in logs {
        store.read(&log, 0, MAX_READ).await.unwrap();
    }
    println!("done");
    std::thread::park();
}

/// Measures the same starts on three NATS servers on this machine.
async fn nats(context: &mut Context, upstream: &Upstream, requests: usize) {
    let mut section = Section::new(
        format!("Starts with {} requests, three NATS servers", grouped(requests)),
        "Gateway and servers share the processors. Compared with empty streams.",
    );
    let cluster = NatsCluster::start().await;
    let size = short(requests);
    let mut empty = Vec::new();
    let kinds = [
        ("empty", "empty streams", History::Empty, Goal::Value(100.0)),
        ("finished", "all finished", History::Finished, Goal::Ratio(1.3)),
        ("stuck", "all finished but the first", History::Stuck, Goal::Ratio(1.3)),
        ("open", "all open", History::Open, Goal::Value(3_000.0)),
    ];
    for (prefix, what, kind, goal) in kinds {
        let folder = folder();
        let mut config = gateway::config(folder.path(), &upstream.url);
        config.store.kind = StoreKind::Nats;
        config.store.nats =
            NatsConfig { url: cluster.url(), prefix: prefix.to_owned(), ..config.store.nats };
        config.control.socket = folder.path().join("socket");
        let store: Arc<dyn Store> =
            Arc::new(Nats::open(&config.store.nats, RETENTION).await.unwrap());
        usable(&*store).await;
        kind.write(&*store, requests).await;
        store.close().await;
        start(&config, &folder).await;
        let mut times = Vec::new();
        for _ in 0..context.plan.runs {
            times.push(start(&config, &folder).await.time);
        }
        let reference = (!empty.is_empty()).then_some(("empty", &empty[..]));
        section.row(
            (format!("nats_start_{size}_{prefix}"), what),
            Unit::Millis,
            &times,
            reference,
            Some(goal),
        );
        if prefix == "empty" {
            empty = times;
        }
    }
    context.report.sections.push(section);
}

/// Measures the memory of open requests, and the processor time of starts with them.
async fn open_requests(context: &mut Context, upstream: &Upstream) {
    let mut section = Section::new(
        "Open requests",
        "The memory of a gateway after a start, without that of one with an empty store. The \
         reference is the size of a stored device.",
    );
    let large = (10, 10_000);
    let mut cases = vec![(0, 1), large];
    cases.extend(context.plan.open.iter().map(|requests| (*requests, 1)));
    let mut gateways = Vec::new();
    for (requests, devices) in cases {
        gateways.push((requests, devices, with_open_requests(upstream, requests, devices).await));
    }
    tokio::time::sleep(context.plan.settle).await;
    let (mut idle, mut bytes, mut cpus) = ((0.0, 0.0), Vec::new(), Vec::new());
    for (requests, devices, (gateway, cpu, _folder)) in gateways {
        let memory = Usage::of(gateway.process.pid()).memory;
        gateway.stop().await;
        if requests == 0 {
            idle = (memory, cpu);
            continue;
        }
        bytes.push((requests, (memory - idle.0) / float(requests * devices)));
        cpus.push((requests, (cpu - idle.1) / float(requests * devices)));
    }
    let large_each = bytes.remove(0).1;
    cpus.remove(0);
    let size = [float(stored(0).encoded_len())];
    for (requests, each) in &bytes {
        let id = format!("open_{}_bytes", short(*requests));
        let what = format!("memory of a device, {} requests of one device", grouped(*requests));
        let reference = Some(("stored", &size[..]));
        section.row((id, what), Unit::Bytes, &[*each], reference, Some(Goal::Value(600.0)));
    }
    let last = cpus[cpus.len() - 1];
    let what = format!("CPU of a start for each of {} requests", grouped(last.0));
    section.row(("open_cpu", what), Unit::CpuMicros, &[last.1 * 1e3], None, None);
    let what = "memory of a device, 10 requests of 10,000 devices";
    section.row(
        ("open_large_bytes", what),
        Unit::Bytes,
        &[large_each],
        Some(("stored", &size)),
        Some(Goal::Value(600.0)),
    );
    context.report.sections.push(section);
    let all = |values: &[(usize, f64)], scale: f64| {
        values.iter().map(|(n, each)| (float(*n), each * float(*n) / scale)).collect()
    };
    let plot = lines(
        "Open requests with one device",
        "open requests",
        &[
            Series { name: "memory, MB", points: all(&bytes, 1e6) },
            Series { name: "CPU of a start, ms", points: all(&cpus, 1.0) },
        ],
    );
    crate::write_plot("open_requests", plot);
}

/// Starts a gateway with open requests. Returns the processor time of its start, in milliseconds.
async fn with_open_requests(
    upstream: &Upstream,
    requests: usize,
    devices: usize,
) -> (Gateway, f64, TempDir) {
    let folder = folder();
    let config = gateway::config(folder.path(), &upstream.url);
    let store = Embedded::open(&config.store.path, RETENTION).unwrap();
    history::open(&store, 0..requests, devices).await;
    store.close().await;
    drop(store);
    let gateway = Gateway::start_with(&config, folder.path());
    let cpu = Usage::of(gateway.process.pid()).processor.as_secs_f64() * 1e3;
    (gateway, cpu, folder)
}
