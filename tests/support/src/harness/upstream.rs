//! A simulated ThingSpace, and gateways in this process that use it.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU8, Ordering},
    thread,
    time::Duration,
};

use secrecy::ExposeSecret;
use tempfile::TempDir;
use thingspace_gateway::{
    app::App,
    callbacks::{Callbacks, registration::Registrar},
    config::{Config, CredentialsConfig, StoreKind},
    identity::AccountName,
    proto::esim::esim_service_client::EsimServiceClient,
    requests::Requests,
    shutdown::Stop,
    simulator::{CallbackOptions, Handle, Mode, Options, Simulator},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use super::{DEADLINE, within};

pub type Client = EsimServiceClient<Channel>;

/// A simulated ThingSpace, and the files a gateway needs to use it.
pub struct Upstream {
    pub sim: Handle,
    base_url: String,
    pub accounts: Vec<AccountName>,
    pub dir: TempDir,
    stop: CancellationToken,
}

impl Upstream {
    /// Starts one whose requests change only when the test changes them.
    pub async fn manual() -> Self {
        Self::start(Options { mode: Mode::Manual, ..Options::default() }).await
    }

    /// Does the same, with callbacks to any port.
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

    /// A configuration for this upstream: frequent polls, rates that no test reaches, a store in
    /// the folder of the test.
    pub fn config(&self) -> Config {
        let mut config = Config::defaults();
        let file = |name: &str| self.dir.path().join(name);
        config.grpc.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.admin.listen = config.grpc.listen;
        config.grpc.reflection = true;
        config.thingspace.base_url.clone_from(&self.base_url);
        config.thingspace.calls_per_second = 10_000;
        config.limits.caller_calls_per_second = 1_000_000;
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

    /// A configuration without polls: only calls of the test lead to status queries.
    pub fn quiet(&self) -> Config {
        let mut config = self.config();
        let never = Duration::from_hours(1);
        config.polling.min_age = Duration::ZERO;
        (config.polling.first, config.polling.max_watched, config.polling.max) =
            (never, never, never);
        config
    }

    /// The configuration without polls, with a listener for callbacks.
    pub fn with_callbacks(&self) -> Config {
        let mut config = self.quiet();
        config.callbacks.enabled = true;
        config.callbacks.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config
    }

    /// The same for the first account only, with the listener registered: all results come by
    /// callbacks.
    pub fn called(&self) -> Config {
        let mut config = self.with_callbacks();
        config.credentials[0].accounts.truncate(1);
        config.callbacks.register = true;
        config.callbacks.public_url = "http://127.0.0.1:0/callbacks/".into();
        config
    }

    /// The same with frequent polls, for a gateway in a process of its own. ThingSpace calls few
    /// ports, so the listener has an address that no other listener has.
    pub fn called_process(&self) -> Config {
        static LISTENERS: AtomicU8 = AtomicU8::new(64);
        let mut config = self.called();
        config.polling = self.config().polling;
        let [.., high, low] = std::process::id().to_be_bytes();
        let number = LISTENERS.fetch_add(1, Ordering::Relaxed);
        config.callbacks.listen = SocketAddr::from(([127, number, high, low], 28_200));
        config.callbacks.public_url = format!("http://{}/callbacks/", config.callbacks.listen);
        config
    }

    /// A configuration of the `n`th replica over the NATS servers at `url`, with `copies` of each
    /// stream.
    pub fn replica(&self, config: &Config, url: &str, copies: usize, n: usize) -> Config {
        let mut config = config.clone();
        config.store.kind = StoreKind::Nats;
        url.clone_into(&mut config.store.nats.url);
        config.store.nats.replicas = copies;
        config.control.socket = self.dir.path().join(format!("replica-{n}.sock"));
        config
    }

    /// Three replicas in this process, over one NATS server.
    pub async fn replicas(&self, config: &Config, url: &str) -> [Gateway; 3] {
        let start = |n| Gateway::start(self.replica(config, url, 1, n));
        [start(0).await, start(1).await, start(2).await]
    }

    /// A gateway with the usual configuration, ready.
    pub async fn gateway(&self) -> Gateway {
        Gateway::start(self.config()).await
    }

    /// The address of the simulator.
    pub fn address(&self) -> SocketAddr {
        let authority = self.base_url.trim_start_matches("http://").trim_end_matches("/api");
        authority.parse().unwrap()
    }

    /// Stops the simulator: every connection breaks, and no new one is accepted.
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
    /// The address of probes.
    pub admin: SocketAddr,
    pub stop: Stop,
    pub requests: Requests,
    /// The address of callbacks, and the callbacks, if they are enabled.
    pub callbacks: Option<(SocketAddr, Callbacks)>,
    pub registration: Option<Registrar>,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Gateway {
    /// Starts a gateway and waits until it is ready.
    pub async fn start(config: Config) -> Self {
        let gateway = Self::launch(config).await;
        within("the gateway is ready", gateway.requests.ready()).await;
        gateway
    }

    /// Starts a gateway that may have to wait for its store.
    pub async fn launch(config: Config) -> Self {
        let app = Box::pin(App::bind(config)).await.unwrap();
        let (address, stop, requests) = (app.address, Stop::default(), app.requests.clone());
        let admin = app.admin.address();
        let callbacks = app.callbacks.as_ref().map(|of| (of.address, of.callbacks.clone()));
        let registration = app.callbacks.as_ref().and_then(|of| of.registration.clone());
        let running = tokio::spawn(app.run(stop.clone()));
        Self { address, admin, stop, requests, callbacks, registration, running }
    }

    pub async fn client(&self) -> Client {
        connect(self.address).await
    }

    /// Drains the gateway and waits for its end.
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
