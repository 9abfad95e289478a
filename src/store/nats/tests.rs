mod clocks;
mod cluster;
mod credentials;
mod faults;
mod losses;

use async_nats::jetstream;
use tempfile::TempDir;

use super::*;
use crate::store::{MAX_EVENT_BYTES, contract};
use test_support::nats_server::{NatsCluster, NatsServer};

const KEEP: Duration = Duration::from_hours(1);

/// The time limit of what must happen.
const DEADLINE: Duration = Duration::from_secs(30);

/// Settings for a single server.
fn settings(url: &str) -> NatsConfig {
    let mut settings = crate::config::Config::defaults().store.nats;
    url.clone_into(&mut settings.url);
    settings.replicas = 1;
    settings
}

/// A server, and a store on it that can be used.
async fn new() -> (NatsServer, Arc<dyn Store>) {
    let server = NatsServer::start().await;
    let store = open(&server).await;
    (server, store)
}

async fn open(server: &NatsServer) -> Arc<dyn Store> {
    let store = Nats::open(&settings(&server.url()), KEEP).await.unwrap();
    timeout(store.usable()).await;
    Arc::new(store)
}

/// Waits until a store can be used.
trait Usable {
    async fn usable(&self);
}

impl<S: Store + ?Sized> Usable for S {
    async fn usable(&self) {
        while self.trouble().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn timeout<F: Future>(what: F) -> F::Output {
    tokio::time::timeout(DEADLINE, what).await.expect("it did not happen in time")
}

/// Waits until the store reports a loss, and returns what was lost.
async fn noticed_loss(store: &dyn Store) -> String {
    let noticed = async {
        loop {
            match store.loss() {
                Some(loss) => break loss.what,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(noticed).await
}

/// A connection of its own, which shares nothing with the store.
async fn admin(server: &NatsServer) -> jetstream::Context {
    jetstream::new(async_nats::connect(server.url()).await.unwrap())
}

#[tokio::test]
async fn order() {
    let (_server, store) = new().await;
    contract::order(&*store).await;
}

#[tokio::test]
async fn pages() {
    let (_server, store) = new().await;
    contract::pages(&*store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_your_writes() {
    let (_server, store) = new().await;
    contract::read_your_writes(&*store).await;
}

#[tokio::test]
async fn same_id() {
    let (_server, store) = new().await;
    contract::same_id(&*store).await;
}

#[tokio::test]
async fn largest_event() {
    let (_server, store) = new().await;
    contract::largest_event(&*store).await;
}

#[tokio::test]
async fn durable() {
    let server = NatsServer::start().await;
    contract::durable(async || open(&server).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follow_all() {
    let (_server, store) = new().await;
    contract::follow_all(store, contract::LearnsEnd::Later).await;
}

#[tokio::test]
async fn follow_from() {
    let (_server, store) = new().await;
    contract::follow_from(&*store).await;
}

#[tokio::test]
async fn replaced() {
    let (_server, store) = new().await;
    contract::replaced(&*store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swap_race() {
    let (_server, store) = new().await;
    contract::swap_race(store).await;
}

#[tokio::test]
async fn swap_conflict() {
    let (_server, store) = new().await;
    contract::swap_conflict(&*store).await;
}

#[tokio::test]
async fn too_old() {
    let server = NatsServer::start().await;
    let store = Nats::open(&settings(&server.url()), Duration::from_secs(1)).await.unwrap();
    timeout(store.usable()).await;
    let log = contract::new_log();
    let expired = contract::append(&store, &log, "expired").await.unwrap();
    contract::append(&store, &log, "expired, too").await.unwrap();
    let admin = admin(&server).await;
    let expire = async {
        while admin.get_stream("gw_events").await.unwrap().cached_info().state.messages > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(expire).await;
    contract::too_old(&store, expired).await;
}

/// A stream at its limit takes events again after a purge.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full() {
    const BYTES: u64 = 16 * 1024 * 1024;
    let server = NatsServer::start().await;
    let settings = NatsConfig { max_bytes: BYTES, ..settings(&server.url()) };
    let store = Nats::open(&settings, KEEP).await.unwrap();
    timeout(store.usable()).await;
    let other = contract::new_log();
    let fill = async || {
        for _ in 0..BYTES / 1_000_000 - 4 {
            store.append(&other, Uuid::new_v4(), vec![0; MAX_EVENT_BYTES].into()).await.unwrap();
        }
    };
    let free = async || {
        let stream = admin(&server).await.get_stream("gw_events").await.unwrap();
        stream.purge().filter(store.core.names.log(&other)).await.unwrap();
    };
    contract::full(&store, fill, free).await;
}
