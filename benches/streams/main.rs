//! Measures open watches: memory and processor time of idle ones, and how long one change takes
//! to reach all of them. Does the same with a bare tonic server that broadcasts.
//!
//! The gateway, the tonic server and the client are processes of their own. The simulator runs in
//! this process.
//!
//! `cargo bench --profile quick --bench streams [-- WATCHES]`

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench panics if it fails, and prints its results"
)]

mod client;
mod tonic_server;

use std::{fs, net::SocketAddr, time::Duration};

use test_support::{
    bench::{Helper, Usage, arguments, runtime},
    harness::{Process, Upstream, device, get_status, place, status_call},
};
use thingspace_gateway::{
    identity::RequestId,
    simulator::{DeviceResult, Mode, Options},
};

/// Without an argument.
const WATCHES: usize = 100_000;

/// The changes that are sent to all watches, one after the other.
const CHANGES: usize = 5;

/// Devices of the watched request. One more than the changes, so that the request stays open.
const DEVICES: usize = CHANGES + 1;

/// The time until memory that is no longer needed is returned to the system.
const SETTLE: Duration = Duration::from_secs(20);

/// How long the processor time of idle watches is measured. Three heartbeats.
const IDLE: Duration = Duration::from_secs(75);

fn main() {
    let arguments = arguments();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    runtime().block_on(async {
        match *arguments {
            ["client", address, request, watches] => {
                client::run(address.parse().unwrap(), request, watches.parse().unwrap()).await;
            }
            ["tonic"] => tonic_server::run().await,
            [watches] => measure_both(watches.parse().unwrap()).await,
            _ => measure_both(WATCHES).await,
        }
    });
}

async fn measure_both(watches: usize) {
    println!("{}\n", machine(watches));
    println!(
        "| server | memory of a watch | after the changes | change to all watches, median | \
         processor, idle |"
    );
    println!("|---|---|---|---|---|");
    let gateway = gateway(watches).await;
    gateway.print("gateway", None);
    tonic(watches).await.print("bare tonic", Some(&gateway));
}

fn machine(watches: usize) -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("processor", |(_, model)| model);
    let count = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!(
        "{count} × {model}, shared by client and server; {watches} watches of one request over {} \
         connections. `cargo bench --profile quick --bench streams`",
        client::connections(watches)
    )
}

/// The results of one server.
struct Measured {
    /// Bytes of one idle watch, before the first change and after the last one.
    bytes: [f64; 2],
    /// From the first watch that has a change to the last one, for each change.
    fan_outs: Vec<Duration>,
    /// Of one processor.
    idle: f64,
}

impl Measured {
    fn median(&self) -> Duration {
        let mut sorted = self.fan_outs.clone();
        sorted.sort_unstable();
        sorted[sorted.len() / 2]
    }

    fn print(&self, server: &str, first: Option<&Self>) {
        let ratio = first.map_or_else(String::new, |first| {
            let ratio = first.median().as_secs_f64() / self.median().as_secs_f64();
            format!(" (the gateway takes {ratio:.2} times as long)")
        });
        println!(
            "| {server} | {:.2} kB | {:.2} kB | {} ms{ratio} | {:.1} % |",
            self.bytes[0] / 1e3,
            self.bytes[1] / 1e3,
            self.median().as_millis(),
            self.idle * 100.0
        );
    }
}

async fn gateway(watches: usize) -> Measured {
    let upstream = Upstream::start(Options { mode: Mode::Manual, ..Options::default() }).await;
    let mut config = upstream.quiet();
    config.limits.caller_watches = watches.max(config.limits.caller_watches);
    config.limits.caller_calls_per_second = 100_000;
    let process = Process::serve(&config, upstream.dir.path());
    let mut client = process.client().await;
    let id = place(&mut client, "key", 0..DEVICES).await.unwrap();
    let change = async |n: usize| {
        upstream.sim.finish(&id, &device(n).eid, DeviceResult::Success);
        get_status(&mut client, status_call(&id)).await.unwrap();
    };
    measure(process.address, process.pid(), &id, watches, change).await
}

async fn tonic(watches: usize) -> Measured {
    let mut server = Helper::start(&["tonic"]);
    let address = server.line().parse().unwrap();
    let pid = server.pid();
    let id = RequestId::parse("request").unwrap();
    measure(address, pid, &id, watches, async |_| server.write("change")).await
}

/// Opens the watches, and measures the server.
async fn measure(
    address: SocketAddr,
    pid: u32,
    id: &RequestId,
    watches: usize,
    mut change: impl AsyncFnMut(usize),
) -> Measured {
    let before = Usage::of(pid);
    let arguments = ["client", &address.to_string(), id.as_str(), &watches.to_string()];
    let mut client = Helper::start(&arguments);
    assert_eq!(client.line(), "open");
    tokio::time::sleep(SETTLE).await;
    let open = Usage::of(pid);
    tokio::time::sleep(IDLE).await;
    let idle = Usage::of(pid).processor.saturating_sub(open.processor);
    let mut fan_outs = Vec::new();
    for n in 0..CHANGES {
        change(n).await;
        fan_outs.push(Duration::from_micros(client.line().parse().unwrap()));
    }
    let count = f64::from(u32::try_from(watches).unwrap());
    Measured {
        bytes: [open, Usage::of(pid)].map(|usage| (usage.memory - before.memory) / count),
        fan_outs,
        idle: idle.as_secs_f64() / IDLE.as_secs_f64(),
    }
}
