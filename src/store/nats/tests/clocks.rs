//! A server whose clock is ahead. To a gateway that reaches it through a proxy, it seems to be.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU8, Ordering},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;

/// Which times in the server's answers a proxy changes, by a year.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Shift {
    Nothing,
    /// The server's clock is ahead.
    Clock,
    /// Single messages, which are read one by one, were stored earlier.
    MessageTimes,
}

impl Shift {
    /// What stands before the year, and by how many years it changes.
    fn change(self) -> (&'static [u8], i16) {
        match self {
            Self::Nothing => (b"", 0),
            Self::Clock => (b"\"ts\":\"", 1),
            Self::MessageTimes => (b"\"time\":\"", -1),
        }
    }
}

/// Stands between a gateway and a server, and changes times in the server's answers.
#[derive(Debug)]
pub(super) struct Proxy {
    address: SocketAddr,
    shift: Arc<AtomicU8>,
}

impl Proxy {
    pub(super) async fn start(server: &NatsServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shift = Arc::new(AtomicU8::new(Shift::Nothing as u8));
        let proxy = Self { address, shift: Arc::clone(&shift) };
        let to = server.url().replace("nats://", "");
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&to).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(pass(from_client, to_server, Arc::default()));
                tokio::spawn(pass(from_server, to_client, Arc::clone(&shift)));
            }
        });
        proxy
    }

    pub(super) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    pub(super) fn shift(&self, shift: Shift) {
        self.shift.store(shift as u8, Ordering::SeqCst);
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, shift: Arc<AtomicU8>) {
    let mut held = Vec::new();
    let mut chunk = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut chunk).await {
        held.extend_from_slice(&chunk[..read]);
        let shift =
            [Shift::Nothing, Shift::Clock, Shift::MessageTimes][usize::from(shift.load(Ordering::SeqCst))];
        let passed = if shift == Shift::Nothing { held.len() } else { change_years(&mut held, shift) };
        if to.write_all(&held[..passed]).await.is_err() {
            return;
        }
        held.drain(..passed);
    }
}

/// Changes all years that are there in full. Returns how much can be passed on: a year at the end may not
/// have come in full.
fn change_years(bytes: &mut [u8], shift: Shift) -> usize {
    const YEAR: usize = 4;
    let (before, by) = shift.change();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &mut bytes[at..];
        let common = rest.len().min(before.len());
        if rest[..common] != before[..common] {
            at += 1;
            continue;
        }
        let Some(year) = rest.get_mut(before.len()..before.len() + YEAR) else { return at };
        let number: i16 = std::str::from_utf8(year).unwrap().parse().unwrap();
        // The zero time of an empty stream stays.
        if number > 1 {
            year.copy_from_slice((number + by).to_string().as_bytes());
        }
        at += before.len() + YEAR;
    }
    bytes.len()
}

/// Waits until the store cannot be used because of the clock, and checks that everything is refused.
async fn refused(store: &dyn Store) {
    let said = async {
        while !store.trouble().is_some_and(|why| why.contains("the clock of the NATS server that leads")) {
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

/// Waits until what a server with a wrong clock has deleted is noticed.
async fn lost(store: &dyn Store) -> String {
    let lost = async {
        loop {
            match store.loss() {
                Some(loss) => break loss.what,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(lost).await
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
    proxy.shift(Shift::Clock);
    refused(&store).await;
    proxy.shift(Shift::Nothing);
    timeout(store.usable()).await;
    assert_eq!(store.load(&key).await.unwrap().unwrap().value, "value");
    let after = contract::append(&store, &contract::new_log(), "after").await.unwrap();
    assert_eq!((store.loss(), after.epoch), (None, before.epoch));

    // The same, and everything that is not old enough goes.
    proxy.shift(Shift::Clock);
    admin(&server).await.get_stream("gw_keys").await.unwrap().purge().await.unwrap();
    refused(&store).await;
    proxy.shift(Shift::Nothing);
    assert_eq!(lost(&store).await, "stream gw_keys was purged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_clock_is_ahead_at_the_start_is_not_believed() {
    let server = NatsServer::start().await;
    let proxy = Proxy::start(&server).await;
    // A new store has nothing to lose.
    proxy.shift(Shift::Clock);
    let store = Nats::open(&settings(&proxy.url()), KEEP).await.unwrap();
    timeout(store.usable()).await;
    drop(store);
    proxy.shift(Shift::Nothing);
    let store = Nats::open(&settings(&proxy.url()), KEEP).await.unwrap();
    timeout(store.usable()).await;
    let before = contract::append(&store, &contract::new_log(), "before").await.unwrap();
    timeout(store.close()).await;

    proxy.shift(Shift::Clock);
    admin(&server).await.get_stream("gw_keys").await.unwrap().purge().await.unwrap();
    let written = last_sequence(&server, "gw_cells").await;
    let store = Nats::open(&settings(&proxy.url()), KEEP).await.unwrap();
    refused(&store).await;
    assert_eq!(last_sequence(&server, "gw_cells").await, written, "the record was written");
    proxy.shift(Shift::Nothing);
    assert_eq!(lost(&store).await, "stream gw_keys was purged");
    store.accept_loss(false).await.unwrap().unwrap();
    let after = contract::append(&store, &contract::new_log(), "after").await.unwrap();
    assert!(after.epoch > before.epoch);
}
