//! Black box against the simulator, over real sockets; the fixtures; the table of codes; the trace
//! context on the wire.

mod any_bytes;
mod bounds;
mod context;
mod fixtures;
mod generated;
mod guard;
mod order_answers;
mod orders;
mod outages;
mod page;
mod registrations;
mod renewal;
mod replicas;
mod retries;
mod rotation;
mod statuses;
mod uncertain_logins;

use std::{fs, sync::Arc, time::Duration};

use tempfile::TempDir;
use tokio::time::Instant;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{
    Client, Error, Order, OrderPermit, Purpose, StatusLookup, Target, UnblockMode, UnblockOutcome,
    UnblockRefusal,
};
use crate::{
    config::{Config, CredentialsConfig, ThingSpaceConfig},
    identity::{AccountName, Device, Digits, RequestId},
    simulator::{Endpoint, Fault, Gate, Handle, Ledger, Mode, Options, Simulator, What, When},
    store::{Store, embedded::Embedded},
};

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    client: Client,
    handle: Handle,
    config: ThingSpaceConfig,
    files: TempDir,
    store: Arc<dyn Store>,
    /// Stops the simulator.
    running: DropGuard,
}

fn manual() -> Options {
    Options { mode: Mode::Manual, ..Options::default() }
}

async fn world(options: Options) -> World {
    configured(options, |_| {}).await
}

/// A simulator and a cold client with the simulator's default credentials.
async fn configured(options: Options, adjust: impl FnOnce(&mut ThingSpaceConfig)) -> World {
    let simulator = Simulator::bind(options).await.unwrap();
    let stop = CancellationToken::new();
    let handle = simulator.handle();
    let mut config = thingspace(simulator.base_url());
    adjust(&mut config);
    tokio::spawn(simulator.run(stop.clone()));
    let files = tempfile::tempdir().unwrap();
    let store = store(&files);
    let client = cold(&config, &files, &store);
    World { client, handle, config, files, store, running: stop.drop_guard() }
}

/// A client that knows nothing but what is in the store.
fn cold(config: &ThingSpaceConfig, files: &TempDir, store: &Arc<dyn Store>) -> Client {
    Client::new(config, &[credentials(files)], store, &TaskTracker::new()).unwrap()
}

fn store(files: &TempDir) -> Arc<dyn Store> {
    Arc::new(Embedded::open(&files.path().join("store.redb"), Duration::from_hours(1)).unwrap())
}

fn thingspace(base_url: String) -> ThingSpaceConfig {
    ThingSpaceConfig {
        base_url,
        token_url: String::new(),
        connect_timeout: PATIENCE,
        call_timeout: PATIENCE,
        order_timeout: PATIENCE,
        login_backoff_first: Duration::from_secs(5),
        login_backoff_max: Duration::from_mins(15),
        calls_per_second: 100_000,
        max_connections: 10_000,
        breaker_failures: 100,
        breaker_first: Duration::from_secs(1),
        breaker_max: Duration::from_secs(30),
        ..Config::defaults().thingspace
    }
}

fn credentials(files: &TempDir) -> CredentialsConfig {
    let file = |name: &str| {
        let path = files.path().join(name);
        // A restart finds what was written meanwhile.
        if !path.exists() {
            fs::write(&path, format!("simulator-{name}\n")).unwrap();
        }
        path
    };
    CredentialsConfig {
        name: "test".into(),
        accounts: ["0000123456-00001", "0000999999-00001", "0000000000-00000"].map(named).into(),
        key_file: file("key"),
        secret_file: file("secret"),
        username_file: file("user"),
        password_file: file("password"),
    }
}

impl World {
    /// A request made elsewhere, to ask for.
    fn request(&self) -> RequestId {
        self.handle.add_request(account(), [device(1)])
    }

    async fn poll(&self, request: &RequestId) -> Result<StatusLookup, Error> {
        poll(&self.client, request).await.map(|(lookup, _)| lookup)
    }

    async fn prepare(&self) -> OrderPermit {
        self.client.prepare_order(&account(), in_time()).await.unwrap()
    }

    async fn order(&self) -> Result<RequestId, Error> {
        self.client.place_order(self.prepare().await, &order(1), in_time()).await
    }

    async fn unblock(&self, mode: UnblockMode) -> UnblockOutcome {
        self.client.unblock("test", mode).await.unwrap().unwrap().outcome
    }

    /// Another process on the same store and files; the one before is dead.
    fn restart(&mut self) {
        self.client = cold(&self.config, &self.files, &self.store);
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.files.path().join(file), text).unwrap();
    }

    /// Calls until it is so.
    async fn call_until(&self, what: &str, holds: impl Fn(&Ledger, &Called) -> bool) {
        let request = self.request();
        let end = Instant::now() + PATIENCE;
        loop {
            let outcome = self.poll(&request).await.map(drop);
            if holds(&self.handle.ledger(), &outcome) {
                return;
            }
            assert!(Instant::now() < end, "{what}: {outcome:?}, {:?}", self.handle.ledger());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Calls for a while; this is said all the time.
    async fn call_for(&self, time: Duration, holds: impl Fn(&Called) -> bool) {
        let request = self.request();
        let end = Instant::now() + time;
        while Instant::now() < end {
            let outcome = self.poll(&request).await.map(drop);
            assert!(holds(&outcome), "{outcome:?}, {:?}", self.handle.ledger());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The call is under way: the simulator has it and has not answered.
    async fn arrived(&self, endpoint: Endpoint) {
        self.handle.wait_until(PATIENCE, |ledger| ledger.in_flight(endpoint) == 1).await;
    }

    /// The next call of this kind waits at the gate before it has its effect.
    fn hold(&self, endpoint: Endpoint) -> Gate {
        let gate = Gate::default();
        self.handle.inject(Fault::once(endpoint, When::BeforeEffect, What::Hold(gate.clone())));
        gate
    }
}

/// A poll, and how long the answer took.
async fn poll(client: &Client, request: &RequestId) -> Result<(StatusLookup, Duration), Error> {
    poll_of(client, &account(), request).await
}

async fn poll_of(
    client: &Client,
    account: &AccountName,
    request: &RequestId,
) -> Result<(StatusLookup, Duration), Error> {
    let turn = client.prepare_poll(account).await?;
    client.request_status(account, request, Purpose::Poll(turn)).await
}

/// What came of a call.
type Called = Result<(), Error>;

fn is_blocked(outcome: &Called) -> bool {
    matches!(outcome, Err(Error::LoginBlocked { .. }))
}

/// The next login with something after a failed one comes soon.
fn hasty(config: &mut ThingSpaceConfig) {
    config.login_backoff_first = Duration::from_millis(100);
    config.login_backoff_max = Duration::from_millis(200);
}

fn answer(status: u16, body: &str) -> What {
    What::Status {
        status: status.try_into().unwrap(),
        content_type: "application/json",
        body: body.to_owned(),
    }
}

fn named(name: &str) -> AccountName {
    AccountName::parse(name).unwrap()
}

fn account() -> AccountName {
    named("0000123456-00001")
}

fn device(number: u64) -> Device {
    Device {
        eid: Digits::new(&format!("{number:032}")),
        iccid: Digits::new(&format!("{number:020}")),
        imei: Digits::new(&format!("{number:015}")),
        mdn: Digits::default(),
    }
}

/// Time enough for an order.
fn in_time() -> Instant {
    Instant::now() + PATIENCE
}

fn order(devices: u64) -> Order {
    Order {
        account: account(),
        devices: (0..devices).map(device).collect(),
        service_plan: "a plan".into(),
    }
}
