//! Three gateways, each a process, on a cluster of three NATS servers, and callers that follow
//! `docs/clients.md`.

use std::{
    collections::BTreeMap,
    error::Error,
    future::Future,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustls::ClientConfig;
use thingspace_gateway::{
    config::Config,
    identity::{AccountName, RequestId},
    proto::esim::{DeviceState, DeviceStatus, WatchRequestRequest, watch_request_response::Event},
};
use tokio::time::{sleep, timeout};
use tonic::{Code, Status, transport::Endpoint};
use tonic_types::StatusExt;

use crate::{
    harness::{ACCOUNT, Client, DEADLINE, Process, Upstream, within},
    nats_server::NatsCluster,
    pki::tls_client,
    sender::about,
};

pub struct Fleet {
    pub upstream: Upstream,
    pub nats: NatsCluster,
    config: Config,
    gateways: [Option<Process>; 3],
    places: Places,
    /// How callers connect. `None`: without TLS.
    tls: Option<Arc<ClientConfig>>,
}

/// The addresses of the replicas, as from a name service.
#[derive(Debug, Clone, Default)]
struct Places(Arc<Mutex<[Option<SocketAddr>; 3]>>);

impl Fleet {
    pub async fn start(upstream: Upstream, config: Config) -> Self {
        Self::start_with(upstream, config, None).await
    }

    /// Starts gateways with TLS, if their callers use it.
    pub async fn start_with(
        upstream: Upstream,
        config: Config,
        tls: Option<Arc<ClientConfig>>,
    ) -> Self {
        let nats = NatsCluster::start().await;
        let gateways = [None, None, None];
        let mut fleet = Self { upstream, nats, config, gateways, places: Places::default(), tls };
        for n in 0..3 {
            fleet.serve(n);
        }
        fleet
    }

    /// Starts the `n`th gateway, and waits until it is ready.
    pub fn serve(&mut self, n: usize) {
        let config = self.upstream.replica(&self.config, &self.nats.url(), 3, n);
        let dir = self.upstream.dir.path().join(format!("replica-{n}"));
        std::fs::create_dir_all(&dir).unwrap();
        let process = Process::serve(&config, &dir);
        self.places.0.lock().unwrap()[n] = Some(process.address);
        assert!(self.gateways[n].replace(process).is_none(), "gateway {n} runs already");
    }

    pub fn gateway(&self, n: usize) -> &Process {
        self.gateways[n].as_ref().expect("it runs")
    }

    fn take(&mut self, n: usize) -> Process {
        self.places.0.lock().unwrap()[n] = None;
        self.gateways[n].take().expect("it runs")
    }

    pub fn kill(&mut self, n: usize) {
        self.take(n).kill();
    }

    /// Ends the `n`th gateway in order.
    pub async fn drain(&mut self, n: usize) {
        let gateway = self.take(n);
        gateway.terminate();
        let (status, log) = gateway.wait().await;
        assert!(status.success(), "{status}: {log:#?}");
    }

    /// Restarts the `n`th gateway as a deployment does.
    pub async fn roll(&mut self, n: usize) {
        self.drain(n).await;
        self.serve(n);
    }

    /// A client of the `n`th gateway alone.
    pub async fn client(&self, n: usize) -> Client {
        self.gateway(n).client().await
    }

    /// A caller that calls any gateway that runs.
    pub fn caller(&self) -> Caller {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Caller {
            places: self.places.clone(),
            turn: NEXT.fetch_add(1, Ordering::Relaxed),
            tls: self.tls.clone(),
            client: None,
        }
    }

    /// Posts a callback about a device to the `n`th gateway, as registered. Returns the status of
    /// the answer.
    pub async fn call_back(&self, n: usize, id: &RequestId, device: usize, word: &str) -> u16 {
        let account = AccountName::parse(ACCOUNT).unwrap();
        let registered = self.upstream.sim.registered(&account).expect("the gateways register");
        let address = self.gateway(n).callbacks.expect("it takes callbacks");
        let secret = registered.url.rsplit('/').next().unwrap();
        let password = secrecy::ExposeSecret::expose_secret(&registered.password);
        let body = about(id, &crate::harness::device(device), word)
            .replace(r#""user""#, &format!("{:?}", registered.username))
            .replace(r#""secret""#, &format!("{password:?}"));
        let post =
            reqwest::Client::new().post(format!("http://{address}/{secret}")).body(body).send();
        within("a callback's answer", post).await.unwrap().status().as_u16()
    }

    /// Ends all gateways in order.
    pub async fn stop(mut self) {
        for n in 0..3 {
            self.drain(n).await;
        }
    }
}

/// A client that follows `docs/clients.md`: repeats what may be repeated, at another replica, and
/// resumes its watches.
#[derive(Debug, Clone)]
pub struct Caller {
    places: Places,
    turn: usize,
    tls: Option<Arc<ClientConfig>>,
    client: Option<Client>,
}

/// The values of the service config in `docs/clients.md`.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The time limit for connecting.
const CONNECT: Duration = Duration::from_secs(2);

impl Caller {
    /// Returns a connection to the next replica.
    async fn connect(&mut self) -> Result<Client, Status> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let places: Vec<_> = self.places.0.lock().unwrap().iter().flatten().copied().collect();
        self.turn += 1;
        let nobody = || Status::unavailable("no gateway runs");
        let place = places.get(self.turn % places.len().max(1)).ok_or_else(nobody)?;
        let client = if let Some(tls) = &self.tls {
            tls_client(*place, Arc::clone(tls))
        } else {
            let endpoint = Endpoint::from_shared(format!("http://{place}")).unwrap();
            let connected = timeout(CONNECT, endpoint.connect()).await;
            Client::new(connected.map_err(|_| nobody())?.map_err(|_| nobody())?)
        };
        Ok(self.client.insert(client).clone())
    }

    /// Makes a call with retries, as a library does.
    pub async fn call<T, F: Future<Output = Result<T, Status>>>(
        &mut self,
        mut call: impl FnMut(Client) -> F,
    ) -> Result<T, Status> {
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let result = match self.connect().await {
                Ok(client) => call(client).await,
                Err(status) => Err(status),
            };
            match result {
                Err(status) if may_be_repeated(&status) && attempt < ATTEMPTS => {
                    self.client = None;
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                result => return result,
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Watches to the end, and returns what it saw.
    pub async fn watch(mut self, id: RequestId) -> Seen {
        let mut seen = Seen::default();
        let mut pause = FIRST_PAUSE;
        loop {
            match self.watch_once(&id, &mut seen).await {
                Ok(()) => return seen,
                Err(status) => {
                    assert!(may_be_repeated(&status), "{id}: {status:?}");
                    self.client = None;
                    seen.breaks += 1;
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            if std::mem::take(&mut seen.news) {
                pause = FIRST_PAUSE;
            }
        }
    }

    async fn watch_once(&mut self, id: &RequestId, seen: &mut Seen) -> Result<(), Status> {
        let request = WatchRequestRequest {
            account_name: ACCOUNT.to_owned(),
            request_id: id.to_string(),
            resume_token: seen.token.clone(),
        };
        let mut client = self.connect().await?;
        let mut stream = client.watch_request(request).await?.into_inner();
        while let Some(message) = within("a message of a watch", stream.message()).await? {
            assert!(!message.more, "they are small");
            seen.take(id, message.event.expect("a message has an event"));
            seen.token = message.resume_token;
        }
        Ok(())
    }
}

/// Whether `docs/clients.md` says to repeat the call. tonic reports most errors of a connection
/// that broke as UNKNOWN.
fn may_be_repeated(status: &Status) -> bool {
    let of_connection = status.get_details_error_info().is_none()
        && (status.code() == Code::Unknown || is_refused_by_goaway(status));
    matches!(status.code(), Code::Unavailable | Code::Cancelled) || of_connection
}

/// Whether the call began while the server's GOAWAY arrived. The server has not processed such a
/// call, so gRPC libraries send it again. tonic returns it as INTERNAL, with the text of h2.
fn is_refused_by_goaway(status: &Status) -> bool {
    const GOAWAY_NO_ERROR: &str = "connection error received: not a result of an error";
    let sources = std::iter::successors(status.source(), |&error| error.source());
    let refused = sources.last().is_some_and(|root| root.to_string() == GOAWAY_NO_ERROR);
    refused && status.code() == Code::Internal
}

/// What a watcher saw of a request, over all breaks.
#[derive(Debug, Default)]
pub struct Seen {
    token: String,
    news: bool,
    pub breaks: usize,
    pub revision: i64,
    /// By EID.
    pub states: BTreeMap<String, DeviceState>,
    /// After the snapshot it began with.
    pub transitions: usize,
}

impl Seen {
    /// Each transition comes once and in order.
    fn take(&mut self, id: &RequestId, event: Event) {
        self.news = true;
        match event {
            Event::Snapshot(status) => {
                assert!(self.states.is_empty(), "{id}: a second snapshot");
                self.revision = status.revision;
                let of = |device: DeviceStatus| (eid(&device), device.state());
                self.states = status.devices.into_iter().map(of).collect();
            }
            Event::Change(change) => {
                assert!(
                    change.revision > self.revision,
                    "{id}: {change:?} after {}",
                    self.revision
                );
                self.revision = change.revision;
                for device in change.devices {
                    self.transitions += 1;
                    let before = self.states.insert(eid(&device), device.state());
                    assert!(
                        before.is_some_and(|before| before < device.state()),
                        "{id}: {device:?} after {before:?}"
                    );
                }
            }
            Event::Heartbeat(beat) => assert!(beat.revision >= self.revision, "{id}: {beat:?}"),
        }
    }
}

fn eid(device: &DeviceStatus) -> String {
    device.identifiers.clone().expect("a device has identifiers").eid
}

/// The longest wait for a condition.
pub const PATIENCE: Duration = DEADLINE;
