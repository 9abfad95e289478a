//! Abuse beside a caller that behaves well. None of its calls fails, and the gateway's memory,
//! connections and log stay bounded while the attack goes on and fall back after it.

mod certificates;
mod connections;
mod floods;
mod headers;
mod streams;
mod tokens;

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use thingspace_gateway::{
    config::{AllowConfig, Config},
    identity::RequestId,
    proto::esim::{RequestState, WatchRequestRequest, watch_request_response::Event},
    simulator::{DeviceResult, Handle},
};
use tokio::{task::JoinHandle, time::Instant};
use tonic::{Request, transport::Endpoint};

use crate::harness::*;

const MIB: u64 = 1 << 20;

/// The most memory that an attack may cost, and what may be left of it a while later.
const MOST_MEMORY: u64 = 200 * MIB;
const MEMORY_AT_REST: u64 = 64 * MIB;

/// The most descriptors that may be left of an attack. The neighbour and the calls to ThingSpace
/// have some.
const DESCRIPTORS_AT_REST: usize = 30;

/// The most lines of log about an attack, and those about each round of the neighbour: the order is
/// accepted, it is recorded, and the request is finished.
const MOST_LINES: usize = 200;
const LINES_OF_ROUND: usize = 3;

/// How long an attack goes on that has no end of its own.
const ATTACK: Duration = Duration::from_secs(5);

/// The longest time that a call of the neighbour may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The rounds of the neighbour before, during and after an attack.
const ROUNDS: usize = 3;

/// The tokens of two callers who may do everything.
const NEIGHBOUR: &str = "the token of the neighbour";
const ATTACKER: &str = "the token of the attacker";

/// A gateway with a caller that behaves well.
struct Scene {
    upstream: Upstream,
    gateway: Process,
    neighbour: Neighbour,
    idle: Usage,
    /// The lines of log that the attack must cause.
    lines_of_attack: usize,
}

/// What a process uses: memory in bytes, and descriptors.
#[derive(Debug, Clone, Copy)]
struct Usage {
    memory: u64,
    descriptors: usize,
}

impl Scene {
    async fn start() -> Self {
        Self::start_with(|_| (), |command| command, lazily).await
    }

    /// Starts with changes of the configuration and of the command, and with connections of the
    /// neighbour that are made in this way.
    async fn start_with(
        configure: impl FnOnce(&mut Config),
        command: impl FnOnce(Command) -> Command,
        connect: impl Fn(SocketAddr) -> Client + Send + 'static,
    ) -> Self {
        let upstream = Upstream::manual().await;
        let mut config = upstream.config();
        config.auth.tokens_file = upstream.dir.path().join("tokens");
        let tokens = token("neighbour", NEIGHBOUR) + &token("attacker", ATTACKER);
        fs::write(&config.auth.tokens_file, tokens).unwrap();
        let all = vec!["*".to_owned()];
        config.auth.allow = vec![AllowConfig {
            callers: vec!["token:*".to_owned()],
            methods: all.clone(),
            accounts: all,
        }];
        configure(&mut config);
        let mut command = command(serve_command(&config, upstream.dir.path()));
        command.env("RUST_LOG", &config.telemetry.log_filter);
        let gateway = Process::spawn(&mut command);
        let address = gateway.address;
        let neighbour = Neighbour::start(move || connect(address), upstream.sim.clone());
        neighbour.goes_on().await;
        let idle = usage(&gateway);
        // The peak of memory begins here.
        fs::write(format!("/proc/{}/clear_refs", gateway.pid()), "5").unwrap();
        Self { upstream, gateway, neighbour, idle, lines_of_attack: 0 }
    }

    fn address(&self) -> SocketAddr {
        self.gateway.address
    }

    /// A request that was placed elsewhere.
    fn request(&self) -> RequestId {
        self.upstream.sim.add_request(self.upstream.accounts[0].clone(), [])
    }

    /// Checks what the attack was allowed to do, and that it has left nothing behind.
    async fn end(self, attack: &str) {
        self.neighbour.goes_on().await;
        let peak = status_line(&self.gateway, "VmHWM");
        let grown = peak.saturating_sub(self.idle.memory);
        eprintln!("{attack}: {} MiB at rest, {} MiB more", self.idle.memory / MIB, grown / MIB);
        assert!(grown <= MOST_MEMORY, "{attack}: RSS +{} MiB", grown / MIB);
        assert!(peak <= memory_limit(), "{attack}: above the limit of the chart");
        eventually("memory and connections fall back", async || {
            let now = usage(&self.gateway);
            now.memory <= self.idle.memory + MEMORY_AT_REST
                && now.descriptors <= self.idle.descriptors + DESCRIPTORS_AT_REST
        })
        .await;
        let rounds = self.neighbour.stop().await;
        self.gateway.terminate();
        let (status, log) = self.gateway.wait().await;
        assert!(status.success(), "{attack}: {status}");
        let lines = log.len() - rounds * LINES_OF_ROUND - self.lines_of_attack;
        assert!(
            lines <= MOST_LINES,
            "{attack}: {lines} lines, such as {:#?}",
            &log[log.len() / 2..][..20]
        );
        drop(self.upstream);
    }
}

/// A client that connects with its first call.
fn lazily(address: SocketAddr) -> Client {
    Client::new(Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy())
}

/// A line of a file of tokens.
fn token(name: &str, token: &str) -> String {
    let mut line = format!("{name} ");
    for byte in digest(&SHA256, token.as_bytes()).as_ref() {
        write!(line, "{byte:02x}").unwrap();
    }
    line + "\n"
}

fn usage(process: &Process) -> Usage {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", process.pid())).unwrap().count();
    Usage { memory: status_line(process, "VmRSS"), descriptors }
}

/// A line of `/proc/PID/status`, in bytes.
fn status_line(process: &Process, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim_start_matches(':').trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
}

/// The limit of memory in the chart, in bytes.
fn memory_limit() -> u64 {
    let values = concat!(env!("CARGO_MANIFEST_DIR"), "/helm/thingspace-gateway/values.yaml");
    let values = fs::read_to_string(values).unwrap();
    let (_, resources) = values.split_once("\nresources:").unwrap();
    let (_, limits) = resources.split_once("limits:").unwrap();
    let (_, memory) = limits.split_once("memory: ").unwrap();
    let (mebibytes, _) = memory.split_once("Mi\n").unwrap();
    mebibytes.parse::<u64>().unwrap() << 20
}

/// A caller that orders, asks and watches, again and again, half of the time on a new connection.
struct Neighbour {
    rounds: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    calling: JoinHandle<Duration>,
}

impl Neighbour {
    fn start(connect: impl Fn() -> Client + Send + 'static, sim: Handle) -> Self {
        let (rounds, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let calling = tokio::spawn({
            let (rounds, stop) = (Arc::clone(&rounds), Arc::clone(&stop));
            async move {
                let (mut client, mut longest) = (connect(), Duration::ZERO);
                while !stop.load(Ordering::Relaxed) {
                    let n = rounds.load(Ordering::Relaxed);
                    let began = Instant::now();
                    if n % 2 == 1 {
                        client = connect();
                    }
                    one_round(&mut client, &sim, n).await;
                    longest = longest.max(began.elapsed());
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
                longest
            }
        });
        Self { rounds, stop, calling }
    }

    /// Waits until it has completed some more rounds.
    async fn goes_on(&self) {
        let begin = self.rounds.load(Ordering::Relaxed);
        eventually("the neighbour goes on", async || {
            assert!(!self.calling.is_finished(), "a call of the neighbour failed");
            self.rounds.load(Ordering::Relaxed) >= begin + ROUNDS
        })
        .await;
    }

    /// Ends it, and returns the number of its rounds. Fails if any of its calls has failed.
    async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let longest = within("the last round", self.calling).await.unwrap();
        let rounds = self.rounds.load(Ordering::Relaxed);
        eprintln!("{rounds} rounds of the neighbour, the longest in {longest:?}");
        rounds
    }
}

/// A request with the token of a caller, and with a deadline.
fn with<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request.set_timeout(PATIENCE);
    request
}

/// An order, a status call and a watch to its end. Every answer is as without an attack.
async fn one_round(client: &mut Client, sim: &Handle, n: usize) {
    let ordered = client.download_profile(with(order(&format!("n-{n}"), [n]), NEIGHBOUR)).await;
    let id = RequestId::parse(&ordered.unwrap().into_inner().request_id).unwrap();
    let asked = client.get_request_status(with(status_call(&id), NEIGHBOUR)).await.unwrap();
    assert_eq!(asked.into_inner().status.unwrap().devices.len(), 1);
    let watch = WatchRequestRequest {
        account_name: ACCOUNT.to_owned(),
        request_id: id.to_string(),
        resume_token: String::new(),
    };
    let mut watching = client.watch_request(with(watch, NEIGHBOUR)).await.unwrap().into_inner();
    let first = watching.message().await.unwrap().unwrap();
    assert!(matches!(first.event, Some(Event::Snapshot(_))), "{first:?}");
    sim.finish(&id, &device(n).eid, DeviceResult::Success);
    let mut last = None;
    while let Some(message) = watching.message().await.unwrap() {
        last = message.event;
    }
    let Some(Event::Change(change)) = last else { panic!("no change: {last:?}") };
    assert_eq!(change.state(), RequestState::Succeeded);
}
