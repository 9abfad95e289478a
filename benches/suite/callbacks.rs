//! Callbacks from 64 senders, against a bare loop that appends the same events to the same store.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, header::HOST};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use test_support::{
    bench::{Core, Helper, Usage, on_core},
    harness::{ACCOUNT, Upstream as Simulated, device, eventually, place},
    sender::about,
};
use thingspace_gateway::{
    identity::{AccountName, RequestId},
    proto::storage::{self, StatusClass},
    requests::fold::event::{self, Kind},
    simulator::CallbackOptions,
    store::{LogName, Store as _, embedded::Embedded},
};
use tokio::{net::TcpStream, task::JoinSet};
use uuid::Uuid;

use crate::{
    Context,
    gateway::{self, Gateway, folder},
    history::{RETENTION, stored},
    plan::float,
    report::{Goal, Section, Unit},
};

const SENDERS: usize = 64;

/// Callbacks of a run, each for a device of its own.
const CALLBACKS: usize = 10_000;

/// Work of the process that sends.
#[derive(Debug, Serialize, Deserialize)]
struct Work {
    address: SocketAddr,
    path: String,
    request: String,
    username: String,
    password: String,
}

pub(crate) async fn measure(context: &mut Context) {
    let mut section = Section::new(
        "Callbacks",
        format!(
            "{SENDERS} senders, each of which waits for its 200. Each callback is the result of \
             another device. The reference is a process with {SENDERS} tasks that append such \
             events to the same kind of store."
        ),
    );
    let simulated = Simulated::calling(CallbackOptions::default()).await;
    let called = simulated.called_process();
    let url = format!("http://{}/api", simulated.address());
    let mut config = gateway::config(simulated.dir.path(), &url);
    (config.credentials, config.callbacks) = (called.credentials, called.callbacks);
    let gateway = Gateway::start_with(&config, simulated.dir.path());
    let account = AccountName::parse(ACCOUNT).unwrap();
    let registered = || simulated.sim.registered(&account);
    eventually("it is registered", async || registered().is_some()).await;
    let registered = registered().unwrap();
    let mut client = gateway.process.client().await;
    let store = folder();
    let path = store.path().join("store.redb");
    let mut appender = on_core(Core::Server, || Helper::start(&["append", path.to_str().unwrap()]));
    let (mut cpu, mut time) = ([vec![], vec![]], [vec![], vec![]]);
    for run in 0..=context.plan.runs {
        let id = place(&mut client, &format!("run-{run}"), 0..CALLBACKS).await.unwrap();
        let work = Work {
            address: gateway.process.callbacks.unwrap(),
            path: format!("/{}", registered.url.rsplit('/').next().unwrap()),
            request: id.to_string(),
            username: registered.username.clone(),
            password: registered.password.expose_secret().to_owned(),
        };
        let mut sender = on_core(Core::Load, || Helper::start(&["callbacks"]));
        assert_eq!(sender.ask(&serde_json::to_string(&work).unwrap()), "ready");
        let pids = [gateway.process.pid(), appender.pid()];
        for (n, process) in [&mut sender, &mut appender].into_iter().enumerate() {
            let before = Usage::of(pids[n]).processor;
            let micros: u32 = process.ask("go").parse().unwrap();
            let used = Usage::of(pids[n]).processor.saturating_sub(before);
            // The first run warms up.
            if run > 0 {
                cpu[n].push(used.as_secs_f64() * 1e6 / float(CALLBACKS));
                time[n].push(f64::from(micros) / 1e3 / float(CALLBACKS));
            }
        }
    }
    let [gateway, append] = &time;
    let goal = Some(Goal::Ratio(1.67));
    let reference = Some(("append", &append[..]));
    section.row(
        ("callback_time", "time for each callback"),
        Unit::Millis,
        gateway,
        reference,
        goal,
    );
    let [gateway, append] = &cpu;
    let reference = Some(("append", &append[..]));
    section.row(("callback_cpu", "CPU of a callback"), Unit::CpuMicros, gateway, reference, None);
    context.report.sections.push(section);
}

/// Lets all tasks take the numbers up to [`CALLBACKS`]. Returns the time until all are done.
async fn in_turn<F: Future<Output = ()> + Send + 'static>(
    places: impl IntoIterator<Item = impl FnOnce(Arc<AtomicUsize>) -> F>,
) -> Duration {
    let (next, began) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let tasks: Vec<_> =
        places.into_iter().map(|place| tokio::spawn(place(Arc::clone(&next)))).collect();
    join_all(tasks).await.into_iter().for_each(Result::unwrap);
    began.elapsed()
}

fn line() -> String {
    std::io::stdin().lines().next().unwrap().unwrap()
}

/// Sends callbacks: reads the work from standard input, and prints the microseconds that it took.
pub(crate) async fn send() {
    let work: Work = serde_json::from_str(&line()).unwrap();
    let id = RequestId::parse(&work.request).unwrap();
    let bodies = (0..CALLBACKS).map(|n| {
        about(&id, &device(n), "Success")
            .replace(r#""user""#, &format!("{:?}", work.username))
            .replace(r#""secret""#, &format!("{:?}", work.password))
    });
    let bodies: Arc<[Bytes]> = bodies.map(Bytes::from).collect();
    let (mut connections, mut open) = (Vec::new(), JoinSet::new());
    for _ in 0..SENDERS {
        let stream = TcpStream::connect(work.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) =
            http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.unwrap();
        open.spawn(async { connection.await.unwrap() });
        connections.push(sender);
    }
    println!("ready");
    assert_eq!(line(), "go");
    let places = connections.into_iter().map(|mut sender| {
        let (bodies, path, host) = (Arc::clone(&bodies), work.path.clone(), work.address);
        move |next: Arc<AtomicUsize>| async move {
            while let Some(body) = bodies.get(next.fetch_add(1, Relaxed)) {
                let request = Request::post(&path)
                    .header(HOST, host.to_string())
                    .body(Full::new(body.clone()))
                    .unwrap();
                sender.ready().await.unwrap();
                let answer = sender.send_request(request).await.unwrap();
                assert_eq!(answer.status(), 200);
                answer.into_body().collect().await.unwrap();
            }
        }
    });
    println!("{}", in_turn(places).await.as_micros());
}

/// Appends events to a store: for each line of standard input as many as there are callbacks.
/// Prints the microseconds that it took.
pub(crate) async fn append(path: &Path) {
    let store = Arc::new(Embedded::open(path, RETENTION).unwrap());
    for line in std::io::stdin().lines() {
        line.unwrap();
        let places = (0..SENDERS).map(|_| {
            let store = Arc::clone(&store);
            move |next: Arc<AtomicUsize>| async move {
                let log = LogName::request("called-back");
                loop {
                    let n = next.fetch_add(1, Relaxed);
                    if n >= CALLBACKS {
                        return;
                    }
                    store.append(&log, Uuid::now_v7(), called_back(n)).await.unwrap();
                }
            }
        });
        println!("{}", in_turn(places).await.as_micros());
    }
}

/// Returns the event that the gateway stores for a callback.
fn called_back(n: usize) -> Bytes {
    let profile = storage::Profile {
        state: "ACTIVE".to_owned(),
        status: "ENABLE".to_owned(),
        role: "LOCAL".to_owned(),
    };
    let event = storage::CalledBack {
        account: ACCOUNT.to_owned(),
        device: Some(stored(n)),
        status: StatusClass::Succeeded.into(),
        fault: None,
        profile: Some(profile),
    };
    event::encode(Kind::CalledBack(event), None)
}
