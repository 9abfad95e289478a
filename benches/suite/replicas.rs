//! Orders at a fixed rate through three replicas on three NATS servers, and through one.

use std::{thread, time::Duration};

use test_support::{
    bench::{Usage, on_all_cores},
    harness::Process,
    nats_server::NatsCluster,
};
use thingspace_gateway::config::{NatsConfig, StoreKind};

use crate::{
    Context,
    gateway::{self, Gateway, folder},
    load::{Calls, Load, Measured},
    plan::float,
    report::{Goal, Section, Unit},
    upstream::Upstream,
    watches::metric,
};

/// Orders per second of all replicas together.
const RATE: f64 = 1_000.0;

/// The most orders in flight of a replica.
const IN_FLIGHT: usize = 256;

/// What a number of replicas did.
struct Results {
    /// Orders per second.
    rate: f64,
    /// In milliseconds, of the slowest replica.
    p99: f64,
    /// Processor time of all replicas for an order, in microseconds.
    cpu: f64,
    /// Events that a replica had not read at the end of the load, at most.
    lag: f64,
    /// Bytes by which a replica grew for each order.
    bytes: f64,
}

/// The id and the name of a row, its unit, its value, and its goal.
type ResultRow = (&'static str, &'static str, Unit, fn(&Results) -> f64, Option<Goal>);

pub(crate) async fn measure(context: &mut Context) {
    let mut section = Section::new(
        "1,000 orders per second on NATS",
        "Three replicas and three servers (R3, each write synced) on one machine, with the load. \
         The reference is one replica on the same servers. The rate is what was offered, 1,000 \
         orders per second, or what the machine can do.",
    );
    let (mut three, mut one) = (Vec::new(), Vec::new());
    for run in 0..context.plan.runs {
        three.push(run_replicas(context, 3, run).await);
        one.push(run_replicas(context, 1, run).await);
    }
    let rows: [ResultRow; 5] = [
        ("rate", "orders per second", Unit::Count, |of| of.rate, None),
        ("p99", "p99", Unit::Millis, |of| of.p99, None),
        ("cpu", "CPU of an order, all replicas", Unit::CpuMicros, |of| of.cpu, None),
        (
            "lag",
            "events that a replica has not read, in seconds",
            Unit::Count,
            |of| of.lag,
            Some(Goal::Value(1.0)),
        ),
        ("bytes", "memory of a replica for an order", Unit::Bytes, |of| of.bytes, None),
    ];
    for (id, what, unit, value, goal) in rows {
        let [three, one] = [&three, &one].map(|of| of.iter().map(value).collect::<Vec<_>>());
        let reference = (id != "lag").then_some(("1 replica", &one[..]));
        section.row((format!("replicas_{id}"), what), unit, &three, reference, goal);
    }
    context.report.sections.push(section);
}

async fn run_replicas(context: &Context, count: usize, run: usize) -> Results {
    let cluster = on_all_cores(NatsCluster::start).await;
    let upstream = Upstream::start();
    let mut gateways = Vec::new();
    for n in 0..count {
        let folder = folder();
        let mut config = gateway::config(folder.path(), &upstream.url);
        config.store.kind = StoreKind::Nats;
        config.store.nats = NatsConfig { url: cluster.url(), ..config.store.nats };
        config.control.socket = folder.path().join(format!("{n}.sock"));
        let process = on_all_cores(|| Process::serve(&config, folder.path()));
        gateways.push((Gateway { process }, folder));
    }
    let rate = RATE / float(count);
    let load = |gateway: &Gateway, keys: String, time: Duration| {
        let calls = Calls::Orders { devices: 1, keys };
        Load::new(&gateway.target(), IN_FLIGHT, time, &calls, Some(rate))
    };
    for (n, (gateway, _)) in gateways.iter().enumerate() {
        load(gateway, format!("warm-up-{n}"), Duration::from_secs(1)).run(|| ());
    }
    let memory = |(gateway, _): &(Gateway, _)| Usage::of(gateway.process.pid()).memory;
    let before: Vec<_> = gateways.iter().map(memory).collect();
    let loads = gateways
        .iter()
        .enumerate()
        .map(|(n, (gateway, _))| load(gateway, format!("{run}-{n}"), context.plan.load * 3));
    let running: Vec<_> = loads.map(|load| thread::spawn(|| load.run(|| ()))).collect();
    let results: Vec<Measured> = tokio::task::block_in_place(|| {
        running.into_iter().map(|load| load.join().unwrap()).collect()
    });
    let mut lag: f64 = 0.0;
    for (gateway, _) in &gateways {
        lag = lag.max(metric(&gateway.process, "thingspace_gateway_follower_lag").await);
    }
    let rate: f64 = results.iter().map(|of| of.rate).sum();
    let orders = rate * context.plan.load.as_secs_f64() * 3.0;
    let grown = gateways.iter().map(memory).zip(&before).map(|(now, before)| now - before);
    assert!(results.iter().all(|of| of.failed == 0), "orders failed");
    Results {
        rate,
        p99: results.iter().map(|of| of.p99).fold(0.0, f64::max),
        cpu: results.iter().map(|of| of.cpu * of.rate).sum::<f64>() / rate,
        // Four events belong to an order.
        lag: lag / (rate * 4.0),
        bytes: grown.fold(0.0, f64::max) / orders,
    }
}
