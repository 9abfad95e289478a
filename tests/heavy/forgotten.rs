//! Store losses under a load of orders: streams are purged, deleted and put back to an older copy
//! while three replicas run, and the file of an embedded store is removed. Nothing is ordered
//! twice, no replica is ready before an operator accepts what is lost, all sources say what to do,
//! and replicas agree about each revision.

use std::{
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream;
use thingspace_gateway::{
    config::Config,
    identity::RequestId,
    proto::esim::{DeviceState, RequestState},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{assert_nothing_ordered_twice, harness::*, nats_server::NatsServer, placed};

/// Callers of each gateway.
const CALLERS: usize = 3;

/// Orders before something is lost.
const LOAD: usize = 60;

/// The pause between two attempts of a caller.
const PAUSE: Duration = Duration::from_millis(20);

/// The request id that a caller got. `None`: none, or the outcome is unknown.
type Told = (usize, Option<RequestId>);

/// Callers that place orders one after the other, and repeat calls that may be repeated.
struct Load {
    next: Arc<AtomicUsize>,
    stop: CancellationToken,
    callers: Vec<JoinHandle<Vec<Told>>>,
}

impl Load {
    fn begin(addresses: &[SocketAddr], next: &Arc<AtomicUsize>) -> Self {
        let stop = CancellationToken::new();
        let caller = |address: &SocketAddr| {
            tokio::spawn(keep_ordering(*address, Arc::clone(next), stop.clone()))
        };
        let callers = addresses.iter().flat_map(|address| [address; CALLERS]).map(caller).collect();
        Self { next: Arc::clone(next), stop, callers }
    }

    /// Waits until the callers have placed some orders.
    async fn goes_on(&self) {
        let begin = self.next.load(Ordering::Relaxed);
        eventually("the load goes on", async || self.next.load(Ordering::Relaxed) >= begin + LOAD)
            .await;
    }

    /// Stops the callers, which give up the orders that they could not place.
    async fn end(self) -> Vec<Told> {
        self.stop.cancel();
        let mut told = Vec::new();
        for caller in self.callers {
            told.extend(within("a caller ends", caller).await.unwrap());
        }
        told
    }
}

async fn keep_ordering(
    address: SocketAddr,
    next: Arc<AtomicUsize>,
    stop: CancellationToken,
) -> Vec<Told> {
    let mut client = connect(address).await;
    let mut told = Vec::new();
    while !stop.is_cancelled() {
        let n = next.fetch_add(1, Ordering::Relaxed);
        let mut id = None;
        while !stop.is_cancelled() {
            match place(&mut client, &key(n), [n]).await {
                Ok(placed) => {
                    id = Some(placed);
                    break;
                }
                Err(status) => {
                    let reason = reason(&status);
                    let repeat = ["STORE_UNAVAILABLE", "ORDER_IN_PROGRESS", "DEADLINE"];
                    if !repeat.contains(&reason.as_str()) {
                        assert_eq!(reason, "ORDER_OUTCOME_UNKNOWN", "order {n}: {status:?}");
                        break;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        told.push((n, id));
    }
    told
}

fn key(n: usize) -> String {
    format!("forgotten-{n}")
}

/// Waits until a gateway is not ready, says what is lost and what to do.
async fn says(admin: SocketAddr, what: &str) {
    eventually(what, async || {
        let answer =
            within("a probe", reqwest::get(format!("http://{admin}/readyz"))).await.unwrap();
        let (status, said) = (answer.status(), answer.text().await.unwrap());
        status == 503 && said.contains(what) && said.contains("store accept-loss")
    })
    .await;
}

/// Returns the output of an operator command that succeeds.
fn operate(file: &Path, arguments: &[&str]) -> String {
    let output = Command::new(binary()).args(arguments).arg("--config").arg(file).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Three replicas over one NATS.
struct Fleet {
    upstream: Upstream,
    nats: NatsServer,
    config: Config,
    gateways: [Gateway; 3],
    next: Arc<AtomicUsize>,
}

impl Fleet {
    async fn start() -> Self {
        let (upstream, nats) = (Upstream::manual().await, NatsServer::start().await);
        let config = upstream.replica(&upstream.quiet(), &nats.url(), 1, 0);
        let gateways = upstream.replicas(&upstream.quiet(), &nats.url()).await;
        Self { upstream, nats, config, gateways, next: Arc::default() }
    }

    async fn admin(&self) -> jetstream::Context {
        jetstream::new(async_nats::connect(self.nats.url()).await.unwrap())
    }

    fn load(&self) -> Load {
        Load::begin(&self.gateways.each_ref().map(|gateway| gateway.address), &self.next)
    }

    /// All sources say what was lost. An operator keeps callers out and accepts it. Returns what
    /// callers were told.
    async fn accept(&self, load: Load, what: &str) -> Vec<Told> {
        for gateway in &self.gateways {
            says(gateway.admin, what).await;
        }
        // Callers have repeated their calls all the time.
        let told = load.end().await;
        assert_nothing_ordered_twice(&self.upstream.sim.ledger());
        let file = write_config(&self.config, self.upstream.dir.path());
        let said = operate(&file, &["store", "accept-loss"]);
        assert!(said.starts_with("Accepted: ") && said.contains(what), "{said}");
        operate(&file, &["unblock", "test", "--force"]);
        for gateway in &self.gateways {
            eventually("it is ready", async || gateway.requests.is_ready()).await;
        }
        told
    }

    /// Checks that replicas show the same, and the right, state at each revision of these orders.
    async fn agree(&self, told: &[Told]) {
        let ordered = placed(&self.upstream.sim.ledger());
        for (n, id) in told.iter().filter_map(|(n, id)| Some((n, id.as_ref()?))) {
            assert_eq!(ordered.get(&device(*n).eid), Some(id), "order {n}");
        }
        for (n, id) in told.iter().rev().filter_map(|(n, id)| Some((n, id.as_ref()?))).take(10) {
            let mut known: Vec<(i64, RequestState, Vec<DeviceState>)> = Vec::new();
            for gateway in &self.gateways {
                let client = gateway.client().await;
                let asked = async || match get_status(&mut client.clone(), status_call(id)).await {
                    Err(status) if reason(&status) == "REQUEST_NOT_FOUND" => Ok(None),
                    told => told.map(Some),
                };
                let Some(status) = eventually_ok("a status", asked).await else { continue };
                assert_eq!(status.devices.len(), 1, "order {n}: {status:?}");
                let said = (status.revision, status.state(), states(&status));
                for other in known.iter().filter(|other| other.0 == said.0) {
                    assert_eq!(*other, said, "order {n}");
                }
                known.push(said);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_streams_under_load_order_nothing_twice() {
    const PUT_BACK: [&str; 2] = ["gw_events", "gw_keys"];
    let mut fleet = Fleet::start().await;
    let purge = async |fleet: &Fleet, stream: &str| {
        fleet.admin().await.get_stream(stream).await.unwrap().purge().await.unwrap();
    };

    let load = fleet.load();
    load.goes_on().await;
    purge(&fleet, "gw_keys").await;
    let told = fleet.accept(load, "stream gw_keys was purged").await;
    fleet.agree(&told).await;

    let load = fleet.load();
    load.goes_on().await;
    fleet.admin().await.delete_stream("gw_events").await.unwrap();
    let told = fleet.accept(load, "stream gw_events was deleted").await;
    fleet.agree(&told).await;
    // Keys were not lost with it.
    let mut client = fleet.gateways[1].client().await;
    for (n, id) in told.iter().rev().filter_map(|(n, id)| Some((n, id.as_ref()?))).take(10) {
        assert_eq!(place(&mut client, &key(*n), [*n]).await.unwrap(), *id);
    }

    let load = fleet.load();
    load.goes_on().await;
    let copies = tempfile::tempdir().unwrap();
    fleet.nats.back_up(&PUT_BACK, copies.path()).await;
    load.goes_on().await;
    // A loss of messages that no gateway has seen is not noticed.
    fleet.nats.events_reach(fleet.gateways.len()).await;
    fleet.nats.put_back(&PUT_BACK, copies.path()).await;
    let told = fleet.accept(load, "it was put back to an older copy").await;
    fleet.agree(&told).await;

    let load = fleet.load();
    load.goes_on().await;
    purge(&fleet, "gw_cells").await;
    let told = fleet.accept(load, "stream gw_cells ").await;
    fleet.agree(&told).await;

    let load = fleet.load();
    load.goes_on().await;
    fleet.agree(&load.end().await).await;
    let ledger = fleet.upstream.sim.ledger();
    assert_nothing_ordered_twice(&ledger);
    assert_eq!((ledger.logins_rejected, ledger.locked), (0, false));
    eprintln!("{} orders", ledger.orders.len());
    for gateway in fleet.gateways {
        gateway.stop().await;
    }
}

/// The file is removed under load. An operator's command or a drain writes it again; after `kill
/// -9` it is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_removed_under_load_orders_nothing_twice() {
    const REMOVED: &str = "was removed while the gateway was running";
    let (upstream, next) = (Upstream::manual().await, Arc::default());
    let mut config = upstream.quiet();
    // Calls that need the store fail.
    config.grpc.drain = Duration::from_secs(3);
    let (dir, store) = (upstream.dir.path(), &config.store.path);
    let file = write_config(&config, dir);
    let mut all: Vec<Told> = Vec::new();
    let remembers = async |process: &Process, all: &[Told]| {
        let mut client = process.client().await;
        for (n, id) in all.iter().filter_map(|(n, id)| Some((n, id.as_ref()?))) {
            assert_eq!(place(&mut client, &key(*n), [*n]).await.unwrap(), *id, "order {n}");
        }
    };

    let process = Process::serve(&config, dir);
    let load = Load::begin(&[process.address], &next);
    load.goes_on().await;
    std::fs::remove_file(store).unwrap();
    says(process.admin, REMOVED).await;
    let said = operate(&file, &["store", "accept-loss"]);
    assert!(said.contains("nothing is lost"), "{said}");
    // The callers were never stopped.
    load.goes_on().await;
    all.extend(load.end().await);
    remembers(&process, &all).await;

    let load = Load::begin(&[process.address], &next);
    load.goes_on().await;
    std::fs::remove_file(store).unwrap();
    says(process.admin, REMOVED).await;
    all.extend(load.end().await);
    process.terminate();
    // The result of an order that was being sent may not fit into the time of the drain, because
    // the store takes it only at its end. Then the gateway says so.
    let (status, lines) = process.wait().await;
    let is_cut = |line: &String| line.contains("orders were in progress");
    assert!(status.success() || lines.iter().any(is_cut), "{status}: {lines:#?}");
    let process = Process::serve(&config, dir);
    remembers(&process, &all).await;

    let load = Load::begin(&[process.address], &next);
    load.goes_on().await;
    std::fs::remove_file(store).unwrap();
    says(process.admin, REMOVED).await;
    all.extend(load.end().await);
    process.kill();
    for _ in 0..2 {
        let process = Process::launch(&config, dir);
        says(process.admin, "was missing at the start").await;
        let (n, _) = all.last().unwrap();
        let refused = place(&mut process.client().await, &key(*n), [*n]).await.unwrap_err();
        assert_eq!(reason(&refused), "STORE_UNAVAILABLE");
        process.kill();
    }
    let process = Process::launch(&config, dir);
    let said = operate(&file, &["store", "accept-loss"]);
    assert!(said.contains("was missing at the start"), "{said}");
    operate(&file, &["unblock", "test", "--force"]);
    let load = Load::begin(&[process.address], &next);
    load.goes_on().await;
    load.end().await;
    let ledger = upstream.sim.ledger();
    assert_nothing_ordered_twice(&ledger);
    assert_eq!((ledger.logins_rejected, ledger.locked), (0, false));
    eprintln!("{} orders", ledger.orders.len());
}
