//! Orders: of one device, and of as many as ThingSpace allows.

use test_support::bench::{Usage, reset_peak};

use crate::{
    Context,
    floor::Floor,
    gateway::{Gateway, folder},
    load::{Calls, Target, load},
    report::{Goal, Section, Unit},
    status::{take_turns, values},
    upstream::Upstream,
};

pub(crate) async fn measure(context: &mut Context) {
    let mut section = Section::new(
        "Orders for one device",
        "A durable order. The reference is the floor with two synced writes of the order, one \
         before and one after the call. All orders that wait share a sync.",
    );
    let upstream = Upstream::start();
    let (folder, journal) = (folder(), folder());
    let gateway = Gateway::start(folder.path(), &upstream.url);
    let floor = Floor::with_journal(&upstream.url, &journal.path().join("journal"));
    let targets = [gateway.target(), floor.target()];
    for (in_flight, goal) in [(1, None), (64, Some(Goal::Value(150.0)))] {
        let calls = Calls::Orders { devices: 1, keys: in_flight.to_string() };
        let results = take_turns(context, in_flight, &targets.each_ref().map(|t| (t, &calls)));
        let [gateway, floor] = [&results[0], &results[1]];
        section.row(
            (format!("order_{in_flight}_cpu"), format!("CPU of an order, {in_flight} in flight")),
            Unit::CpuMicros,
            &values(gateway, |run| run.cpu),
            Some(("floor + 2 syncs", &values(floor, |run| run.cpu))),
            goal,
        );
        section.row(
            (format!("order_{in_flight}_p50"), format!("p50, {in_flight} in flight")),
            Unit::Millis,
            &values(gateway, |run| run.p50),
            Some(("floor + 2 syncs", &values(floor, |run| run.p50))),
            (in_flight == 1).then_some(Goal::Ratio(1.5)),
        );
    }
    context.report.sections.push(section);
    large(context, &upstream).await;
}

/// Measures the largest orders, one at a time. Each run has new processes, because the first order
/// shows the peak.
async fn large(context: &mut Context, upstream: &Upstream) {
    const DEVICES: usize = 10_000;
    let mut section = Section::new(
        "Orders for 10,000 devices",
        "One at a time. The floor parses the order and serialises it for ThingSpace. The peak is \
         what the first order adds to the memory of an idle process.",
    );
    let (mut cpu, mut p50, mut peak) = ([vec![], vec![]], [vec![], vec![]], [vec![], vec![]]);
    for _ in 0..context.plan.runs {
        let folder = folder();
        let gateway = Gateway::start(folder.path(), &upstream.url);
        let floor = Floor::start(&upstream.url);
        for (n, target) in [gateway.target(), floor.target()].iter().enumerate() {
            peak[n].push(peak_of_an_order(target, DEVICES));
            let calls = Calls::Orders { devices: DEVICES, keys: "more".to_owned() };
            let measured = load(target, 1, context.plan.load, &calls);
            cpu[n].push(measured.cpu / 1e3);
            p50[n].push(measured.p50);
        }
        gateway.stop().await;
    }
    let rows = [
        ("large_order_cpu", "CPU of an order", Unit::CpuMillis, &cpu, Goal::Ratio(1.1)),
        ("large_order_p50", "p50", Unit::Millis, &p50, Goal::Ratio(1.1)),
        ("large_order_peak", "peak of memory over idle", Unit::Megabytes, &peak, Goal::Value(64.0)),
    ];
    for (id, what, unit, [gateway, floor], goal) in rows {
        section.row((id, what), unit, gateway, Some(("floor", floor)), Some(goal));
    }
    context.report.sections.push(section);
}

/// Returns by how much one order raises the memory of a process, in MB.
fn peak_of_an_order(target: &Target, devices: usize) -> f64 {
    // Connects and logs in.
    let warm_up = Calls::Orders { devices: 1, keys: "warm-up".to_owned() };
    load(target, 1, std::time::Duration::ZERO, &warm_up);
    reset_peak(target.pid);
    let before = Usage::of(target.pid).memory;
    let calls = Calls::Orders { devices, keys: "first".to_owned() };
    load(target, 1, std::time::Duration::ZERO, &calls);
    (Usage::of(target.pid).peak - before) / 1e6
}
