//! ThingSpace is down for a while, in every way there is, and its trouble stays upstream: watches
//! go on, calls are answered at once, what is sent is bounded by a formula, and one probe ends it.
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

/// By how much it may grow while nothing gets better, in KiB.
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

/// What callers were told, and which orders they have to repeat.
#[derive(Default)]
struct Told {
    kinds: BTreeMap<String, u64>,
    to_repeat: HashMap<String, usize>,
}

/// Callers that never stop.
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
                let question = question(&ids[n % ids.len()]);
                calls.spawn(async move {
                    let (key, device) = (format!("order {n}"), REQUESTS + n);
                    let answer = if n % 10 == 0 {
                        order_soon(client, &key, device).await
                    } else {
                        ask_soon(client, question).await
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

    /// What was told since this was asked last.
    fn told(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut self.told.lock().unwrap().kinds)
    }
}

async fn ask_soon(mut client: Client, question: GetRequestStatusRequest) -> Result<(), Status> {
    let mut request = Request::new(question);
    request.set_timeout(CALLER_WAITS);
    client.get_request_status(request).await.map(drop)
}

async fn order_soon(mut client: Client, key: &str, device: usize) -> Result<(), Status> {
    let mut request = Request::new(order(key, [device]));
    request.set_timeout(CALLER_WAITS);
    client.download_profile(request).await.map(drop)
}

/// Each reads its watch to the end, which is the request's.
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

/// A third of the time in each state, looking at the connections all the while.
async fn last_through(process: &Process, line: &mut Line, state: State, time: Duration) -> u64 {
    // What is kept idle, for orders and for the rest, and what is being closed.
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
    // The breaker is open since the first second: all that is sent are probes, after half the
    // longest pause at the earliest.
    let (most_hung, most_cut) =
        (most_attempts(part, BREAKER_MAX / 2 + CALL_TIMEOUT), most_attempts(part, BREAKER_MAX / 2));
    assert!((2..=most_hung).contains(&hung), "{hung} attempts, at most {most_hung}");
    assert!((2..=most_cut).contains(&cut), "{cut} attempts, at most {most_cut}");
    assert!(after <= before + GROWTH, "{before} KiB, then {after} KiB");
    // Whoever was at it when the line was cut may not know what became of it; nobody waited in
    // vain.
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
        let (client, question) = (client.clone(), question(&ids[0]));
        async move { ask_soon(client, question).await.is_ok() }
    })
    .await;
    // From here on everything is: what failed before has a second to be forgotten.
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
