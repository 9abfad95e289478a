//! A server whose clock is ahead. A proxy between gateway and server changes the times.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;

/// The text before a server's time in its answers.
const BEFORE_TIME: &[u8] = b"\"ts\":\"";

/// A proxy that can add a year to the server's time.
#[derive(Debug)]
struct Proxy {
    address: SocketAddr,
    ahead: Arc<AtomicBool>,
}

impl Proxy {
    async fn start(server: &NatsServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ahead = Arc::new(AtomicBool::new(false));
        let proxy = Self { address, ahead: Arc::clone(&ahead) };
        let to = server.url().replace("nats://", "");
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&to).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(pass(from_client, to_server, Arc::default()));
                tokio::spawn(pass(from_server, to_client, Arc::clone(&ahead)));
            }
        });
        proxy
    }

    fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    fn be_ahead(&self, ahead: bool) {
        self.ahead.store(ahead, Ordering::SeqCst);
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    ahead: Arc<AtomicBool>,
) {
    let mut held = Vec::new();
    let mut chunk = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut chunk).await {
        held.extend_from_slice(&chunk[..read]);
        let passed = if ahead.load(Ordering::SeqCst) { add_years(&mut held) } else { held.len() };
        if to.write_all(&held[..passed]).await.is_err() {
            return;
        }
        held.drain(..passed);
    }
}

/// Adds one to all complete years. Returns how many bytes can be passed on: a year at the end may
/// be incomplete.
fn add_years(bytes: &mut [u8]) -> usize {
    const YEAR: usize = 4;
    let mut at = 0;
    while at < bytes.len() {
        let rest = &mut bytes[at..];
        let common = rest.len().min(BEFORE_TIME.len());
        if rest[..common] != BEFORE_TIME[..common] {
            at += 1;
            continue;
        }
        let Some(year) = rest.get_mut(BEFORE_TIME.len()..BEFORE_TIME.len() + YEAR) else {
            return at;
        };
        let number: i16 = std::str::from_utf8(year).unwrap().parse().unwrap();
        // The zero time of an empty stream stays.
        if number > 1 {
            year.copy_from_slice((number + 1).to_string().as_bytes());
        }
        at += BEFORE_TIME.len() + YEAR;
    }
    bytes.len()
}

/// Waits until the store cannot be used because of the clock, and checks that it refuses
/// everything.
async fn refused(store: &dyn Store) {
    let said = async {
        while !store
            .trouble()
            .is_some_and(|why| why.contains("the clock of the NATS server that leads"))
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(said).await;
    let appended = contract::append(store, &contract::new_log(), "refused").await;
    assert!(matches!(appended, Err(StoreError::Unavailable(_))), "{appended:?}");
    let loaded = store.load(&CellName::retained("key")).await;
    assert!(matches!(loaded, Err(StoreError::Unavailable(_))), "{loaded:?}");
    let accepted = store.accept_loss(false).await;
    assert!(matches!(accepted, Err(StoreError::Unavailable(_))), "{accepted:?}");
    assert_eq!(store.loss(), None);
}

async fn last_sequence(server: &NatsServer, stream: &str) -> u64 {
    admin(server).await.get_stream(stream).await.unwrap().cached_info().state.last_sequence
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_clock_jumps_ahead_is_not_believed() {
    let server = NatsServer::start().await;
    let proxy = Proxy::start(&server).await;
    let store = Nats::open(&settings(&proxy.url()), KEEP).await.unwrap();
    timeout(store.usable()).await;
    let key = CellName::retained("key");
    store.swap(&key, None, Bytes::from_static(b"value")).await.unwrap();
    let before = contract::append(&store, &contract::new_log(), "before").await.unwrap();
    proxy.be_ahead(true);
    refused(&store).await;
    proxy.be_ahead(false);
    timeout(store.usable()).await;
    assert_eq!(store.load(&key).await.unwrap().unwrap().value, "value");
    let after = contract::append(&store, &contract::new_log(), "after").await.unwrap();
    assert_eq!((store.loss(), after.epoch), (None, before.epoch));

    // The same, and the server deletes what it takes for old.
    proxy.be_ahead(true);
    admin(&server).await.get_stream("gw_keys").await.unwrap().purge().await.unwrap();
    refused(&store).await;
    proxy.be_ahead(false);
    assert_eq!(noticed_loss(&store).await, "stream gw_keys was purged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_clock_is_ahead_at_the_start_is_not_believed() {
    let server = NatsServer::start().await;
    let proxy = Proxy::start(&server).await;
    // A new store has nothing to lose.
    proxy.be_ahead(true);
    let store = Nats::open(&settings(&proxy.url()), KEEP).await.unwrap();
    timeout(store.usable()).await;
    drop(store);
    proxy.be_ahead(false);
    let store = Nats::open(&settings(&proxy.url()), KEEP).await.unwrap();
    timeout(store.usable()).await;
    let before = contract::append(&store, &contract::new_log(), "before").await.unwrap();
    timeout(store.close()).await;

    proxy.be_ahead(true);
    admin(&server).await.get_stream("gw_keys").await.unwrap().purge().await.unwrap();
    let written = last_sequence(&server, "gw_cells").await;
    let store = Nats::open(&settings(&proxy.url()), KEEP).await.unwrap();
    refused(&store).await;
    assert_eq!(last_sequence(&server, "gw_cells").await, written, "the record was written");
    proxy.be_ahead(false);
    assert_eq!(noticed_loss(&store).await, "stream gw_keys was purged");
    store.accept_loss(false).await.unwrap().unwrap();
    let after = contract::append(&store, &contract::new_log(), "after").await.unwrap();
    assert!(after.epoch > before.epoch);
}
