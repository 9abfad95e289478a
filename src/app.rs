//! The composition root: the only place that constructs things and wires them.
//!
//! [`App::bind`] gives addresses, [`App::run`] serves until it is told to stop and drains. Only
//! probes are answered from the start. Two Apps in one process work.

mod dev;
mod health;
mod restore;

use std::{
    convert::Infallible, net::SocketAddr, path::PathBuf, pin::pin, sync::Arc, time::Duration,
};

use anyhow::{Context, bail};
use tokio::{
    net::TcpListener,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};
use tracing::{info, warn};

use crate::{
    admin::Admin,
    callbacks::{
        Callbacks,
        registration::Registration,
        secrets::{LoginFiles, Secrets},
    },
    config::{Config, StoreKind},
    control::{Control, Instance},
    grpc::{self, Esim, Settings},
    proto::esim::{self, esim_service_server::EsimServiceServer},
    requests::Requests,
    server,
    shutdown::Stop,
    simulator::{self, Simulator},
    store::{Store, embedded::Embedded, nats::Nats},
    thingspace::{Client, Sent},
};

pub use dev::dev;
pub use health::health;
pub use restore::restore;

/// Of the time a drain may take, what is kept for closing the store and flushing telemetry: a
/// quarter, at most this.
const CLOSING: Duration = Duration::from_secs(5);

/// How long connections may take to close once nothing is open on them. A peer that never says
/// goodbye is not waited for.
const GOODBYE: Duration = Duration::from_secs(1);

/// How long following the store may take to end; it raises the low-water mark a last time.
const FOLLOWING: Duration = Duration::from_secs(3);

/// After this the log says why the gateway is not ready yet.
const UNREADY_SAID: Duration = Duration::from_secs(3);

/// Events outlive the request they belong to, so that a half-expired log is never folded: by the
/// time a request may be open, and this.
const RETENTION_SLACK: Duration = Duration::from_hours(24);

/// A gateway that has its address and does not serve yet.
#[derive(Debug)]
pub struct App {
    config: Config,
    admin: Admin,
    listener: TcpListener,
    address: SocketAddr,
    store: Arc<dyn Store>,
    client: Client,
    requests: Requests,
    control: Control,
    /// The listener for callbacks, if they are taken.
    callbacks: Option<(Callbacks, TcpListener, SocketAddr)>,
    /// Where it is known how ThingSpace reaches that listener.
    registration: Option<Registration>,
    /// Cancelled when the drain begins.
    drain: CancellationToken,
    /// Orders and questions under way; closed when the drain begins.
    tasks: TaskTracker,
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

/// Runs a simulator, with its control API if there is an address for it.
pub async fn simulate(
    address: SocketAddr,
    control: Option<SocketAddr>,
    stop: Stop,
) -> anyhow::Result<()> {
    let options = simulator::Options { listen: address, ..simulator::Options::default() };
    let simulator =
        Simulator::bind(options).await.with_context(|| format!("cannot listen on {address}"))?;
    if let Some(control) = control {
        let (listener, address) = listen(control).await?;
        info!(%address, "the simulator can be controlled");
        tokio::spawn(simulator::control::run(listener, simulator.handle(), stop.soft.clone()));
    }
    info!(base_url = simulator.base_url(), "simulating ThingSpace");
    simulator.run(stop.soft).await.context("the simulator failed")
}

impl App {
    /// Opens the store and the listeners. Nothing is sent upstream.
    pub async fn bind(config: Config) -> anyhow::Result<Self> {
        let cannot = || format!("cannot listen on {}", config.admin.listen);
        let admin = Admin::bind(config.admin.listen).await.with_context(cannot)?;
        let tasks = TaskTracker::new();
        let store = open_store(&config).await?;
        let client = Client::new(&config.thingspace, &config.credentials, &store, &tasks)?;
        let requests = Requests::new(&config, Arc::clone(&store), client.clone(), &tasks);
        let (listener, address) = listen(config.grpc.listen).await?;
        let mut registration = None;
        let callbacks = if config.callbacks.enabled {
            let accounts: Vec<_> =
                config.credentials.iter().flat_map(|of| of.accounts.clone()).collect();
            let callbacks =
                Callbacks::new(&config.callbacks, Arc::clone(&store), &accounts, requests.clone())
                    .await
                    .context("cannot take callbacks")?;
            keep_apart(&config, &callbacks, &client);
            let (listener, address) = listen(config.callbacks.listen).await?;
            if !config.callbacks.public_url.is_empty() {
                let (secrets, tasks) = (callbacks.secrets().clone(), tasks.clone());
                registration = Some(Registration::new(
                    &config.callbacks,
                    address,
                    secrets,
                    client.clone(),
                    tasks,
                )?);
            }
            Some((callbacks, listener, address))
        } else {
            None
        };
        let taken = callbacks.as_ref().map(|(callbacks, _, _)| callbacks.clone());
        let drain = CancellationToken::new();
        let socket = config.control_socket();
        let instance = Instance {
            store: config.store.shown(),
            config: config.file.clone(),
            drain: drain.clone(),
        };
        let (asked, registered) = (requests.clone(), registration.clone());
        let control =
            Control::bind(socket.clone(), instance, asked, client.clone(), taken, registered).await;
        let control = control.with_context(|| format!("cannot listen on {}", socket.display()))?;
        Ok(Self {
            config,
            admin,
            listener,
            address,
            store,
            client,
            requests,
            control,
            callbacks,
            registration,
            drain,
            tasks,
        })
    }

    /// Where the API listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where probes are answered.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address()
    }

    /// Where operators are answered.
    fn control_socket(&self) -> PathBuf {
        self.config.control_socket()
    }

    /// Where callbacks are taken, if they are.
    pub fn callbacks_address(&self) -> Option<SocketAddr> {
        self.callbacks.as_ref().map(|(_, _, address)| *address)
    }

    /// The callbacks, for whoever wants to see how they are doing.
    pub fn callbacks(&self) -> Option<&Callbacks> {
        self.callbacks.as_ref().map(|(callbacks, _, _)| callbacks)
    }

    /// Where ThingSpace is told to call back, for operators.
    pub fn registration(&self) -> Option<&Registration> {
        self.registration.as_ref()
    }

    /// The domain, for whoever wants to see how it is doing.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Serves until told to stop, then drains: not ready, no new connections, watches end with
    /// their token, unary calls and orders finish, the store closes. Callbacks are taken until just
    /// before it does.
    pub async fn run(self, stop: Stop) -> anyhow::Result<()> {
        let calls = TaskTracker::new();
        let drain = self.drain.clone();
        let background = CancellationToken::new();
        let (health, routes) = self.routes(&drain, &calls).await?;
        watch_logins(&health, &self.client, &background).await;

        let mut running = tokio::spawn({
            let (requests, drain, background) =
                (self.requests.clone(), drain.clone(), background.clone());
            async move { requests.run(drain, background).await }
        });
        let mut serving = tokio::spawn(server::serve(
            self.listener,
            routes,
            self.config.grpc.max_concurrent_streams,
            drain.clone(),
        ));
        let mut controlled = tokio::spawn(self.control.serve(background.clone()));
        self.admin.serving(self.requests.clone());
        info!(address = %self.address, "listening");
        let secrets = self.callbacks.as_ref().map(|(callbacks, _, _)| callbacks.secrets().clone());
        let last_callback = CancellationToken::new();
        let taking_callbacks = self.callbacks.map(|(callbacks, listener, address)| {
            info!(%address, "listening for callbacks");
            tokio::spawn(callbacks.serve(listener, last_callback.clone()))
        });
        if let Some(registration) = self.registration.filter(|_| self.config.callbacks.register) {
            // It begins nothing once the drain has begun; what it is at, the drain waits for.
            tokio::spawn(registration.run(drain.clone()));
        }

        tokio::select! {
            () = stop.soft.cancelled() => {}
            served = &mut serving => served.context("the server panicked")?.context("the server failed")?,
            // Without it nothing that is stored would be seen any more: better to start anew.
            ended = &mut running => {
                ended.context("following the store panicked")?;
                bail!("following the store ended");
            }
            never = keep_health(&self.requests, secrets.as_ref(), &health) => match never {},
        }

        let began = Instant::now();
        info!("draining");
        self.admin.draining();
        set_health(&health, ServingStatus::NotServing).await;
        drain.cancel();
        self.requests.drain();
        self.tasks.close();
        let budget = for_work(self.config.grpc.drain);
        let finished = async {
            calls.close();
            calls.wait().await;
            self.tasks.wait().await;
        };
        tokio::select! {
            () = finished => {}
            () = tokio::time::sleep_until(began + budget) => {
                warn!(calls = calls.len(), tasks = self.tasks.len(), "time is up; what is still open ends now");
            }
            () = stop.hard.cancelled() => warn!("told to stop at once"),
        }
        // Until now: ThingSpace does not send for long what nobody takes.
        last_callback.cancel();
        background.cancel();
        // Whatever hangs, the process ends when the time of the drain is over.
        let end = began + self.config.grpc.drain;
        let until = |most: Duration| end.min(Instant::now() + most);
        if !running.is_finished() {
            match timeout_at(until(FOLLOWING), &mut running).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => warn!("following the store ended in a panic"),
                Err(_) => running.abort(),
            }
        }
        if timeout_at(until(GOODBYE), &mut serving).await.is_err() {
            serving.abort();
        }
        if let Some(mut taking) = taking_callbacks
            && timeout_at(until(GOODBYE), &mut taking).await.is_err()
        {
            taking.abort();
        }
        match timeout_at(until(CLOSING), &mut controlled).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => warn!("serving the control socket ended in a panic"),
            Err(_) => controlled.abort(),
        }
        if timeout_at(until(CLOSING), self.store.close()).await.is_err() {
            warn!("the store does not close in time; what was acknowledged is in it all the same");
        }
        self.admin.end().await;
        info!(took = ?began.elapsed(), "drained");
        Ok(())
    }

    async fn routes(
        &self,
        drain: &CancellationToken,
        calls: &TaskTracker,
    ) -> anyhow::Result<(HealthReporter, Routes)> {
        let (health, health_service) = tonic_health::server::health_reporter();
        set_health(&health, ServingStatus::NotServing).await;
        let esim = Esim::new(
            self.requests.clone(),
            Settings::new(&self.config),
            drain.clone(),
            calls.clone(),
        );
        let esim = EsimServiceServer::new(esim)
            .max_decoding_message_size(grpc::MAX_MESSAGE)
            .max_encoding_message_size(grpc::MAX_MESSAGE);
        let mut routes = Routes::new(health_service).add_service(esim);
        if self.config.grpc.reflection {
            let described = || {
                tonic_reflection::server::Builder::configure()
                    .register_encoded_file_descriptor_set(esim::FILE_DESCRIPTOR_SET)
                    .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                    // So that generic clients can show the details of an error.
                    .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            };
            // grpcurl before 1.8.8 and some desktop clients ask v1alpha.
            routes = routes
                .add_service(described().build_v1()?)
                .add_service(described().build_v1alpha()?);
        }
        Ok((health, routes))
    }
}

/// How much of a drain what is under way may take.
fn for_work(drain: Duration) -> Duration {
    drain.saturating_sub((drain / 4).min(CLOSING))
}

async fn listen(address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Says whether calls can be answered. While the store is away, some can.
async fn keep_health(
    requests: &Requests,
    secrets: Option<&Secrets>,
    health: &HealthReporter,
) -> Infallible {
    loop {
        let ready = async {
            requests.ready().await;
            if let Some(secrets) = secrets {
                secrets.reload().await;
            }
        };
        let mut ready = pin!(ready);
        if tokio::time::timeout(UNREADY_SAID, &mut ready).await.is_err() {
            let reason = requests.waits_for();
            let reason =
                reason.as_deref().unwrap_or("the secrets of callbacks have not been read yet");
            warn!(reason, "not ready yet");
            ready.await;
        }
        set_health(health, ServingStatus::Serving).await;
        info!("ready");
        requests.unready().await;
        warn!(reason = requests.waits_for(), "no longer ready");
        set_health(health, ServingStatus::NotServing).await;
    }
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for name in ["", grpc::SERVICE_NAME] {
        health.set_service_status(name, status).await;
    }
}

/// The health of each set of credentials, under a name of its own: without logins the gateway still
/// serves what it knows.
async fn watch_logins(health: &HealthReporter, client: &Client, until: &CancellationToken) {
    for (name, mut standing) in client.standings() {
        let (name, health) = (format!("thingspace.login/{name}"), health.clone());
        let tell = async move |healthy| {
            let status = if healthy { ServingStatus::Serving } else { ServingStatus::NotServing };
            health.set_service_status(&name, status).await;
        };
        let healthy = standing.borrow_and_update().healthy;
        tell(healthy).await;
        tokio::spawn(until.clone().run_until_cancelled_owned(async move {
            while standing.changed().await.is_ok() {
                let healthy = standing.borrow_and_update().healthy;
                tell(healthy).await;
            }
        }));
    }
}

/// What ThingSpace sends in callbacks never logs in, and what logs in is never sent.
fn keep_apart(config: &Config, callbacks: &Callbacks, client: &Client) {
    let logins = config.credentials.iter().map(|of| LoginFiles {
        username: of.username_file.clone(),
        password: of.password_file.clone(),
    });
    callbacks.secrets().keep_apart_from(logins.collect());
    let secrets = callbacks.secrets().clone();
    let file = config.callbacks.pair_files().map(|(_, password)| password.to_owned());
    client
        .keep_apart_from(&Sent { file, sends: Arc::new(move |password| secrets.sends(password)) });
}

/// How long events are kept.
pub fn retention(config: &Config) -> Duration {
    config.store.retention + config.polling.give_up + RETENTION_SLACK
}

async fn open_store(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    let retention = retention(config);
    if config.store.kind == StoreKind::Nats {
        return Ok(Arc::new(Nats::open(&config.store.nats, retention).await?));
    }
    let path = config.store.path.clone();
    let opened = tokio::task::spawn_blocking(move || Embedded::open(&path, retention)).await?;
    Ok(Arc::new(
        opened.with_context(|| format!("cannot open the store {}", config.store.path.display()))?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A restart while ThingSpace is slow must not make orders unknown.
    #[test]
    fn by_default_an_order_under_way_can_finish_in_a_drain() {
        let Config { grpc, thingspace, .. } = Config::defaults();
        let order = thingspace.connect_timeout + thingspace.order_timeout;
        assert!(
            for_work(grpc.drain) >= order,
            "{:?} for an order that takes {order:?}",
            grpc.drain
        );
    }
}
