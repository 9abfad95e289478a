//! Measures the gateway against references in the same run, and writes a report with ratios.
//!
//! Each server is the real binary, or a reference, in a process of its own on a processor of its
//! own. The load generators and ThingSpace's stand-in share the other processor. Servers take turns
//! in each run. Processor time and memory are those of the operating system.
//!
//! `cargo bench --profile quick --bench suite -- full|quick|smoke|check [BENCH]...`

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench panics if it fails, and prints its results"
)]

mod callbacks;
mod envoy;
mod floor;
mod gateway;
mod history;
mod load;
mod machine;
mod orders;
mod plan;
mod plot;
mod replicas;
mod report;
mod start;
mod status;
mod tokens;
mod upstream;
mod watch_client;
mod watches;

use std::{fs, path::Path, process::ExitCode};

use test_support::bench::{arguments, runtime, use_load_core};
use tokio::runtime::Builder;

use plan::Plan;
use report::Report;

/// The committed report, with which CI compares.
const COMMITTED: &str = "docs/benchmarks/report.json";

/// What is measured, and the results so far.
struct Context {
    plan: &'static Plan,
    report: Report,
}

/// Writes a plot beside the report.
fn write_plot(name: &str, svg: String) {
    fs::write(gateway::output().join(name).with_extension("svg"), svg).unwrap();
}

fn main() -> ExitCode {
    let arguments = arguments();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match *arguments {
        ["compare", one, two] => {
            Report::read(Path::new(one)).print_differences(&Report::read(Path::new(two)));
        }
        ["full", ref benches @ ..] => return run(&plan::FULL, benches),
        ["smoke", ref benches @ ..] => return run(&plan::SMOKE, benches),
        ["quick", ref benches @ ..] => return run(&plan::QUICK, benches),
        [] => return run(&plan::QUICK, &[]),
        _ => play(&arguments),
    }
    ExitCode::SUCCESS
}

/// Plays the role of another process of the bench.
fn play(arguments: &[&str]) {
    // A task that panics ends its process, and so the bench.
    std::panic::set_hook(Box::new(|info| {
        eprintln!("{info}");
        std::process::exit(101);
    }));
    let role = Builder::new_current_thread().enable_all().build().unwrap();
    match *arguments {
        // The floor has a worker for each processor, as servers usually have.
        ["floor", upstream, ref journal @ ..] => {
            let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(floor::run(upstream, journal.first().copied()));
        }
        ["append", store] => {
            let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(callbacks::append(Path::new(store)));
        }
        ["upstream", delay] => role.block_on(upstream::run(delay.parse().unwrap())),
        ["load"] => role.block_on(load::run()),
        ["callbacks"] => role.block_on(callbacks::send()),
        ["read", store] => role.block_on(start::run_reader(Path::new(store))),
        ["watch", address, request, watches] => {
            let (address, watches) = (address.parse().unwrap(), watches.parse().unwrap());
            role.block_on(watch_client::run(address, request, watches));
        }
        _ => panic!("see the first lines of benches/suite/main.rs"),
    }
}

/// Measures, and writes the report. A smoke fails if a ratio is much worse than the committed one.
fn run(plan: &'static Plan, benches: &[&str]) -> ExitCode {
    let report = Report { machine: machine::describe(plan), sections: Vec::new() };
    use_load_core();
    let mut context = Context { plan, report };
    fs::create_dir_all(gateway::output()).unwrap();
    let is_wanted = |name| benches.is_empty() || benches.contains(&name);
    runtime().block_on(async {
        if is_wanted("status") {
            status::measure(&mut context).await;
        }
        if is_wanted("orders") {
            orders::measure(&mut context).await;
        }
        if is_wanted("watches") {
            watches::measure(&mut context).await;
        }
        if is_wanted("callbacks") {
            callbacks::measure(&mut context).await;
        }
        if is_wanted("tokens") {
            tokens::measure(&mut context).await;
        }
        if is_wanted("start") {
            start::measure(&mut context).await;
        }
        if plan.nats && is_wanted("replicas") {
            replicas::measure(&mut context).await;
        }
    });
    let Context { report, .. } = &context;
    write_plot("ratios", plot::ratios(report));
    let folder = gateway::output();
    fs::write(folder.join("report.md"), report.markdown()).unwrap();
    fs::write(folder.join("report.json"), serde_json::to_string_pretty(report).unwrap()).unwrap();
    println!("\n{}", folder.join("report.md").display());
    if plan.name != "smoke" {
        return ExitCode::SUCCESS;
    }
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join(COMMITTED);
    let regressions = report.regressions(&Report::read(&committed));
    for regression in &regressions {
        println!("worse than {COMMITTED}: {regression}");
    }
    if regressions.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
