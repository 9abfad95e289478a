//! One bound on memory: with any calls, a process stays below it, and returns memory that it no
//! longer needs.

mod idle_watches;

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, future::join_all, stream};
use thingspace_gateway::{
    identity::RequestId,
    proto::{
        esim::{
            RequestState, WatchRequestResponse, esim_service_client::EsimServiceClient,
            watch_request_response::Event,
        },
        storage::{self, StatusClass},
    },
    requests::fold::event::Kind,
    store::{Store, embedded::Embedded},
};

use tonic::transport::Endpoint;

use crate::{RETENTION, append_all, big::resume_token, harness::*};

const MIB: u64 = 1 << 20;

/// The most memory of a process, during the load and a while later.
const PEAK: u64 = 400 * MIB;
const REST: u64 = 100 * MIB;

/// Finished requests, far more than fit into memory, and concurrent calls about them.
const FINISHED: usize = 40;
const DEVICES: usize = 10_000;
const CALLS: usize = 1_000;
const CALLS_AT_ONCE: usize = 64;
const CALLS_IN_A_ROW: usize = 10;

/// Watchers that missed all transitions but the first of a request.
const WATCHERS: usize = 200;
const WATCHERS_PER_CONNECTION: usize = 25;
const WATCHED_DEVICES: usize = 5_000;

fn stored(n: usize) -> storage::Device {
    let ids = device(n);
    storage::Device { eid: ids.eid, iccid: ids.iccid, imei: ids.imei, mdn: ids.mdn }
}

fn accepted(name: &str, devices: usize) -> Kind {
    Kind::Accepted(storage::Accepted {
        order_id: format!("order of {name}"),
        account: ACCOUNT.to_owned(),
        service_plan: String::new(),
        devices: (0..devices).map(stored).collect(),
        caller: String::new(),
    })
}

/// A request for 10,000 devices that one poll has ended.
fn finished(name: &str) -> Vec<(String, Kind)> {
    let observed = |devices: std::ops::Range<usize>| {
        Kind::Observed(storage::Observed {
            account: ACCOUNT.to_owned(),
            overall: StatusClass::Succeeded.into(),
            devices: devices
                .map(|n| storage::ObservedDevice {
                    device: Some(stored(n)),
                    status: StatusClass::Succeeded.into(),
                })
                .collect(),
            overall_only: false,
            complete: true,
        })
    };
    let kinds = [accepted(name, DEVICES), observed(0..DEVICES / 2), observed(DEVICES / 2..DEVICES)];
    kinds.into_iter().map(|kind| (name.to_owned(), kind)).collect()
}

/// A request in which every device changes twice, each time alone.
fn lively(name: &str) -> impl Iterator<Item = (String, Kind)> {
    let called_back = |(n, status): (usize, StatusClass)| {
        Kind::CalledBack(storage::CalledBack {
            account: ACCOUNT.to_owned(),
            device: Some(stored(n)),
            status: status.into(),
            fault: None,
            profile: None,
        })
    };
    let each = |status| (0..WATCHED_DEVICES).map(move |n| (n, status));
    let changes = each(StatusClass::Waiting).chain(each(StatusClass::Failed)).map(called_back);
    let name = name.to_owned();
    std::iter::once(accepted(&name, WATCHED_DEVICES))
        .chain(changes)
        .map(move |kind| (name.clone(), kind))
}

/// Watchers that read nothing, each of a finished request of its own.
const STALLED: usize = 300;

/// Devices of each, and the text of each device's fault: a snapshot of 1 MB.
const STALLED_DEVICES: usize = 250;
const TEXT_BYTES: usize = 4_000;

/// Watchers that read on in the end.
const READ_ON: usize = 20;

/// The most memory of a process with them.
const STALLED_PEAK: u64 = 320 * MIB;

/// A request in which every device has failed with a long text.
fn failed(name: &str) -> impl Iterator<Item = (String, Kind)> {
    let called_back = |n| {
        Kind::CalledBack(storage::CalledBack {
            account: ACCOUNT.to_owned(),
            device: Some(stored(n)),
            status: StatusClass::Failed.into(),
            fault: Some(storage::Fault { code: "1".to_owned(), message: "m".repeat(TEXT_BYTES) }),
            profile: None,
        })
    };
    let name = name.to_owned();
    let kinds = std::iter::once(accepted(&name, STALLED_DEVICES))
        .chain((0..STALLED_DEVICES).map(called_back));
    kinds.map(move |kind| (name.clone(), kind))
}

/// A connection on which the gateway can send little that is not read.
async fn narrow(process: &Process) -> Client {
    let endpoint = Endpoint::from_shared(format!("http://{}", process.address)).unwrap();
    let endpoint =
        endpoint.initial_stream_window_size(16 << 10).initial_connection_window_size(8 << 20);
    EsimServiceClient::new(within("a connection", endpoint.connect()).await.unwrap())
}

/// A line of `/proc/PID/status`, in bytes.
fn memory(process: &Process, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim_start_matches(':').trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
}

fn report(process: &Process, when: &str) {
    let [rss, anonymous, peak] =
        ["VmRSS", "RssAnon", "VmHWM"].map(|what| memory(process, what) / MIB);
    eprintln!("{when}: {rss} MiB, of it {anonymous} anonymous; at most {peak} MiB");
}

async fn ask_about_finished(process: &Process) {
    let clients: Vec<_> = join_all((0..4).map(|_| process.client())).await;
    let calls = stream::iter(0..CALLS).map(|n| {
        let mut client = clients[n % clients.len()].clone();
        async move {
            let id = RequestId::parse(&format!("finished-{}", n / CALLS_IN_A_ROW * 7 % FINISHED))
                .unwrap();
            let status = get_status(&mut client, status_call(&id)).await.unwrap();
            assert_eq!(status.counts.unwrap().succeeded, i32::try_from(DEVICES).unwrap());
            assert_eq!((status.state(), status.devices.len()), (RequestState::Succeeded, 1_000));
        }
    });
    calls.buffer_unordered(CALLS_AT_ONCE).collect::<Vec<_>>().await;
}

/// Counts the changes that a watcher gets: each change of a device once, in order.
fn changed(messages: &[WatchRequestResponse]) -> usize {
    let mut revision = 0;
    let mut count = 0;
    for message in messages {
        match message.event.as_ref().unwrap() {
            Event::Change(change) => {
                assert!(change.revision > revision);
                revision = change.revision;
                count += change.devices.len();
            }
            Event::Heartbeat(_) => {}
            Event::Snapshot(_) => panic!("a watch does not start over"),
        }
    }
    count
}

async fn resume_watches(process: &Process, id: &RequestId, token: &str) {
    let connections = WATCHERS.div_ceil(WATCHERS_PER_CONNECTION);
    let clients: Vec<_> = join_all((0..connections).map(|_| process.client())).await;
    let watchers = (0..WATCHERS).map(|n| {
        let mut client = clients[n % connections].clone();
        async move {
            let watching = watch(&mut client, id, token).await.unwrap();
            assert_eq!(changed(&watching.rest().await), 2 * WATCHED_DEVICES);
        }
    });
    join_all(watchers).await;
}

/// Status calls about finished requests and watchers that missed a long history share one bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_bounded_and_given_back() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    // Otherwise memory is returned after minutes.
    config.limits.closed_in_memory = Duration::from_secs(1);
    let store = Embedded::open(&config.store.path, RETENTION).unwrap();
    for n in 0..FINISHED {
        append_all(&store, finished(&format!("finished-{n}"))).await;
    }
    let id = RequestId::parse("lively").unwrap();
    let positions = append_all(&store, lively(id.as_str())).await;
    let token = resume_token(&store, id.as_str(), positions[0], 1).await;
    store.close().await;

    let process = Process::serve(&config, upstream.dir.path());
    report(&process, "ready");
    let began = Instant::now();
    ask_about_finished(&process).await;
    report(&process, "1,000 calls");
    eprintln!("{:?}", began.elapsed());
    let began = Instant::now();
    resume_watches(&process, &id, &token).await;
    report(&process, "200 watchers");
    eprintln!("{:?}", began.elapsed());
    let peak = memory(&process, "VmHWM");
    let began = Instant::now();
    assert!(peak <= PEAK, "{} MiB", peak / MIB);
    eventually("memory is returned", async || memory(&process, "VmRSS") <= REST).await;
    report(&process, "at rest");
    eprintln!("{:?}", began.elapsed());
}

/// A watch of a finished request holds it only while it is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_that_read_nothing_hold_little_memory() {
    let upstream = Upstream::manual().await;
    let config = upstream.quiet();
    let store = Embedded::open(&config.store.path, RETENTION).unwrap();
    for n in 0..STALLED {
        append_all(&store, failed(&format!("failed-{n}"))).await;
    }
    store.close().await;
    let process = Process::serve(&config, upstream.dir.path());
    report(&process, "ready");
    let clients: Vec<_> =
        join_all((0..STALLED.div_ceil(WATCHERS_PER_CONNECTION)).map(|_| narrow(&process))).await;
    let mut watching = Vec::new();
    for n in 0..STALLED {
        let id = RequestId::parse(&format!("failed-{n}")).unwrap();
        watching
            .push(watch(&mut clients[n / WATCHERS_PER_CONNECTION].clone(), &id, "").await.unwrap());
    }
    report(&process, "300 watchers that read nothing");
    let peak = memory(&process, "VmHWM");
    assert!(peak <= STALLED_PEAK, "{} MiB", peak / MIB);

    for reader in watching.into_iter().take(READ_ON) {
        let messages = reader.rest().await;
        let told = messages.iter().filter_map(|message| match message.event.as_ref().unwrap() {
            Event::Snapshot(part) => Some((part.devices.len(), part.state())),
            _ => None,
        });
        let (devices, states): (Vec<_>, Vec<_>) = told.unzip();
        assert_eq!(devices.iter().sum::<usize>(), STALLED_DEVICES);
        assert!(states.iter().all(|state| *state == RequestState::Failed));
    }
    report(&process, "20 of them read on");
}
