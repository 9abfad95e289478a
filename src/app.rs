//! Constructs everything and connects it.
//!
//! [`App::bind`] opens the store and the listeners. [`App::run`] serves until it is told to stop,
//! and then [drains](drain). Probes are answered from the start. Several Apps can run in one
//! process.

mod callers;
mod dev;
mod drain;
mod gauges;
mod health;
mod restore;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use jiff::Timestamp;
use tokio::{
    net::{TcpListener, TcpSocket},
    task::spawn_blocking,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;
use tonic_health::server::HealthReporter;
use tracing::info;

use crate::{
    admin::Admin,
    callbacks::{
        Callbacks,
        registration::Registrar,
        secrets::{CallbackSecrets, UserFiles},
    },
    config::{Config, GrpcConfig, StoreKind},
    control::{Control, GatewayParts},
    grpc::{self, Esim, EsimServer, Limits},
    proto::esim::{self, esim_service_server::EsimServiceServer},
    requests::{Error, Requests},
    server::{self, CallService, Http2Options, ListenerOptions, tls::Tls},
    shutdown::Stop,
    store::{self, Store, embedded::Embedded, nats::Nats},
    telemetry::Sampler,
    thingspace::{CallbackPasswords, Client},
};
use drain::Running;

pub(crate) use callers::key_set_url;
pub use dev::{dev, simulate};
pub use health::health;
pub use restore::restore;

/// Added to the retention of requests and the give-up time of polls. So a log is kept for longer
/// than its request is needed, and no log is folded after its first events have expired.
const RETENTION_SLACK: Duration = Duration::from_hours(24);

/// The name of the API's listener in the log.
const GRPC: &str = "grpc";

/// Bytes that the system keeps for a connection: of what the peer sent and the gateway has not
/// read, and of what the gateway sent and the peer has not read. The default is several megabytes.
/// Linux doubles these values.
const RECEIVE_BUFFER: u32 = 128 << 10;
const SEND_BUFFER: u32 = 64 << 10;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// The API's listener uses at most one part in this many of the process's file descriptors.
pub(crate) const DESCRIPTORS_PART: usize = 3;

/// A gateway that listens on its addresses but does not serve yet.
#[derive(Debug)]
pub struct App {
    config: Config,
    /// The listener for probes.
    pub admin: Admin,
    listener: TcpListener,
    /// The address of the API.
    pub address: SocketAddr,
    store: Arc<dyn Store>,
    client: Client,
    /// The domain, for tests.
    pub requests: Requests,
    parts: GatewayParts,
    control: Control,
    /// `None`: callbacks are disabled.
    pub callbacks: Option<CallbackListener>,
    /// Cancelled when the drain begins.
    drain: CancellationToken,
    /// Tracks orders and status queries in progress, for which the drain waits.
    tasks: TaskTracker,
}

/// The listener for callbacks, and the registration of its address.
#[derive(Debug)]
pub struct CallbackListener {
    /// What the listener serves.
    pub callbacks: Callbacks,
    listener: TcpListener,
    /// The address that is bound.
    pub address: SocketAddr,
    /// `None` without a public URL.
    pub registration: Option<Registrar>,
}

/// Runs a gateway until it is told to stop.
pub async fn serve(config: Config, stop: Stop) -> anyhow::Result<()> {
    info!(
        version = env!("CARGO_PKG_VERSION"),
        config = config.file.as_ref().map(|file| tracing::field::display(file.display())),
        store = config.store.shown(),
        "starting"
    );
    App::bind(config).await?.run(stop).await
}

impl App {
    /// Opens the store and the listeners. Sends nothing to ThingSpace.
    pub async fn bind(config: Config) -> anyhow::Result<Self> {
        let started = Timestamp::now();
        let cannot = || format!("cannot listen on {}", config.admin.listen);
        let admin = Admin::bind(config.admin.listen).await.with_context(cannot)?;
        let tasks = TaskTracker::new();
        let store = open_store(&config).await?;
        let client = Client::new(&config.thingspace, &config.credentials, &store, &tasks)?;
        let requests = Requests::new(&config, Arc::clone(&store), client.clone(), &tasks);
        let (listener, address) = listen(config.grpc.listen).await?;
        let callers = callers::authenticator(&config).await?;
        let tls = callers::tls(&config.grpc).await?;
        let callbacks = if config.callbacks.enabled {
            Some(CallbackListener::bind(&config, &store, &client, &requests, &tasks).await?)
        } else {
            None
        };
        let drain = CancellationToken::new();
        let socket = config.control_socket();
        let parts = GatewayParts {
            requests: requests.clone(),
            client: client.clone(),
            callbacks: callbacks.as_ref().map(|listener| listener.callbacks.clone()),
            registration: callbacks.as_ref().and_then(|listener| listener.registration.clone()),
            store: config.store.shown(),
            config: config.file.clone(),
            callers,
            tls,
            connections: TaskTracker::new(),
            started,
            drain: drain.clone(),
        };
        gauges::observe_all(parts.clone());
        let control = Control::bind(socket.clone(), parts.clone()).await;
        let control = control.with_context(|| format!("cannot listen on {}", socket.display()))?;
        Ok(Self {
            config,
            admin,
            listener,
            address,
            store,
            client,
            requests,
            parts,
            control,
            callbacks,
            drain,
            tasks,
        })
    }

    /// Serves until told to stop, then drains. Fails if a part of the gateway ends by itself, or if
    /// the drain had to end orders in progress.
    pub async fn run(self, stop: Stop) -> anyhow::Result<()> {
        let mut running = self.start().await?;
        tokio::select! {
            () = stop.soft.cancelled() => {}
            served = &mut running.grpc => {
                served.context("the server panicked")?;
                bail!("the server ended");
            }
            // Without the follower the gateway would see no new events. It ends, so that it can be
            // restarted.
            followed = &mut running.follower => {
                followed.context("following the store panicked")?;
                bail!("following the store ended");
            }
            never = health::report(&running.parts, &running.health) => match never {},
        }
        running.drain(&stop).await
    }

    async fn start(self) -> anyhow::Result<Running> {
        let Self { config, requests, drain, tasks, parts, .. } = self;
        let (calls, background) = (TaskTracker::new(), CancellationToken::new());
        let GatewayParts { callers, tls, connections, .. } = &parts;
        let policy = callers.policy().clone();
        let esim = Esim::new(requests.clone(), policy, &config, drain.clone(), calls.clone());
        tokio::spawn(callers.clone().follow(background.clone()));
        if let Some(tls) = tls.clone() {
            tokio::spawn(tls.follow(background.clone()));
        }
        let (health, routes) = routes(esim, config.grpc.reflection).await?;
        health::report_logins(&health, &self.client, &background).await;

        let following = requests.clone();
        let (draining, stopping) = (drain.clone(), background.clone());
        let follower = tokio::spawn(async move { following.run(draining, stopping).await });
        let (limits, sampler) = (Limits::new(&config), Sampler::new(&config.telemetry));
        let receive_timeout = config.grpc.receive_timeout;
        let services = grpc::layers(routes, callers.clone(), limits, receive_timeout, sampler);
        let serving = serve_grpc(
            config.grpc.clone(),
            self.listener,
            tls.clone(),
            services,
            connections.clone(),
            drain.clone(),
        );
        let grpc = tokio::spawn(serving);
        let control = tokio::spawn(self.control.serve(background.clone()));
        self.admin.serving(parts.clone());
        info!(address = %self.address, "listening");
        let callbacks = self.callbacks.map(|listener| {
            let CallbackListener { callbacks, listener, address, registration } = listener;
            info!(%address, "listening for callbacks");
            if let Some(registration) = registration.filter(|_| config.callbacks.register) {
                // The registration starts nothing after the drain has begun. The drain waits for
                // what the registration started before.
                tokio::spawn(registration.run(drain.clone()));
            }
            tokio::spawn(callbacks.serve(listener, background.clone()))
        });
        Ok(Running {
            admin: self.admin,
            health,
            parts,
            store: self.store,
            calls,
            tasks,
            drain,
            background,
            grpc,
            follower,
            control,
            callbacks,
            time: config.grpc.drain,
        })
    }
}

impl CallbackListener {
    async fn bind(
        config: &Config,
        store: &Arc<dyn Store>,
        client: &Client,
        requests: &Requests,
        tasks: &TaskTracker,
    ) -> anyhow::Result<Self> {
        let accounts: Vec<_> =
            config.credentials.iter().flat_map(|set| set.accounts.clone()).collect();
        let (store, requests) = (Arc::clone(store), requests.clone());
        let callbacks = Callbacks::new(&config.callbacks, store, &accounts, requests)
            .await
            .context("cannot accept callbacks")?;
        keep_apart(config, callbacks.secrets(), client);
        let (listener, address) = listen(config.callbacks.listen).await?;
        let registration = if config.callbacks.public_url.is_empty() {
            None
        } else {
            let (secrets, client) = (callbacks.secrets().clone(), client.clone());
            Some(Registrar::new(&config.callbacks, address, secrets, client, tasks.clone())?)
        };
        Ok(Self { callbacks, listener, address, registration })
    }
}

/// Returns the services of the gRPC server, and the reporter of their health. None is healthy yet.
async fn routes(esim: Esim, reflection: bool) -> anyhow::Result<(HealthReporter, Routes)> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health::set(&health, false).await;
    let esim = EsimServiceServer::new(esim)
        .max_decoding_message_size(grpc::MAX_MESSAGE)
        .max_encoding_message_size(grpc::MAX_MESSAGE);
    let mut routes = Routes::new(health_service).add_service(EsimServer::new(esim));
    if reflection {
        let described = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(esim::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // Lets generic clients show the details of an error.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        // grpcurl before 1.8.8 and some desktop clients use v1alpha.
        routes =
            routes.add_service(described().build_v1()?).add_service(described().build_v1alpha()?);
    }
    Ok((health, routes))
}

/// Serves the API until `stop`, and then until all connections have ended.
async fn serve_grpc(
    config: GrpcConfig,
    listener: TcpListener,
    tls: Option<Tls>,
    services: impl CallService,
    connections: TaskTracker,
    stop: CancellationToken,
) {
    let listener_options = ListenerOptions {
        name: GRPC,
        max_connections: config.max_connections,
        max_connections_of_address: config.max_connections_per_address,
        descriptors_part: DESCRIPTORS_PART,
        networks: Vec::new(),
        connections,
    };
    let options = Http2Options {
        max_concurrent_streams: config.max_concurrent_streams,
        age: config.connection_age,
        grace: config.connection_grace,
        slow_reader: grpc::trailers(&Error::SlowReader),
        aged: grpc::aged(),
        stopped: grpc::trailers(&Error::Draining),
    };
    server::serve_grpc(listener_options, options, listener, tls, services, stop).await;
}

async fn listen(address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.set_send_buffer_size(SEND_BUFFER)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    let listener = bind().with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Keeps the passwords of callbacks and of logins apart: the gateway does not log in with a
/// password that ThingSpace sends in callbacks, and does not register one with which it logs in.
fn keep_apart(config: &Config, secrets: &CallbackSecrets, client: &Client) {
    let users = config.credentials.iter().map(|set| UserFiles {
        username: set.username_file.clone(),
        password: set.password_file.clone(),
    });
    secrets.keep_apart_from(users.collect());
    let secrets = secrets.clone();
    let file = config.callbacks.pair_files().map(|(_, password)| password.to_owned());
    client.refuse_passwords(&CallbackPasswords {
        file,
        sends: Arc::new(move |password| secrets.sends(password)),
    });
}

/// How long events are kept.
pub fn retention(config: &Config) -> Duration {
    config.store.retention + config.polling.give_up + RETENTION_SLACK
}

async fn open_store(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    let retention = retention(config);
    if config.store.kind == StoreKind::Nats {
        return Ok(store::measure(Nats::open(&config.store.nats, retention).await?));
    }
    let path = config.store.path.clone();
    let opened = spawn_blocking(move || Embedded::open(&path, retention)).await?;
    let cannot = || format!("cannot open the store {}", config.store.path.display());
    Ok(store::measure(opened.with_context(cannot)?))
}
