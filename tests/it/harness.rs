//! A gateway and a simulated ThingSpace for one test, over real sockets.
//!
//! It fails loudly: a gateway that ends by itself fails the test that waits for it, every wait has
//! a deadline, and at the end of a test the simulator must not have seen a call that it does not
//! know.

use std::{
    future::Future,
    io::{BufRead, BufReader},
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use secrecy::ExposeSecret;
use tempfile::TempDir;
use thingspace_gateway::{
    app::App,
    callbacks::{Callbacks, registration::Registrar},
    config::{Config, CredentialsConfig},
    identity::{self, AccountName, Digits, RequestId},
    proto::esim::{
        DeviceIdentifiers, DeviceState, DeviceStatus, DownloadProfileRequest,
        GetRequestStatusRequest, RequestStatus, WatchRequestRequest, WatchRequestResponse,
        esim_service_client::EsimServiceClient, watch_request_response::Event,
    },
    requests::Requests,
    shutdown::Stop,
    simulator::{self, CallbackOptions, Fault, Gate, Handle, Mode, Options, Simulator, What, When},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

/// No wait in a test is longer. It ends before nextest ends the test, so that a stuck test says
/// where.
pub const DEADLINE: Duration = Duration::from_secs(45);

pub const ACCOUNT: &str = "0000123456-00001";

pub type Client = EsimServiceClient<Channel>;

/// Waits until something is true, and fails the test if it is not in time.
#[track_caller]
pub fn eventually<F: Future<Output = bool>>(
    what: &str,
    mut is_true: impl FnMut() -> F,
) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        let deadline = Instant::now() + DEADLINE;
        while !is_true().await {
            assert!(Instant::now() < deadline, "not in time ({caller}): {what}");
            tick.tick().await;
        }
    }
}

/// Repeats something until it succeeds, as a client does, and fails the test if it does not in
/// time.
#[track_caller]
pub fn eventually_ok<T, E: std::fmt::Debug, F: Future<Output = Result<T, E>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        let deadline = Instant::now() + DEADLINE;
        loop {
            match attempt().await {
                Ok(done) => return done,
                Err(error) => {
                    assert!(Instant::now() < deadline, "not in time ({caller}): {what}: {error:?}");
                }
            }
            tick.tick().await;
        }
    }
}

/// Awaits something, and fails the test if it does not come in time.
#[track_caller]
pub fn within<F: Future>(what: &str, future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move {
        let output = tokio::time::timeout(DEADLINE, future).await;
        output.unwrap_or_else(|_| panic!("not in time ({caller}): {what}"))
    }
}

/// A simulated ThingSpace, and the files a gateway needs to use it.
pub struct Upstream {
    pub sim: Handle,
    base_url: String,
    pub accounts: Vec<AccountName>,
    pub dir: TempDir,
    stop: CancellationToken,
}

impl Upstream {
    /// Nothing moves until the test says so.
    pub async fn manual() -> Self {
        Self::start(Options { mode: Mode::Manual, ..Options::default() }).await
    }

    /// The same, and it calls back, to any port.
    pub async fn calling(callbacks: CallbackOptions) -> Self {
        let callbacks = CallbackOptions { any_port: true, patience: DEADLINE, ..callbacks };
        Self::start(Options { mode: Mode::Manual, callbacks, ..Options::default() }).await
    }

    pub async fn start(options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let secrets = [
            ("key", options.key.as_str()),
            ("secret", options.secret.expose_secret()),
            ("username", options.username.as_str()),
            ("password", options.password.expose_secret()),
        ];
        for (name, value) in secrets {
            std::fs::write(dir.path().join(name), value).unwrap();
        }
        let accounts = options.accounts.clone();
        let simulator = Simulator::bind(options).await.unwrap();
        let (sim, base_url, stop) =
            (simulator.handle(), simulator.base_url(), CancellationToken::new());
        tokio::spawn(simulator.run(stop.clone()));
        Self { sim, base_url, accounts, dir, stop }
    }

    /// A configuration for this upstream: quick polls, a rate that is no obstacle, a store in this
    /// test's folder.
    pub fn config(&self) -> Config {
        let mut config = Config::defaults();
        let file = |name: &str| self.dir.path().join(name);
        config.grpc.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.admin.listen = config.grpc.listen;
        config.thingspace.base_url.clone_from(&self.base_url);
        config.thingspace.calls_per_second = 10_000;
        config.credentials = vec![CredentialsConfig {
            name: "test".to_owned(),
            accounts: self.accounts.clone(),
            key_file: file("key"),
            secret_file: file("secret"),
            username_file: file("username"),
            password_file: file("password"),
        }];
        config.store.path = file("store.redb");
        config.polling.min_age = Duration::from_millis(10);
        config.polling.first = Duration::from_millis(50);
        config.polling.max_watched = Duration::from_millis(200);
        config.polling.max = Duration::from_millis(500);
        config
    }

    /// A configuration with which ThingSpace is asked when a caller's question needs it, and at no
    /// other time.
    pub fn quiet(&self) -> Config {
        let mut config = self.config();
        let never = Duration::from_hours(1);
        config.polling.min_age = Duration::ZERO;
        (config.polling.first, config.polling.max_watched, config.polling.max) =
            (never, never, never);
        config
    }

    /// The quiet configuration, with a listener for callbacks.
    pub fn with_callbacks(&self) -> Config {
        let mut config = self.quiet();
        config.callbacks.enabled = true;
        config.callbacks.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config
    }

    /// The same for the first account, which registers the listener: results come by callbacks
    /// alone.
    pub fn called(&self) -> Config {
        let mut config = self.with_callbacks();
        config.credentials[0].accounts.truncate(1);
        config.callbacks.register = true;
        config.callbacks.public_url = "http://127.0.0.1:0/callbacks/".into();
        config
    }

    /// A gateway with the usual configuration, ready.
    pub async fn gateway(&self) -> Gateway {
        Gateway::start(self.config()).await
    }
}

impl Upstream {
    /// Where ThingSpace listens.
    pub fn address(&self) -> SocketAddr {
        let authority = self.base_url.trim_start_matches("http://").trim_end_matches("/api");
        authority.parse().unwrap()
    }

    /// A power cut: every connection breaks, and nobody listens any more.
    pub fn cut(&self) {
        self.stop.cancel();
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.cancel();
        if !thread::panicking() {
            let unexpected = self.sim.ledger().unexpected;
            assert!(unexpected.is_empty(), "calls that ThingSpace does not know: {unexpected:?}");
        }
    }
}

/// A gateway in this process.
pub struct Gateway {
    pub address: SocketAddr,
    /// Where it answers probes.
    pub admin: SocketAddr,
    pub stop: Stop,
    pub requests: Requests,
    /// Where it takes callbacks, if it does.
    pub callbacks: Option<(SocketAddr, Callbacks)>,
    pub registration: Option<Registrar>,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Gateway {
    /// One that is ready.
    pub async fn start(config: Config) -> Self {
        let gateway = Self::launch(config).await;
        within("the gateway is ready", gateway.requests.ready()).await;
        gateway
    }

    /// One that may have to wait for its store.
    pub async fn launch(config: Config) -> Self {
        let app = Box::pin(App::bind(config)).await.unwrap();
        let (address, stop, requests) = (app.address(), Stop::default(), app.requests().clone());
        let admin = app.admin_address();
        let callbacks = app.callbacks_address().zip(app.callbacks().cloned());
        let registration = app.registration().cloned();
        let running = tokio::spawn(app.run(stop.clone()));
        Self { address, admin, stop, requests, callbacks, registration, running }
    }

    pub async fn client(&self) -> Client {
        connect(self.address).await
    }

    /// Drains and waits for the end.
    pub async fn stop(self) {
        self.stop.soft.cancel();
        within("the gateway drains", self.running).await.unwrap().unwrap();
    }
}

pub async fn channel(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    within("a connection", endpoint.connect()).await.unwrap()
}

pub async fn connect(address: SocketAddr) -> Client {
    EsimServiceClient::new(channel(address).await).max_decoding_message_size(16 << 20)
}

/// The real binary, serving.
pub struct Process {
    child: Child,
    pub address: SocketAddr,
    /// Where it answers probes.
    pub admin: SocketAddr,
    /// Where it takes callbacks, if it does.
    pub callbacks: Option<SocketAddr>,
    /// What it wrote to stderr until it was ready, and after.
    seen: Vec<String>,
    log: mpsc::Receiver<String>,
}

impl Process {
    /// Starts `serve` and waits until it is ready.
    pub fn serve(config: &Config, dir: &Path) -> Self {
        Self::spawn(&mut serve_command(config, dir))
    }

    /// Starts `serve` and waits until it listens; it may not become ready.
    pub fn launch(config: &Config, dir: &Path) -> Self {
        Self::spawn_until(&mut serve_command(config, dir), "listening")
    }

    /// Starts a command that serves, and waits until it is ready. Its log is that of `info`, unless
    /// the command says otherwise.
    pub fn spawn(command: &mut Command) -> Self {
        Self::spawn_until(command, "ready")
    }

    #[expect(clippy::zombie_processes, reason = "dropping it kills and waits")]
    fn spawn_until(command: &mut Command, message: &str) -> Self {
        if command.get_envs().all(|(name, _)| name != "RUST_LOG") {
            command.env("RUST_LOG", "info");
        }
        let mut child = command
            .env("THINGSPACE_GATEWAY__TELEMETRY__LOG_FORMAT", "json")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (tell, log) = mpsc::channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        thread::spawn(move || {
            lines.map_while(Result::ok).try_for_each(|line| tell.send(line).ok())
        });
        let (mut address, mut admin, mut callbacks) = (None, None, None);
        let mut seen = Vec::new();
        loop {
            let Ok(line) = log.recv_timeout(DEADLINE) else {
                let _ = child.kill();
                panic!("the gateway did not become ready:\n{}", seen.join("\n"));
            };
            let said: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            seen.push(line);
            if said["message"] == "listening" {
                address = said["address"].as_str().map(|text| text.parse().unwrap());
            }
            if said["message"] == "answering probes" {
                admin = said["address"].as_str().map(|text| text.parse().unwrap());
            }
            if said["message"] == "listening for callbacks" {
                callbacks = said["address"].as_str().map(|text| text.parse().unwrap());
            }
            if said["message"] == message {
                let address = address.expect("it says where it listens");
                let admin = admin.expect("it says where it answers probes");
                return Self { child, address, admin, callbacks, seen, log };
            }
        }
    }

    pub async fn client(&self) -> Client {
        connect(self.address).await
    }

    /// Waits until the log has a line with this text.
    pub fn wait_for_line(&mut self, text: &str) {
        while !self.seen.iter().any(|line| line.contains(text)) {
            let line = self.log.recv_timeout(DEADLINE);
            self.seen.push(
                line.unwrap_or_else(|_| panic!("the log does not say {text:?}: {:#?}", self.seen)),
            );
        }
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// As when its terminal is closed.
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    /// It stands still, with all its connections.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end, and gives what was logged.
    pub async fn wait(mut self) -> (ExitStatus, Vec<String>) {
        let status = tokio::task::spawn_blocking(move || {
            let deadline = Instant::now() + DEADLINE;
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    let mut lines = std::mem::take(&mut self.seen);
                    lines.extend(self.log.iter());
                    return (status, lines);
                }
                assert!(Instant::now() < deadline, "the gateway did not end in time");
                thread::park_timeout(Duration::from_millis(10));
            }
        });
        status.await.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub const BINARY: &str = env!("CARGO_BIN_EXE_thingspace-gateway");

/// `serve` with a configuration.
pub fn serve_command(config: &Config, dir: &Path) -> Command {
    let mut command = Command::new(BINARY);
    command.arg("serve").arg("--config").arg(write_config(config, dir));
    command
}

/// Writes a configuration as the file that `serve` reads.
pub fn write_config(config: &Config, dir: &Path) -> PathBuf {
    let file = dir.join("gateway.toml");
    std::fs::write(&file, config.to_string()).unwrap();
    file
}

/// The `n`th device: its identifiers have the right shape and differ from those of any other.
pub fn device(n: usize) -> DeviceIdentifiers {
    DeviceIdentifiers {
        eid: format!("89049032{n:024}"),
        iccid: format!("8914800000{n:09}0"),
        imei: format!("49{n:013}"),
        mdn: String::new(),
    }
}

/// The same device as ThingSpace knows it.
pub fn upstream_device(n: usize) -> identity::Device {
    let ids = device(n);
    let [eid, iccid, imei] = [&ids.eid, &ids.iccid, &ids.imei].map(|text| Digits::new(text));
    identity::Device { eid, iccid, imei, mdn: Digits::default() }
}

/// An order for some devices.
pub fn order(key: &str, devices: impl IntoIterator<Item = usize>) -> DownloadProfileRequest {
    DownloadProfileRequest {
        account_name: ACCOUNT.to_owned(),
        devices: devices.into_iter().map(device).collect(),
        service_plan: "plan 1".to_owned(),
        idempotency_key: key.to_owned(),
        validate_only: false,
    }
}

pub async fn place(
    client: &mut Client,
    key: &str,
    devices: impl IntoIterator<Item = usize>,
) -> Result<RequestId, Status> {
    let answer =
        within("an order", client.download_profile(order(key, devices))).await?.into_inner();
    Ok(RequestId::parse(&answer.request_id).unwrap())
}

/// An order that ThingSpace has, and whose answer it holds back until the test opens the gate.
pub struct HeldOrder {
    /// The request that ThingSpace made of it.
    pub id: RequestId,
    gate: Gate,
    placing: JoinHandle<Result<RequestId, Status>>,
}

impl HeldOrder {
    pub async fn begin(
        upstream: &Upstream,
        client: &Client,
        key: &'static str,
        devices: Range<usize>,
    ) -> Self {
        let gate = Gate::default();
        let hold = What::Hold(gate.clone());
        upstream.sim.inject(Fault::once(simulator::Endpoint::Download, When::AfterEffect, hold));
        let (mut client, before) = (client.clone(), upstream.sim.ledger().orders.len());
        let placing = tokio::spawn(async move { place(&mut client, key, devices).await });
        let ledger = upstream.sim.wait_until(DEADLINE, |ledger| ledger.orders.len() > before).await;
        Self { id: ledger.orders[before].request_id.clone(), gate, placing }
    }

    pub fn is_answered(&self) -> bool {
        self.placing.is_finished()
    }

    /// Without the answer, which never comes.
    pub async fn fails(self) -> Result<RequestId, Status> {
        self.placing.await.unwrap()
    }

    /// Lets the answer go, and waits for what the caller is told.
    pub async fn answer(self) -> Result<RequestId, Status> {
        self.gate.open();
        self.placing.await.unwrap()
    }
}

pub fn question(id: &RequestId) -> GetRequestStatusRequest {
    GetRequestStatusRequest {
        account_name: ACCOUNT.to_owned(),
        request_id: id.to_string(),
        ..GetRequestStatusRequest::default()
    }
}

pub async fn ask(
    client: &mut Client,
    question: GetRequestStatusRequest,
) -> Result<RequestStatus, Status> {
    let answer = within("a status", client.get_request_status(question)).await?.into_inner();
    Ok(answer.status.unwrap())
}

/// The states of the devices in a status.
pub fn states(status: &RequestStatus) -> Vec<DeviceState> {
    status.devices.iter().map(DeviceStatus::state).collect()
}

/// Code and reason of an error.
pub fn kind(status: &Status) -> (Code, String) {
    (status.code(), reason(status))
}

/// A watch, with every wait bounded.
pub struct Watching(Streaming<WatchRequestResponse>);

pub async fn watch(
    client: &mut Client,
    id: &RequestId,
    resume_token: &str,
) -> Result<Watching, Status> {
    let request = WatchRequestRequest {
        account_name: ACCOUNT.to_owned(),
        request_id: id.to_string(),
        resume_token: resume_token.to_owned(),
    };
    Ok(Watching(within("a watch", client.watch_request(request)).await?.into_inner()))
}

impl Watching {
    /// The next message; `None` after an OK end.
    pub async fn next(&mut self) -> Result<Option<WatchRequestResponse>, Status> {
        within("a message of a watch", self.0.message()).await
    }

    /// The next message that is no heartbeat, which must come.
    pub async fn event(&mut self) -> (Event, String) {
        loop {
            let message = self.next().await.unwrap().expect("the watch goes on");
            match message.event.expect("a message has an event") {
                Event::Heartbeat(_) => {}
                event => return (event, message.resume_token),
            }
        }
    }

    /// The snapshot that must come next, put together from its messages, and its token.
    pub async fn snapshot(&mut self) -> (RequestStatus, String) {
        let mut whole: Option<RequestStatus> = None;
        loop {
            let (Event::Snapshot(part), token) = self.event().await else { panic!("no snapshot") };
            match &mut whole {
                Some(whole) => whole.devices.extend(part.devices),
                None => whole = Some(part),
            }
            if let Some(whole) = whole.take_if(|_| !token.is_empty()) {
                return (whole, token);
            }
        }
    }

    /// Everything up to the OK end.
    pub async fn rest(mut self) -> Vec<WatchRequestResponse> {
        let mut messages = Vec::new();
        while let Some(message) = self.next().await.unwrap() {
            messages.push(message);
        }
        messages
    }
}

/// The reason in a status's `ErrorInfo`, which every error has. One that asks for a repetition says
/// when.
pub fn reason(status: &Status) -> String {
    let info =
        status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "thingspace-gateway");
    if matches!(status.code(), Code::Unavailable | Code::ResourceExhausted) {
        let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
        assert!(retry.is_some(), "no RetryInfo: {status:?}");
    }
    info.reason
}
