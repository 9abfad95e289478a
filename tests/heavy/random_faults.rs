//! Promises 2 and 3 of the README, and the deadlines of callers, with faults in random order.
//!
//! A case is a random sequence of calls, faults, expiries, crashes and restarts. A failing case is
//! shortened. Its seed is printed; `PROPTEST_RNG_SEED` sets another one.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::Uri;
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    test_runner::{Config as Runs, RngSeed, TestRunner},
};
use thingspace_gateway::{
    app::App,
    config::Config,
    identity::RequestId,
    proto::esim::{DownloadProfileRequest, esim_service_client::EsimServiceClient},
    shutdown::Stop,
    simulator::{
        CallbackOptions, CallbackShape, DeviceResult, Endpoint, Fault, Gate, Ledger, When,
    },
};
use tokio::{
    net::{TcpSocket, TcpStream},
    runtime::{Builder, Runtime},
    task::{JoinHandle, JoinSet, spawn_blocking},
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Request, Status, body::Body};
use tonic_types::StatusExt;
use tower::{service_fn, util::BoxService};

use crate::{failure::Failure, harness::*};

const SEED: u64 = 20_261_121;
const CASES: u32 = 30;
/// The time limit for shortening a failing case.
const SHRINKING: Duration = Duration::from_mins(1);
/// Orders in a case, each for a device of its own.
const KEYS: usize = 4;
/// The gateway's own deadline, for calls with a later one or none.
const MAX_DEADLINE: Duration = Duration::from_secs(2);
/// For ThingSpace's answers.
const TIMEOUT: Duration = Duration::from_millis(300);
/// The third login in a row comes after the end of the test: if it failed, too, logins would
/// correctly stop.
const LOGIN_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_hours(1));
const BREAKER: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// An answer may be late by this multiple of the time of the slowest call that waits for nothing.
const TOLERANCE: u32 = 10;

#[derive(Debug, Clone)]
enum Step {
    /// Concurrent calls for the same order.
    Order {
        key: usize,
        callers: usize,
        deadline: Option<Duration>,
    },
    /// A status call about the request of a key, if there is one.
    Ask {
        key: usize,
        deadline: Option<Duration>,
    },
    Fail {
        endpoint: Endpoint,
        when: When,
        failure: Failure,
        times: u32,
    },
    /// ThingSpace recovers.
    Recover,
    Expire {
        bearer: bool,
        session: bool,
    },
    /// The devices of all orders get their profiles, and ThingSpace calls back.
    Finish,
    Pause(Duration),
    Restart,
    Kill,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let deadline = || {
        let some = vec![None, Some(20), Some(100), Some(400), Some(1_500)];
        select(some).prop_map(|ms| ms.map(Duration::from_millis))
    };
    let order = (0..KEYS, 1..=3_usize, deadline())
        .prop_map(|(key, callers, deadline)| Step::Order { key, callers, deadline });
    let expire =
        any::<(bool, bool)>().prop_map(|(bearer, session)| Step::Expire { bearer, session });
    let step = prop_oneof![
        6 => order,
        2 => (0..KEYS, deadline()).prop_map(|(key, deadline)| Step::Ask { key, deadline }),
        5 => fault(),
        1 => Just(Step::Recover),
        1 => expire,
        1 => Just(Step::Finish),
        5 => (1..100_u64).prop_map(|ms| Step::Pause(Duration::from_millis(ms))),
        1 => Just(Step::Restart),
        2 => Just(Step::Kill),
    ];
    vec(step, 10..60)
}

fn fault() -> impl Strategy<Value = Step> {
    let endpoints = vec![Endpoint::Token, Endpoint::Login, Endpoint::Download, Endpoint::Status];
    let whens = vec![When::BeforeEffect, When::AfterEffect];
    let failures = Failure::ALL.to_vec();
    (select(endpoints), select(whens), select(failures), 1..=3_u32)
        .prop_filter("a ThingSpace that contradicts itself", |(endpoint, when, failure, _)| {
            !contradicts_itself(*endpoint, *when, *failure)
        })
        .prop_map(|(endpoint, when, failure, times)| Step::Fail { endpoint, when, failure, times })
}

/// Faults that this test cannot use: valid credentials are rejected, which correctly stops logins,
/// or an order that was executed is refused.
fn contradicts_itself(endpoint: Endpoint, when: When, failure: Failure) -> bool {
    use Failure::{Forbidden, Throttled, Unauthorized};
    match endpoint {
        Endpoint::Token => matches!(failure, Unauthorized | Forbidden),
        Endpoint::Login => failure == Forbidden,
        Endpoint::Download => {
            when == When::AfterEffect && matches!(failure, Unauthorized | Forbidden | Throttled)
        }
        _ => false,
    }
}

/// A running gateway. It has a runtime of its own, so that all its tasks can end at once, as in a
/// crash.
struct Life {
    runtime: Runtime,
    address: SocketAddr,
    stop: Stop,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Life {
    async fn begin(config: &Config) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (config, stop) = (config.clone(), Stop::default());
        let bind = move || Box::pin(App::bind(config.clone()));
        let bound = eventually_ok("the store of the previous gateway closes", bind);
        let app = runtime.spawn(bound).await.unwrap();
        let (address, requests) = (app.address, app.requests.clone());
        let running = runtime.spawn(app.run(stop.clone()));
        within("the gateway is ready", requests.ready()).await;
        Self { runtime, address, stop, running }
    }

    async fn drain(self) {
        self.stop.soft.cancel();
        within("the gateway drains", self.running).await.unwrap().unwrap();
        end(self.runtime).await;
    }

    async fn kill(self) {
        end(self.runtime).await;
    }
}

/// Ends every task where it waits.
async fn end(runtime: Runtime) {
    spawn_blocking(move || drop(runtime)).await.unwrap();
}

/// A plain HTTP/2 client.
type Connection = BoxService<http::Request<Body>, http::Response<Incoming>, hyper::Error>;

/// A client without a timer of its own. The gateway must enforce `grpc-timeout` itself.
async fn reach(address: SocketAddr) -> Result<EsimServiceClient<Connection>, Status> {
    let failed = |error: &dyn std::fmt::Display| Status::unknown(error.to_string());
    let tcp = TcpStream::connect(address).await.map_err(|error| failed(&error))?;
    let builder = http2::Builder::new(TokioExecutor::new());
    let (sender, connection) =
        builder.handshake::<_, Body>(TokioIo::new(tcp)).await.map_err(|error| failed(&error))?;
    // It ends with the client.
    tokio::spawn(connection);
    let service = service_fn(move |request| sender.clone().send_request(request));
    Ok(EsimServiceClient::with_origin(BoxService::new(service), Uri::from_static("http://gateway")))
}

fn with_deadline<T>(message: T, deadline: Option<Duration>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(deadline) = deadline {
        request.set_timeout(deadline);
    }
    request
}

async fn download(
    address: SocketAddr,
    order: DownloadProfileRequest,
    deadline: Option<Duration>,
) -> Result<String, Status> {
    let answer = reach(address).await?.download_profile(with_deadline(order, deadline)).await?;
    Ok(answer.into_inner().request_id)
}

async fn status(
    address: SocketAddr,
    id: &RequestId,
    deadline: Option<Duration>,
) -> Result<(), Status> {
    reach(address)
        .await?
        .get_request_status(with_deadline(status_call(id), deadline))
        .await
        .map(drop)
}

/// What callers know of the orders.
#[derive(Debug, Default)]
struct Seen {
    /// By key.
    ids: [Mutex<HashSet<String>>; KEYS],
    /// The number of gateways that ended. A call to one of them need not be answered.
    ended: AtomicUsize,
    /// The time of the slowest call that waited for nothing.
    reference: Mutex<Duration>,
    /// How late calls were answered.
    late: Mutex<Vec<Duration>>,
}

impl Seen {
    fn is_placed(&self, key: usize, id: String) {
        self.ids[key].lock().unwrap().insert(id);
    }

    fn assert_agrees_with(&self, ledger: &Ledger) {
        for (key, ids) in self.ids.iter().enumerate() {
            let eid = device(key).eid;
            let times = ledger.times_ordered(&eid);
            assert!(times <= 1, "key {key} was ordered {times} times");
            let ids = ids.lock().unwrap();
            assert!(ids.len() <= 1, "key {key} has several requests: {ids:?}");
            let is_of = |id: &String| {
                let mut orders =
                    ledger.orders.iter().filter(|order| order.request_id.as_str() == id);
                orders.any(|order| order.devices.iter().any(|device| device.eid.as_str() == eid))
            };
            assert!(ids.iter().all(is_of), "key {key} has another's request: {ids:?}");
        }
        let (late, reference) = (self.late.lock().unwrap(), *self.reference.lock().unwrap());
        let tolerated = reference * TOLERANCE;
        assert!(
            late.iter().all(|late| *late <= tolerated),
            "later by more than {tolerated:?}: {late:?}"
        );
    }
}

struct World {
    upstream: Upstream,
    config: Config,
    /// Keeps the port for callbacks from others. It does not listen, so no connection is accepted.
    _port: TcpSocket,
    life: Option<Life>,
    callers: JoinSet<()>,
    /// Opening it lets hanging calls continue.
    gate: Gate,
    seen: Arc<Seen>,
}

impl World {
    async fn new() -> Self {
        let upstream = Upstream::calling(CallbackOptions::default()).await;
        let port = TcpSocket::new_v4().unwrap();
        port.set_reuseaddr(true).unwrap();
        port.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let mut config = upstream.called();
        config.polling = upstream.config().polling;
        config.callbacks.listen = port.local_addr().unwrap();
        config.grpc.max_deadline = MAX_DEADLINE;
        let thingspace = &mut config.thingspace;
        (thingspace.call_timeout, thingspace.order_timeout) = (TIMEOUT, TIMEOUT);
        (thingspace.login_backoff_first, thingspace.login_backoff_max) = LOGIN_BACKOFF;
        (thingspace.breaker_first, thingspace.breaker_max) = BREAKER;
        let life = Life::begin(&config).await;
        // The credentials were accepted once. Otherwise a login without an answer would count as a
        // rejection.
        let before = download(life.address, order("before", [KEYS]), None).await;
        before.expect("all is well");
        let life = Some(life);
        let (callers, gate, seen) = (JoinSet::new(), Gate::default(), Arc::default());
        Self { upstream, config, _port: port, life, callers, gate, seen }
    }

    fn address(&self) -> SocketAddr {
        self.life.as_ref().expect("a gateway lives between two steps").address
    }

    async fn take(&mut self, step: &Step) {
        match step {
            Step::Order { key, callers, deadline } => {
                for _ in 0..*callers {
                    let (key, caller) = (*key, self.caller(*deadline));
                    self.callers.spawn(async move {
                        let answer = download(
                            caller.address,
                            order(&key.to_string(), [key]),
                            caller.deadline,
                        );
                        if let Some(id) = caller.waits_for(answer).await {
                            caller.seen.is_placed(key, id);
                        }
                    });
                }
            }
            Step::Ask { key, deadline } => {
                let id = self.seen.ids[*key].lock().unwrap().iter().next().cloned();
                let Some(id) = id.and_then(|id| RequestId::parse(&id).ok()) else { return };
                let caller = self.caller(*deadline);
                self.callers.spawn(async move {
                    caller.waits_for(status(caller.address, &id, caller.deadline)).await;
                });
            }
            Step::Fail { endpoint, when, failure, times } => {
                let (endpoint, when, what) = (*endpoint, *when, failure.what(&self.gate));
                self.upstream
                    .sim
                    .inject(Fault { times: Some(*times), ..Fault::once(endpoint, when, what) });
            }
            Step::Recover => self.upstream.sim.clear_faults(),
            Step::Expire { bearer, session } => {
                if *bearer {
                    self.upstream.sim.expire_bearer();
                }
                if *session {
                    self.upstream.sim.expire_sessions();
                }
            }
            Step::Finish => {
                for order in self.upstream.sim.ledger().orders {
                    self.upstream.sim.finish_all(&order.request_id, DeviceResult::Success);
                }
            }
            Step::Pause(time) => tokio::time::sleep(*time).await,
            Step::Restart => self.restart(Life::drain).await,
            Step::Kill => self.restart(Life::kill).await,
        }
    }

    fn caller(&self, deadline: Option<Duration>) -> Caller {
        let (seen, address) = (Arc::clone(&self.seen), self.address());
        Caller { life: seen.ended.load(Ordering::SeqCst), seen, address, deadline }
    }

    async fn restart(&mut self, end: impl AsyncFnOnce(Life)) {
        let life = self.life.take().expect("a gateway lives between two steps");
        self.seen.ended.fetch_add(1, Ordering::SeqCst);
        end(life).await;
        self.life = Some(Life::begin(&self.config).await);
    }

    /// Ends all faults. Every call is answered, and the same calls have the right result. Callbacks
    /// settle the orders whose answers were lost.
    async fn settle(&mut self) {
        self.upstream.sim.clear_faults();
        self.gate.open();
        while let Some(call) = within("all calls are answered", self.callers.join_next()).await {
            call.unwrap();
        }
        // Failed orders and hosts are tried again soon.
        self.config.thingspace.login_backoff_max = LOGIN_BACKOFF.0;
        self.restart(Life::drain).await;
        let idle = |ledger: &Ledger| ledger.in_flight(Endpoint::Download) == 0;
        let ledger = self.upstream.sim.wait_until(DEADLINE, idle).await;
        let account = &self.upstream.accounts[0];
        eventually("callbacks are registered", async || {
            self.upstream.sim.registered(account).is_some()
        })
        .await;
        for order in &ledger.orders {
            let eid = order.devices[0].eid.as_str();
            self.upstream.sim.deliver(
                &order.request_id,
                eid,
                DeviceResult::Success,
                CallbackShape::default(),
            );
        }
        for key in 0..KEYS {
            let exists = ledger.times_ordered(&device(key).eid) > 0;
            if let Some(id) = within("an end", persevere(self.address(), key, exists)).await {
                self.seen.is_placed(key, id);
            }
        }
        let ledger = self.upstream.sim.ledger();
        assert!(!ledger.locked && ledger.logins_rejected == 0, "{ledger:?}");
        self.seen.assert_agrees_with(&ledger);
        self.life.take().expect("the last gateway lives").drain().await;
    }
}

/// Makes one call to one gateway, which may have ended.
struct Caller {
    seen: Arc<Seen>,
    address: SocketAddr,
    life: usize,
    deadline: Option<Duration>,
}

impl Caller {
    /// Checks that the answer is in time, and that an error has a reason.
    async fn waits_for<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Option<T> {
        let began = Instant::now();
        let answer = within("an answer", call).await;
        let waited = began.elapsed();
        if answer.is_err() && self.seen.ended.load(Ordering::SeqCst) != self.life {
            return None;
        }
        let deadline = self.deadline.map_or(MAX_DEADLINE, |deadline| deadline.min(MAX_DEADLINE));
        if let Some(late) = waited.checked_sub(deadline) {
            self.seen.late.lock().unwrap().push(late);
        }
        let status = match answer {
            Ok(answer) => return Some(answer),
            Err(status) => status,
        };
        let may_be = [
            (Code::DeadlineExceeded, "DEADLINE"),
            (Code::Unavailable, "ORDER_IN_PROGRESS"),
            (Code::Unavailable, "UPSTREAM_UNAVAILABLE"),
            (Code::FailedPrecondition, "ORDER_OUTCOME_UNKNOWN"),
            (Code::FailedPrecondition, "UPSTREAM_REFUSED"),
            (Code::ResourceExhausted, "UPSTREAM_THROTTLED"),
        ];
        let (code, why) = kind(&status);
        assert!(may_be.contains(&(code, &why)), "{status:?}");
        None
    }
}

/// Repeats the order until its error says not to. `None`: its outcome is unknown, as that of an
/// order that does not exist at ThingSpace may stay for ever.
async fn persevere(address: SocketAddr, key: usize, exists: bool) -> Option<String> {
    loop {
        let status = match download(address, order(&key.to_string(), [key]), None).await {
            Ok(id) => return Some(id),
            Err(status) => status,
        };
        let unknown = reason(&status) == "ORDER_OUTCOME_UNKNOWN";
        if unknown && !exists {
            return None;
        }
        let again = [Code::Unavailable, Code::ResourceExhausted, Code::DeadlineExceeded];
        assert!(unknown || again.contains(&status.code()), "{status:?}");
        let told = status.get_details_retry_info().and_then(|info| info.retry_delay);
        tokio::time::sleep(told.unwrap_or(Duration::from_millis(100))).await;
    }
}

/// Makes a call that waits for nothing. Returns whether it was answered.
async fn refer(seen: &Seen, address: SocketAddr) -> bool {
    let check = DownloadProfileRequest { validate_only: true, ..order("check", [KEYS + 1]) };
    let began = Instant::now();
    let answer = download(address, check, None).await;
    let took = began.elapsed();
    if answer.is_ok() {
        let mut slowest = seen.reference.lock().unwrap();
        *slowest = took.max(*slowest);
    }
    answer.is_ok()
}

/// Makes such calls one after the other, until the gateway has ended.
fn refer_on(seen: &Arc<Seen>, address: SocketAddr) -> AbortOnDropHandle<()> {
    let seen = Arc::clone(seen);
    AbortOnDropHandle::new(tokio::spawn(async move {
        while refer(&seen, address).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }))
}

async fn run(steps: &[Step]) {
    let mut world = World::new().await;
    assert!(
        refer(&world.seen, world.address()).await,
        "a call with nothing to wait for is answered"
    );
    let mut reference = refer_on(&world.seen, world.address());
    for step in steps {
        world.take(step).await;
        if matches!(step, Step::Restart | Step::Kill) {
            reference = refer_on(&world.seen, world.address());
        }
    }
    world.settle().await;
    drop(reference);
}

#[test]
fn with_random_faults_nothing_is_ordered_twice_and_no_call_exceeds_its_deadline() {
    let default = Runs::default();
    let rng_seed = match default.rng_seed {
        RngSeed::Random => RngSeed::Fixed(SEED),
        given @ RngSeed::Fixed(_) => given,
    };
    eprintln!("seed: {rng_seed:?}");
    let runs = Runs {
        cases: CASES,
        max_shrink_time: u32::try_from(SHRINKING.as_millis()).unwrap(),
        failure_persistence: None,
        rng_seed,
        ..default
    };
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let outcome = TestRunner::new(runs).run(&steps(), |steps| {
        runtime.block_on(run(&steps));
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}\nseed: {rng_seed:?}");
    }
}
