//! Measures what telemetry costs: the processor time of the gateway for a status call that is
//! answered from memory, without a collector, with one, with one that does not answer, and with one
//! that gets a trace of every call.
//!
//! The gateways and the client are processes of their own. The collector, which takes everything
//! and keeps nothing, runs in this process. The gateways take turns, so that a busy machine
//! disturbs all of them, and a gateway is compared with the first one in the same round.
//!
//! `cargo bench --profile quick --bench telemetry`

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench panics if it fails, and prints its results"
)]

mod collector;

use std::net::SocketAddr;

use test_support::{
    bench::{Helper, Usage, arguments, runtime},
    harness::{Client, Process, Upstream, connect, device, get_status, place, status_call},
};
use thingspace_gateway::{
    config::TraceSampler,
    identity::RequestId,
    simulator::{DeviceResult, Mode, Options},
};
use tokio::net::TcpListener;

/// Rounds, of which the median counts.
const ROUNDS: usize = 41;

/// Status calls of a round.
const CALLS: u32 = 6_400;

/// Calls in flight, spread over the connections.
const IN_FLIGHT: u32 = 64;
const CONNECTIONS: u32 = 4;

fn main() {
    let arguments = arguments();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    runtime().block_on(async {
        match *arguments {
            ["client", address, request] => load(address.parse().unwrap(), request).await,
            _ => measure().await,
        }
    });
}

/// A gateway, and the processor time of a call in each round.
struct Measured {
    name: &'static str,
    process: Process,
    id: RequestId,
    /// In microseconds.
    rounds: Vec<f64>,
    /// Kept until the end.
    _upstream: Upstream,
}

async fn measure() {
    let collector = format!("http://{}", collector::start().await);
    // Accepts connections, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    let mut gateways = vec![
        gateway("no collector", "", TraceSampler::Orders).await,
        gateway("a collector", &collector, TraceSampler::Orders).await,
        gateway("a collector that does not answer", &silent, TraceSampler::Orders).await,
        gateway("a collector, every call traced", &collector, TraceSampler::AlwaysOn).await,
    ];
    for round in 0..=ROUNDS {
        for gateway in &mut gateways {
            let pid = gateway.process.pid();
            let before = Usage::of(pid).processor;
            let address = gateway.process.address.to_string();
            let mut client = Helper::start(&["client", &address, gateway.id.as_str()]);
            assert_eq!(client.line(), "done");
            let used = Usage::of(pid).processor.saturating_sub(before);
            // The first round warms up.
            if round > 0 {
                gateway.rounds.push(used.as_secs_f64() * 1e6 / f64::from(CALLS));
            }
        }
    }
    println!("{CALLS} status calls a round, {IN_FLIGHT} in flight; median of {ROUNDS} rounds\n");
    println!("| gateway | processor time of a call | ratio |\n|---|---|---|");
    let first = &gateways[0].rounds;
    for gateway in &gateways {
        let ratios: Vec<_> = gateway.rounds.iter().zip(first).map(|(one, of)| one / of).collect();
        let (time, ratio) = (median(&gateway.rounds), median(&ratios));
        println!("| {} | {time:.1} µs | {ratio:.3} |", gateway.name);
    }
}

fn median(rounds: &[f64]) -> f64 {
    let mut sorted = rounds.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Starts a gateway that knows a finished request.
async fn gateway(name: &'static str, collector: &str, sampler: TraceSampler) -> Measured {
    let upstream = Upstream::start(Options { mode: Mode::Manual, ..Options::default() }).await;
    let mut config = upstream.quiet();
    config.limits.caller_calls_per_second = 1_000_000;
    collector.clone_into(&mut config.telemetry.otlp_endpoint);
    config.telemetry.trace_sampler = sampler;
    let process = Process::serve(&config, upstream.dir.path());
    let mut client = process.client().await;
    let id = place(&mut client, "key", 0..1).await.unwrap();
    upstream.sim.finish(&id, &device(0).eid, DeviceResult::Success);
    get_status(&mut client, status_call(&id)).await.unwrap();
    Measured { name, process, id, rounds: Vec::new(), _upstream: upstream }
}

/// Makes the calls, and prints `done`.
async fn load(address: SocketAddr, request: &str) {
    let id = RequestId::parse(request).unwrap();
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(connect(address).await);
    }
    let calls = (0..IN_FLIGHT).map(|n| {
        let client = clients[usize::try_from(n % CONNECTIONS).unwrap()].clone();
        tokio::spawn(ask(client, id.clone(), CALLS / IN_FLIGHT))
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    println!("done");
}

async fn ask(mut client: Client, id: RequestId, calls: u32) {
    for _ in 0..calls {
        get_status(&mut client, status_call(&id)).await.unwrap();
    }
}
