//! Status calls: ThingSpace is asked each time, or the answer is in memory.

use crate::{
    Context,
    envoy::Envoy,
    floor::Floor,
    gateway::{Gateway, ask, folder, place},
    load::{Calls, Measured, Target, load},
    report::{Goal, Section, Unit},
    upstream::{FINISHED, Upstream},
};

/// Requests that are asked about. As many as calls are in flight at most, because calls about one
/// request share a query.
const REQUESTS: usize = 256;

/// The results of a server, one for each run.
pub(crate) type Runs = Vec<Measured>;

/// Returns one value of each run.
pub(crate) fn values(runs: &Runs, value: impl Fn(&Measured) -> f64) -> Vec<f64> {
    runs.iter().map(value).collect()
}

/// Lets servers take turns, in several runs after one that warms up.
pub(crate) fn take_turns(
    context: &Context,
    in_flight: usize,
    turns: &[(&Target, &Calls)],
) -> Vec<Runs> {
    let mut results: Vec<Runs> = turns.iter().map(|_| Vec::new()).collect();
    for run in 0..=context.plan.runs {
        for ((target, calls), runs) in turns.iter().zip(&mut results) {
            let measured = load(target, in_flight, context.plan.load, &calls.of_run(run));
            if run > 0 {
                runs.push(measured);
            }
        }
    }
    results
}

pub(crate) async fn measure(context: &mut Context) {
    let mut section = Section::new(
        "Status calls that ask ThingSpace",
        "A status call of an open request with one device. ThingSpace is asked each time, and \
         answers at once. The floor is bare tonic over pooled reqwest. Envoy transcodes and \
         injects both credentials.",
    );
    let upstream = Upstream::start();
    let folder = folder();
    let gateway = Gateway::start(folder.path(), &upstream.url);
    let floor = Floor::start(&upstream.url);
    let envoy = Envoy::start(&upstream.url);
    let calls = place(&mut gateway.process.client().await, 0..REQUESTS, "plan 1").await;
    let mut targets = vec![gateway.target(), floor.target()];
    targets.extend(envoy.as_ref().map(Envoy::target));
    let turns: Vec<_> = targets.iter().map(|target| (target, &calls)).collect();
    let mut bars = Vec::new();
    for &in_flight in context.plan.in_flight {
        let results = take_turns(context, in_flight, &turns);
        let gateway = &results[0];
        let cpu = |runs: &Runs| values(runs, |run| run.cpu);
        let references = [("floor", Some(1.3)), ("Envoy", Some(0.6))];
        for (runs, (name, goal)) in results[1..].iter().zip(references) {
            let key = name.to_lowercase();
            section.row(
                (
                    format!("status_{in_flight}_cpu_{key}"),
                    format!("CPU of a call, {in_flight} in flight"),
                ),
                Unit::CpuMicros,
                &cpu(gateway),
                Some((name, &cpu(runs))),
                goal.map(Goal::Ratio),
            );
        }
        let p99 = |runs: &Runs| values(runs, |run| run.p99);
        section.row(
            (format!("status_{in_flight}_p99"), format!("p99, {in_flight} in flight")),
            Unit::Millis,
            &p99(gateway),
            Some(("floor", &p99(&results[1]))),
            Some(Goal::Ratio(1.3)),
        );
        let median = |runs: &Runs| crate::report::Spread::of(&cpu(runs)).median;
        bars.push((format!("{in_flight} in flight"), results.iter().map(median).collect()));
    }
    let names = &["gateway", "floor", "Envoy"][..targets.len()];
    let title = "CPU of a status call that asks ThingSpace, µs";
    crate::write_plot("status", crate::plot::bars(title, names, &bars));
    context.report.sections.push(section);
    from_memory(context, &gateway, &floor).await;
}

/// Measures calls that need no query, because the request is finished.
async fn from_memory(context: &mut Context, gateway: &Gateway, floor: &Floor) {
    const IN_FLIGHT: usize = 64;
    let mut section = Section::new(
        "Status calls from memory",
        "A status call of a finished request. The reference is a tonic handler that makes the same \
         message.",
    );
    let mut client = gateway.process.client().await;
    let calls = place(&mut client, [0], FINISHED).await;
    ask(&mut client, &calls).await;
    let targets = [gateway.target(), floor.target()];
    let turns: Vec<_> = targets.iter().map(|target| (target, &calls)).collect();
    let results = take_turns(context, IN_FLIGHT, &turns);
    let [gateway, floor] = [&results[0], &results[1]];
    section.row(
        ("memory_cpu", format!("CPU of a call, {IN_FLIGHT} in flight")),
        Unit::CpuMicros,
        &values(gateway, |run| run.cpu),
        Some(("tonic", &values(floor, |run| run.cpu))),
        Some(Goal::Ratio(1.3)),
    );
    context.report.sections.push(section);
}
