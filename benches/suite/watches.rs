//! Watches: memory and processor time of idle ones, how long one change takes to reach all of them,
//! a storm of resumed ones, and what many watchers of a request cost ThingSpace.

use std::time::Duration;

use test_support::{
    bench::Usage,
    harness::{Process, Upstream as Simulated, device},
};
use thingspace_gateway::{
    identity::RequestId,
    proto::esim::GetRequestStatusRequest,
    simulator::{DeviceResult, Mode, Options},
};

use crate::{
    Context,
    floor::Floor,
    gateway::{self, Gateway, account, folder},
    plan::{float, grouped, short},
    report::{Goal, Section, Unit},
    upstream::Upstream,
    watch_client::Watches,
};

/// The changes that are sent to all watches, one after the other.
const CHANGES: usize = 5;

/// A gateway with an open request of the simulator, which can change its devices.
struct Watched {
    simulated: Simulated,
    gateway: Gateway,
    id: RequestId,
}

/// The id and the name of a row, its unit, its value, and its goal.
type WatchRow = (&'static str, &'static str, Unit, fn(&Measured) -> f64, Option<Goal>);

impl Watched {
    /// Starts one. The request has one device more than there are changes, so that it stays open.
    async fn start(devices: usize) -> Self {
        let options = Options { mode: Mode::Manual, ..Options::default() };
        let simulated = Simulated::start(options).await;
        let folder = simulated.dir.path();
        let url = format!("http://{}/api", simulated.address());
        let mut config = gateway::config(folder, &url);
        config.credentials = simulated.quiet().credentials;
        let gateway = Gateway::start_with(&config, folder);
        let mut client = gateway.process.client().await;
        let id = test_support::harness::place(&mut client, "key", 0..devices).await.unwrap();
        Self { simulated, gateway, id }
    }

    /// Changes a device.
    async fn change(&self, n: usize) {
        self.simulated.sim.finish(&self.id, &device(n).eid, DeviceResult::Success);
        let call = GetRequestStatusRequest {
            account_name: account(0),
            request_id: self.id.to_string(),
            ..GetRequestStatusRequest::default()
        };
        let mut client = self.gateway.process.client().await;
        client.get_request_status(call).await.unwrap();
    }
}

/// What one server needs for its watches.
struct Measured {
    /// Bytes of one idle watch, before the first change and after the last one.
    bytes: [f64; 2],
    /// Processor time of idle watches, as a part of one processor, in percent.
    idle: f64,
    /// From the first watch that has a change to the last one, in milliseconds; the median.
    fan_out: f64,
    /// Processor time of the server for a change, in milliseconds.
    cpu: f64,
}

pub(crate) async fn measure(context: &mut Context) {
    for &watches in context.plan.watches {
        idle_and_changed(context, watches).await;
    }
    storm(context).await;
    watchers(context).await;
}

/// Opens watches at both servers, and measures them.
async fn idle_and_changed(context: &mut Context, watches: usize) {
    let mut section = Section::new(
        format!("{} watches of a request", grouped(watches)),
        "Over a connection for each 1,000 watches. The reference is a bare tonic server that \
         broadcasts. The memory is measured when what is not needed was returned to the system.",
    );
    let (mut gateways, mut tonics) = (Vec::new(), Vec::new());
    for _ in 0..context.plan.watch_runs {
        let watched = Watched::start(CHANGES + 1).await;
        let mut floor = Floor::start("http://127.0.0.1:1/api");
        let targets = [watched.gateway.target(), floor.target()];
        let before = targets.each_ref().map(|target| Usage::of(target.pid));
        let mut clients =
            targets.each_ref().map(|target| Watches::open(target, &watched.id, watches));
        tokio::time::sleep(context.plan.settle).await;
        let open = targets.each_ref().map(|target| Usage::of(target.pid));
        tokio::time::sleep(context.plan.idle).await;
        let idle = targets.each_ref().map(|target| Usage::of(target.pid).processor);
        let mut fan_outs = [vec![], vec![]];
        for n in 0..CHANGES {
            watched.change(n).await;
            fan_outs[0].push(clients[0].change().as_secs_f64() * 1e3);
            floor.change();
            fan_outs[1].push(clients[1].change().as_secs_f64() * 1e3);
        }
        let after = targets.each_ref().map(|target| Usage::of(target.pid));
        for (n, results) in [&mut gateways, &mut tonics].into_iter().enumerate() {
            let each = |usage: &Usage| (usage.memory - before[n].memory) / float(watches);
            let busy = idle[n].saturating_sub(open[n].processor).as_secs_f64();
            let used = after[n].processor.saturating_sub(idle[n]).as_secs_f64();
            results.push(Measured {
                bytes: [each(&open[n]), each(&after[n])],
                idle: busy / context.plan.idle.as_secs_f64() * 100.0,
                fan_out: crate::report::Spread::of(&fan_outs[n]).median,
                cpu: used * 1e3 / float(CHANGES),
            });
        }
    }
    let name = short(watches);
    let rows: [WatchRow; 4] = [
        (
            "bytes",
            "memory of an idle watch",
            Unit::Bytes,
            |of| of.bytes[0],
            Some(Goal::Value(2_500.0)),
        ),
        ("changed", "memory of a watch after changes", Unit::Bytes, |of| of.bytes[1], None),
        (
            "fan_out",
            "a change, from the first watch to the last",
            Unit::Millis,
            |of| of.fan_out,
            Some(Goal::Ratio(1.0)),
        ),
        ("cpu", "CPU of a change to all", Unit::CpuMillis, |of| of.cpu, None),
    ];
    for (id, what, unit, value, goal) in rows {
        let [gateway, tonic] =
            [&gateways, &tonics].map(|of| of.iter().map(value).collect::<Vec<_>>());
        section.row(
            (format!("watch_{name}_{id}"), what),
            unit,
            &gateway,
            Some(("tonic", &tonic)),
            goal,
        );
    }
    if !context.plan.idle.is_zero() {
        let idle: Vec<_> = gateways.iter().map(|of| of.idle).collect();
        let what = "processor for the heartbeats of all, in percent";
        section.row((format!("watch_{name}_idle"), what), Unit::Count, &idle, None, None);
    }
    context.report.sections.push(section);
}

/// Cuts all connections, and resumes all watches at once.
async fn storm(context: &mut Context) {
    let watches = context.plan.storm;
    let mut section = Section::new(
        "A resume storm",
        format!(
            "{} watches lose their connections, and resume with their tokens at once.",
            grouped(watches)
        ),
    );
    let watched = Watched::start(context.plan.watch_runs + 1).await;
    let mut client = Watches::open(&watched.gateway.target(), &watched.id, watches);
    let pid = watched.gateway.process.pid();
    let (mut times, mut cpu) = (Vec::new(), Vec::new());
    let before = counts(&watched).await;
    for n in 0..context.plan.watch_runs {
        let began = Usage::of(pid).processor;
        times.push(client.cut_and_resume().as_secs_f64() * 1e3);
        let used = Usage::of(pid).processor.saturating_sub(began);
        cpu.push(used.as_secs_f64() * 1e6 / float(watches));
        // Each of them gets the next change.
        if n + 1 == context.plan.watch_runs {
            let after = counts(&watched).await;
            section.row(
                ("storm_logins", "logins and token requests"),
                Unit::Count,
                &[after.0 - before.0],
                None,
                Some(Goal::Value(0.0)),
            );
            section.row(
                ("storm_reads", "reads of the store"),
                Unit::Count,
                &[after.1 - before.1],
                None,
                Some(Goal::Value(0.0)),
            );
        }
        watched.change(n).await;
        client.change();
    }
    let goal = Some(Goal::Value(10_000.0));
    section.row(("storm_time", "until all are accepted"), Unit::Millis, &times, None, goal);
    section.row(("storm_cpu", "CPU of a resumed watch"), Unit::CpuMicros, &cpu, None, None);
    context.report.sections.push(section);
}

/// Returns the logins and token requests, and the reads of the gateway's store.
async fn counts(watched: &Watched) -> (f64, f64) {
    let ledger = watched.simulated.sim.ledger();
    let logins = u32::try_from(ledger.logins() + ledger.token_requests()).unwrap();
    (f64::from(logins), metric(&watched.gateway.process, STORE_READS).await)
}

const STORE_READS: &str = "thingspace_gateway_store_duration_seconds_count{operation=\"read\"";

/// Returns the sum of the series that begin so.
pub(crate) async fn metric(process: &Process, series: &str) -> f64 {
    let url = format!("http://{}/metrics", process.admin);
    let http = reqwest::Client::builder().tls_certs_only([]).build().unwrap();
    let text = http.get(url).send().await.unwrap().text().await.unwrap();
    let lines = text.lines().filter(|line| line.starts_with(series));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// Counts status queries while one watcher watches a request, and while many do.
async fn watchers(context: &mut Context) {
    const INTERVAL: Duration = Duration::from_millis(100);
    const TIME: Duration = Duration::from_secs(4);
    let many = context.plan.watchers;
    let mut section = Section::new(
        "Watchers of a request",
        format!(
            "Status queries to ThingSpace at the same time, with {} watchers and with one.",
            grouped(many)
        ),
    );
    let mut queries = [vec![], vec![]];
    for _ in 0..context.plan.watch_runs {
        let mut open = Vec::new();
        for watches in [many, 1] {
            let (upstream, folder) = (Upstream::start(), folder());
            let mut config = gateway::config(folder.path(), &upstream.url);
            config.polling.first = INTERVAL;
            config.polling.max_watched = INTERVAL;
            config.polling.factor = 1.0;
            let gateway = Gateway::start_with(&config, folder.path());
            let mut client = gateway.process.client().await;
            let calls = gateway::place(&mut client, [0], "plan 1").await;
            let watching = Watches::open(&gateway.target(), &gateway::first(&calls), watches);
            open.push((upstream, gateway, watching, folder));
        }
        let before: Vec<_> = open.iter_mut().map(|(of, ..)| of.counts().statuses).collect();
        tokio::time::sleep(TIME).await;
        for (n, (upstream, ..)) in open.iter_mut().enumerate() {
            let count = u32::try_from(upstream.counts().statuses - before[n]).unwrap();
            queries[n].push(f64::from(count));
        }
    }
    section.row(
        ("watchers", format!("queries, {} watchers", grouped(many))),
        Unit::Count,
        &queries[0],
        Some(("1 watcher", &queries[1])),
        // Polls are scheduled with a random part.
        Some(Goal::Ratio(1.1)),
    );
    context.report.sections.push(section);
}
