//! Promise 10 of the README: in every state `/readyz`, the health service, `status`, the log
//! and the error of a caller agree with each other.

mod guards;

use std::{fs, path::PathBuf, time::Duration};

use thingspace_gateway::{
    config::Config,
    simulator::{Endpoint, Fault, Gate, What, When},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    control::json,
    harness::*,
    losses::{delete_consumers, users},
    nats_server::NatsServer,
};

/// What every source says in a state.
struct Told {
    /// The state, for the message of a failure.
    state: &'static str,
    /// Calls can be answered.
    ready: bool,
    /// Logins can be made.
    logins: bool,
    /// A text in `/readyz` and in `waits_for` of `status`, if the gateway is not ready.
    waits_for: &'static str,
    /// What `status` says that a gateway that is ready cannot do; empty: it can do everything.
    limited: &'static str,
    /// A text in the line of `status` about the credentials.
    login: &'static str,
    /// The reason that a caller who orders reads; empty: the order is accepted.
    reason: &'static str,
    /// A text in exactly one ERROR of the log; empty: there is no ERROR.
    error: &'static str,
}

/// The gateway works.
const WELL: Told = Told {
    state: "well",
    ready: true,
    logins: true,
    waits_for: "",
    limited: "",
    login: "logged in",
    reason: "",
    error: "",
};

/// A gateway under observation.
struct Observed {
    upstream: Upstream,
    process: Process,
    config: Config,
    file: PathBuf,
}

impl Observed {
    async fn start(upstream: Upstream, config: Config) -> Self {
        let process = Process::serve(&config, upstream.dir.path());
        let file = upstream.dir.path().join("gateway.toml");
        let observed = Self { upstream, process, config, file };
        observed.order("first").await.unwrap();
        observed
    }

    async fn embedded() -> Self {
        let upstream = Upstream::manual().await;
        let mut config = upstream.quiet();
        config.thingspace.login_backoff_first = Duration::from_millis(100);
        Self::start(upstream, config).await
    }

    /// The same gateway after it was stopped and something was changed.
    async fn restarted(self, change: impl AsyncFnOnce(&Config)) -> Self {
        let Self { upstream, process, config, file } = self;
        process.terminate();
        assert!(process.wait().await.0.success());
        change(&config).await;
        let process = Process::launch(&config, upstream.dir.path());
        Self { upstream, process, config, file }
    }

    async fn order(&self, key: &str) -> Result<(), tonic::Status> {
        place(&mut self.process.client().await, key, [0]).await.map(drop)
    }

    async fn serves(&self, service: &str) -> Option<bool> {
        // During a drain there are no new connections.
        let endpoint =
            tonic::transport::Endpoint::from_shared(format!("http://{}", self.process.address));
        let channel = endpoint.unwrap().connect().await.ok()?;
        let mut client = HealthClient::new(channel);
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = within("health", client.check(request)).await.ok()?.into_inner();
        Some(answer.status() == ServingStatus::Serving)
    }

    async fn readyz(&self) -> (u16, String) {
        let url = format!("http://{}/readyz", self.process.admin);
        let answer = within("/readyz", reqwest::get(url)).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// Waits until all sources agree, then ends the gateway and checks its log.
    async fn says(self, told: &Told) {
        let state = told.state;
        eventually(&format!("{state}: all sources agree"), async || self.agrees(told).await).await;
        let key = format!("key of {state}");
        if state != "draining" {
            let reason = match self.order(&key).await {
                Ok(()) => String::new(),
                Err(status) => reason(&status),
            };
            assert_eq!(reason, told.reason, "{state}: a caller");
            assert!(self.agrees(told).await, "{state}: all sources agree after a call");
        }
        self.process.terminate();
        let (_, log) = self.process.wait().await;
        let errors: Vec<_> =
            log.iter().filter(|line| line.contains("\"level\":\"ERROR\"")).collect();
        if told.error.is_empty() {
            assert!(errors.is_empty(), "{state}: {errors:#?}");
        } else {
            assert!(errors.len() == 1 && errors[0].contains(told.error), "{state}: {errors:#?}");
        }
    }

    async fn agrees(&self, told: &Told) -> bool {
        let (code, text) = self.readyz().await;
        let status = json(&self.file, &["status"]).await;
        let login = &status["logins"][0];
        let waits_for = status["waits_for"].as_str().unwrap_or_default();
        let probes =
            if told.ready { code == 200 } else { code == 503 && text.contains(told.waits_for) };
        let operators = status["ready"] == told.ready
            && (told.ready == status["waits_for"].is_null())
            && waits_for.contains(told.waits_for)
            && status["limited"].is_null() == told.limited.is_empty()
            && status["limited"].as_str().unwrap_or_default().contains(told.limited)
            && login["healthy"] == told.logins
            && login["standing"].as_str().unwrap().contains(told.login);
        let health = match (self.serves("").await, self.serves("thingspace.login/test").await) {
            (Some(all), Some(logins)) => all == told.ready && logins == told.logins,
            _ => told.state == "draining",
        };
        probes && operators && health
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_is_well() {
    Observed::embedded().await.says(&WELL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_logins_are_stopped_while_a_session_lives() {
    let observed = Observed::embedded().await;
    // The new file is tried before the old session is dropped.
    fs::write(observed.upstream.dir.path().join("password"), "wrong").unwrap();
    let told = Told {
        state: "logins stopped, session alive",
        logins: false,
        login: "rejected",
        error: "rejected",
        ..WELL
    };
    observed.says(&told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_password_file_is_missing() {
    let observed = Observed::embedded().await;
    fs::remove_file(observed.upstream.dir.path().join("password")).unwrap();
    observed.upstream.sim.expire_sessions();
    let reason = "UPSTREAM_CREDENTIALS_UNAVAILABLE";
    eventually("a caller is told", async || {
        observed
            .order("missing")
            .await
            .is_err_and(|status| crate::harness::reason(&status) == reason)
    })
    .await;
    let told = Told {
        state: "password file missing",
        logins: false,
        login: "/password",
        reason,
        error: "/password",
        ..WELL
    };
    observed.says(&told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_store_is_removed() {
    let observed = Observed::embedded().await;
    fs::remove_file(&observed.config.store.path).unwrap();
    let told = Told {
        state: "store removed",
        ready: false,
        waits_for: "was removed while the gateway was running",
        reason: "STORE_UNAVAILABLE",
        error: "was removed while the gateway was running",
        ..WELL
    };
    observed.says(&told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_stream_is_missing() {
    let (upstream, nats) = (Upstream::manual().await, NatsServer::start().await);
    let config = upstream.replica(&upstream.quiet(), &nats.url(), 1, 0);
    let observed = Observed::start(upstream, config).await;
    let admin = async_nats::jetstream::new(async_nats::connect(nats.url()).await.unwrap());
    admin.delete_stream("gw_keys").await.unwrap();
    let told = Told {
        state: "stream missing",
        ready: false,
        waits_for: "stream gw_keys was deleted",
        reason: "STORE_UNAVAILABLE",
        error: "stream gw_keys was deleted",
        ..WELL
    };
    observed.says(&told).await;
}

/// Known states can still be returned, so the gateway stays ready. `status` says what it cannot do,
/// and since when.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_nats_is_unavailable() {
    let (upstream, mut nats) = (Upstream::manual().await, NatsServer::start().await);
    let config = upstream.replica(&upstream.quiet(), &nats.url(), 1, 0);
    let observed = Observed::start(upstream, config).await;
    nats.kill();
    let told = Told {
        state: "NATS away",
        limited: "orders are refused while the store cannot be used: not connected to NATS",
        reason: "STORE_UNAVAILABLE",
        ..WELL
    };
    observed.says(&told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_store_is_full() {
    const BYTES: u64 = 16 << 20;
    let (upstream, nats) = (Upstream::manual().await, NatsServer::start().await);
    let mut config = upstream.replica(&upstream.quiet(), &nats.url(), 1, 0);
    config.store.nats.max_bytes = BYTES;
    let observed = Observed::start(upstream, config).await;
    let admin = async_nats::jetstream::new(async_nats::connect(nats.url()).await.unwrap());
    for _ in 0..BYTES * 9 / 10 / 900_000 {
        let ballast = vec![0; 900_000].into();
        admin.publish("gw.ev.ballast", ballast).await.unwrap().await.unwrap();
    }
    let told = Told {
        state: "store full",
        limited: "new orders are refused: the stream of events holds",
        reason: "STORE_FULL",
        error: "the store is full",
        ..WELL
    };
    observed.says(&told).await;
}

/// The servers answer, but acknowledge no write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_disk_of_nats_is_full() {
    let (upstream, nats) = (Upstream::manual().await, NatsServer::start().await);
    let config = upstream.replica(&upstream.quiet(), &nats.url(), 1, 0);
    let observed = Observed::start(upstream, config).await;
    nats.fill_disk();
    observed.order("not stored").await.unwrap_err();
    let told = Told {
        state: "disk of NATS full",
        limited: "the NATS servers answer, but do not acknowledge what they should store",
        reason: "STORE_FULL",
        error: "the store is full",
        ..WELL
    };
    observed.says(&told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_follower_stalls() {
    let nats = NatsServer::start_with(&users("")).await;
    let upstream = Upstream::manual().await;
    let config = upstream.replica(&upstream.quiet(), &nats.url(), 1, 0);
    let observed = Observed::start(upstream, config).await;
    let client = observed.process.client().await;
    nats.reload_with(&users("\"$JS.API.CONSUMER.>\""));
    delete_consumers(&nats).await;
    // An event that the follower does not read.
    eventually_ok("an order is stored", async || place(&mut client.clone(), "unseen", [1]).await)
        .await;
    eventually("it is noticed", async || observed.readyz().await.0 == 503).await;
    let told = Told {
        state: "follower stands still",
        ready: false,
        waits_for: "the store is no longer followed",
        error: "the store is no longer followed",
        ..WELL
    };
    observed.says(&told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_it_drains() {
    let observed = Observed::embedded().await;
    let gate = Gate::default();
    observed.upstream.sim.inject(Fault::once(
        Endpoint::Download,
        When::BeforeEffect,
        What::Hold(gate.clone()),
    ));
    let mut client = observed.process.client().await;
    let order = tokio::spawn(async move { place(&mut client, "held", [1]).await });
    observed
        .upstream
        .sim
        .wait_until(DEADLINE, |ledger| ledger.in_flight(Endpoint::Download) == 1)
        .await;
    observed.process.terminate();
    let told = Told { state: "draining", ready: false, waits_for: "draining", ..WELL };
    eventually("all sources report the drain", async || observed.agrees(&told).await).await;
    gate.open();
    order.await.unwrap().unwrap();
    observed.process.wait().await;
}
