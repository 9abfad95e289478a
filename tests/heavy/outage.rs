//! ThingSpace is down for a while, in several ways: watches continue, calls are answered at once,
//! the number of calls to ThingSpace has a bound, and one successful probe ends the outage.
//!
//! It lasts a minute; `OUTAGE_SECONDS` sets another time (`make soak`: ten minutes).

mod line;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use thingspace_gateway::{
    config::Config,
    identity::RequestId,
    proto::esim::{GetRequestStatusRequest, RequestState, watch_request_response::Event},
    simulator::DeviceResult,
};
use tokio::task::JoinSet;
use tonic::{Request, Status};

use crate::{assert_nothing_ordered_twice, harness::*};
use line::{Line, State, most_attempts};

const REQUESTS: usize = 50;
const WATCHERS: usize = 500;
/// Fifty calls a second, of which one in ten is an order.
const PACE: Duration = Duration::from_millis(20);
const CALLER_WAITS: Duration = Duration::from_secs(10);

const MAX_CONNECTIONS: usize = 16;
const BREAKER_MAX: Duration = Duration::from_millis(500);
const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// The most KiB by which memory may grow during the outage.
const GROWTH: u64 = 32 << 10;

fn config(upstream: &Upstream, line: &Line) -> Config {
    let mut config = upstream.config();
    config.thingspace.base_url = format!("http://{}/api", line.address());
    config.thingspace.max_connections = MAX_CONNECTIONS;
    config.thingspace.breaker_first = Duration::from_millis(50);
    config.thingspace.breaker_max = BREAKER_MAX;
    config.thingspace.call_timeout = CALL_TIMEOUT;
    config.thingspace.connect_timeout = CALL_TIMEOUT;
    config.polling.max_watched = Duration::from_secs(1);
    config.polling.max = Duration::from_secs(1);
    config.grpc.heartbeat = Duration::from_secs(1);
    config
}

/// The answers to callers, and the orders that they have to repeat.
#[derive(Default)]
struct Told {
    kinds: BTreeMap<String, u64>,
    to_repeat: HashMap<String, usize>,
}

/// Callers that call without a pause.
struct Callers {
    told: Arc<Mutex<Told>>,
    _calling: JoinSet<()>,
}

impl Callers {
    fn begin(client: &Client, ids: &[RequestId]) -> Self {
        let told = Arc::new(Mutex::new(Told::default()));
        let (client, ids, tell) = (client.clone(), ids.to_vec(), Arc::clone(&told));
        let mut calling = JoinSet::new();
        calling.spawn(async move {
            let mut pace = tokio::time::interval(PACE);
            let mut calls = JoinSet::new();
            for n in 0.. {
                pace.tick().await;
                while calls.try_join_next().is_some() {}
                let (client, told) = (client.clone(), Arc::clone(&tell));
                let status_call = status_call(&ids[n % ids.len()]);
                calls.spawn(async move {
                    let (key, device) = (format!("order {n}"), REQUESTS + n);
                    let answer = if n % 10 == 0 {
                        order_soon(client, &key, device).await
                    } else {
                        get_status_soon(client, status_call).await
                    };
                    let mut told = told.lock().unwrap();
                    let kind = answer.as_ref().map_or_else(reason, |()| "OK".to_owned());
                    if n % 10 == 0 && kind == "UPSTREAM_UNAVAILABLE" {
                        told.to_repeat.insert(key, device);
                    }
                    *told.kinds.entry(kind).or_default() += 1;
                });
            }
        });
        Self { told, _calling: calling }
    }

    /// Returns the answers since the last call of this function.
    fn told(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut self.told.lock().unwrap().kinds)
    }
}

async fn get_status_soon(
    mut client: Client,
    status_call: GetRequestStatusRequest,
) -> Result<(), Status> {
    let mut request = Request::new(status_call);
    request.set_timeout(CALLER_WAITS);
    client.get_request_status(request).await.map(drop)
}

async fn order_soon(mut client: Client, key: &str, device: usize) -> Result<(), Status> {
    let mut request = Request::new(order(key, [device]));
    request.set_timeout(CALLER_WAITS);
    client.download_profile(request).await.map(drop)
}

/// Starts watchers that read until their requests are final.
async fn watch_all(process: &Process, ids: &[RequestId]) -> JoinSet<()> {
    let mut watchers = JoinSet::new();
    let client = process.client().await;
    for n in 0..WATCHERS {
        let mut watching = watch(&mut client.clone(), &ids[n % ids.len()], "").await.unwrap();
        assert!(matches!(watching.event().await.0, Event::Snapshot(_)));
        watchers.spawn(async move {
            let mut last = None;
            while let Some(message) = watching.next().await.unwrap() {
                last = match message.event.unwrap() {
                    Event::Change(change) => Some(change.state()),
                    Event::Heartbeat(beat) => Some(beat.state()),
                    Event::Snapshot(_) => panic!("a watch does not start over"),
                };
            }
            assert_eq!(last, Some(RequestState::Succeeded));
        });
    }
    watchers
}

/// Resident memory, in KiB.
fn memory(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Connections of a process to this port, but for those that are closed already.
fn connections(process: &Process, line: &Line) -> usize {
    /// In `/proc/net/tcp`.
    const TIME_WAIT: &str = "06";
    let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", process.pid())).unwrap();
    let port = format!(":{:04X}", line.address().port());
    let open = |row: &&str| {
        let fields: Vec<_> = row.split_whitespace().collect();
        fields[2].ends_with(&port) && fields[3] != TIME_WAIT
    };
    table.lines().skip(1).filter(open).count()
}

/// Spends a third of the time in each state, and checks the connections meanwhile.
async fn last_through(process: &Process, line: &mut Line, state: State, time: Duration) -> u64 {
    // The idle connections, for orders and for other calls, and those that are being closed.
    let most = MAX_CONNECTIONS + 2 * MAX_CONNECTIONS.div_ceil(4) + 4;
    line.switch(state).await;
    let began = Instant::now();
    let mut look = tokio::time::interval(Duration::from_millis(250));
    while began.elapsed() < time {
        look.tick().await;
        let now = connections(process, line);
        assert!(now <= most, "{now} connections while {state:?}");
    }
    line.taken()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_breaks_no_watch_and_costs_a_bounded_number_of_attempts() {
    let seconds = std::env::var("OUTAGE_SECONDS").map_or(60, |text| text.parse().unwrap());
    let part = Duration::from_secs(seconds) / 3;
    let upstream = Upstream::manual().await;
    let mut line = Line::to(upstream.address()).await;
    let process = Process::serve(&config(&upstream, &line), upstream.dir.path());
    let client = process.client().await;
    let mut ids = Vec::new();
    for n in 0..REQUESTS {
        ids.push(place(&mut client.clone(), &format!("open {n}"), [n]).await.unwrap());
    }
    let mut watchers = watch_all(&process, &ids).await;
    let callers = Callers::begin(&client, &ids);
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls() > 500).await;
    assert!(callers.told().keys().eq(["OK"]));

    last_through(&process, &mut line, State::Refusing, part).await;
    let before = memory(&process);
    let hung = last_through(&process, &mut line, State::Hanging, part).await;
    let cut = last_through(&process, &mut line, State::Resetting, part).await;
    let after = memory(&process);
    // The breaker is open since the first second, so only probes are sent, after half of the
    // longest pause at the earliest.
    let (most_hung, most_cut) =
        (most_attempts(part, BREAKER_MAX / 2 + CALL_TIMEOUT), most_attempts(part, BREAKER_MAX / 2));
    assert!((2..=most_hung).contains(&hung), "{hung} attempts, at most {most_hung}");
    assert!((2..=most_cut).contains(&cut), "{cut} attempts, at most {most_cut}");
    assert!(after <= before + GROWTH, "{before} KiB, then {after} KiB");
    // Orders in flight at the cut may be unknown. Every call was answered.
    let mut told = callers.told();
    let unavailable = told.remove("UPSTREAM_UNAVAILABLE").unwrap_or_default();
    let unknown = told.remove("ORDER_OUTCOME_UNKNOWN").unwrap_or_default();
    told.remove("OK");
    assert!(
        told.is_empty() && unknown <= MAX_CONNECTIONS as u64 / 2,
        "{told:?}, {unknown} unknown"
    );
    assert!(unavailable > 1_000 * seconds / 60, "{unavailable}");
    assert_eq!(watchers.try_join_next().map(|ended| ended.is_ok()), None, "a watch has ended");

    line.switch(State::Connected).await;
    eventually("calls are answered again", || {
        let (client, status_call) = (client.clone(), status_call(&ids[0]));
        async move { get_status_soon(client, status_call).await.is_ok() }
    })
    .await;
    // All calls succeed from here on. Earlier errors are returned for up to a second.
    tokio::time::sleep(Duration::from_secs(1)).await;
    callers.told();
    let all = upstream.sim.ledger().polls();
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls() > all + 200).await;
    assert!(callers.told().keys().eq(["OK"]));
    let to_repeat = std::mem::take(&mut callers.told.lock().unwrap().to_repeat);
    assert!(!to_repeat.is_empty());
    let again = to_repeat.iter().map(|(key, device)| order_soon(client.clone(), key, *device));
    for placed in within("the orders that never left", join_all(again)).await {
        placed.unwrap();
    }
    for id in &ids {
        upstream.sim.finish_all(id, DeviceResult::Success);
    }
    while let Some(ended) = within("all watches end", watchers.join_next()).await {
        ended.unwrap();
    }
    drop(callers);
    process.terminate();
    let (status, log) = process.wait().await;
    assert!(status.success());
    let said = |what: &str| log.iter().filter(|line| line.contains(what)).count();
    assert_eq!(
        (said("calls to it fail at once"), said("a host of ThingSpace answers again")),
        (1, 1)
    );
    let ledger = upstream.sim.ledger();
    assert_nothing_ordered_twice(&ledger);
    assert_eq!((ledger.logins(), ledger.token_requests(), ledger.rejected_in_a_row), (1, 1, 0));
}
