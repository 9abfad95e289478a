//! Servers that crash, hang or have wrong streams, and stores that are opened without a server.

use std::{collections::HashSet, net::SocketAddr};

use async_nats::jetstream::stream::DiscardPolicy;
use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;

/// The positions and events that writers got acknowledged.
type Acknowledged = Vec<(Position, String)>;

/// Appends events until it is stopped. Repeats with the same id what was not acknowledged.
async fn write(store: Arc<dyn Store>, log: LogName, stop: CancellationToken) -> Acknowledged {
    let mut acknowledged = Vec::new();
    while !stop.is_cancelled() {
        let (id, event) = (Uuid::new_v4(), format!("{}/{}", log.id, acknowledged.len()));
        loop {
            match store.append(&log, id, Bytes::from(event.clone())).await {
                Ok(position) => break acknowledged.push((position, event)),
                Err(StoreError::Unavailable(_) | StoreError::UnknownOutcome(_)) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    acknowledged
}

/// Runs writers and a follower during `trouble`. Every acknowledged event must be stored once, at
/// the acknowledged position.
pub(super) async fn nothing_is_lost(store: Arc<dyn Store>, trouble: impl AsyncFnOnce()) {
    const WRITERS: usize = 8;
    let stop = CancellationToken::new();
    let logs: Vec<_> = (0..WRITERS).map(|_| contract::new_log()).collect();
    let writers: Vec<_> = logs
        .iter()
        .map(|log| tokio::spawn(write(Arc::clone(&store), log.clone(), stop.clone())))
        .collect();
    let mut followed = store.follow(None);
    trouble().await;
    stop.cancel();

    let mut expected = HashSet::new();
    for (log, written) in logs.iter().zip(timeout(join_all(writers)).await) {
        let written = written.unwrap();
        assert!(!written.is_empty(), "a writer wrote nothing");
        let entries = contract::read_to_end(&*store, log).await.unwrap();
        let read: Acknowledged = entries
            .iter()
            .map(|entry| (entry.position, String::from_utf8_lossy(&entry.event).into_owned()))
            .collect();
        assert_eq!(read, written);
        expected.extend(written);
    }
    let mut last = 0;
    while !expected.is_empty() {
        match contract::next(&mut followed).await {
            Some(Followed::Event(log, entry)) => {
                assert!(entry.position.sequence > last, "{} after {last}", entry.position.sequence);
                last = entry.position.sequence;
                if !logs.contains(&log) {
                    continue;
                }
                let event = String::from_utf8_lossy(&entry.event).into_owned();
                assert!(
                    expected.remove(&(entry.position, event)),
                    "{entry:?} was not acknowledged"
                );
            }
            Some(Followed::CaughtUp(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_loses_nothing() {
    let mut server = NatsServer::start().await;
    let store = open(&server).await;
    let trouble = async || {
        for _ in 0..2 {
            timeout(written(&*store)).await;
            server.kill();
            server.restart().await;
        }
        timeout(written(&*store)).await;
    };
    nothing_is_lost(Arc::clone(&store), trouble).await;
}

/// Waits until a write succeeds.
pub(super) async fn written(store: &dyn Store) {
    while contract::append(store, &contract::new_log(), "probe").await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The answers of a server that hangs are late or lost; the event and the swap are stored once.
#[tokio::test]
async fn a_frozen_server_is_waited_for() {
    let (server, store) = new().await;
    let log = contract::new_log();
    let cell = CellName::permanent("cell");
    contract::append(&*store, &log, "before").await.unwrap();
    let Swap::Swapped(before) =
        store.swap(&cell, None, Bytes::from_static(b"before")).await.unwrap()
    else {
        panic!("a new cell is not new");
    };
    server.freeze();
    let append = contract::append(&*store, &log, "frozen");
    let swap = store.swap(&cell, Some(before), Bytes::from_static(b"after"));
    let thaw = async {
        // Longer than the time limit for an answer, shorter than that of the connection.
        tokio::time::sleep(link::ANSWER + Duration::from_millis(500)).await;
        server.thaw();
    };
    let (position, swapped, ()) = timeout(async { tokio::join!(append, swap, thaw) }).await;
    let entries = contract::read_to_end(&*store, &log).await.unwrap();
    assert_eq!(contract::texts(&entries), ["before", "frozen"]);
    assert_eq!(entries[1].position, position.unwrap());
    let held = store.load(&cell).await.unwrap().unwrap();
    assert_eq!(held.value, &b"after"[..]);
    assert_eq!(swapped.unwrap(), Swap::Swapped(held.version));
}

/// Without NATS a store opens, gives the reason, refuses everything soon, and recovers.
#[tokio::test]
async fn it_opens_without_nats_and_recovers() {
    let mut server = NatsServer::stopped_with("");
    let store = Nats::open(&settings(&server.url()), KEEP).await.unwrap();
    let log = contract::new_log();
    let mut followed = store.follow(None);
    for _ in 0..2 {
        let refused = timeout(contract::append(&store, &log, "early")).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        let refused = timeout(store.load(&CellName::permanent("cell"))).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    }
    let why = store.trouble().expect("there is no server");
    assert!(why.starts_with("not connected to NATS"), "{why}");

    server.restart().await;
    timeout(store.usable()).await;
    assert_eq!(store.trouble(), None);
    let position = contract::append(&store, &log, "now").await.unwrap();
    let event = async {
        loop {
            match contract::next(&mut followed).await {
                Some(Followed::CaughtUp(_)) => {}
                event => break event,
            }
        }
    };
    let Some(Followed::Event(of, entry)) = timeout(event).await else { panic!("no event") };
    assert_eq!((&of, entry.position), (&log, position));

    server.kill();
    let trouble = async {
        while store.trouble().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(trouble).await;
    server.restart().await;
    timeout(store.usable()).await;
    assert_eq!(contract::read_to_end(&store, &log).await.unwrap(), [entry]);
}

/// A follower does not wait for events that were deleted.
#[tokio::test]
async fn a_follower_catches_up_although_the_last_events_are_gone() {
    let (server, store) = new().await;
    let log = contract::new_log();
    let kept = contract::append(&*store, &log, "kept").await.unwrap();
    let gone = contract::append(&*store, &log, "gone").await.unwrap();
    let stream = admin(&server).await.get_stream("gw_events").await.unwrap();
    assert!(stream.delete_message(gone.sequence).await.unwrap());
    let mut followed = store.follow(None);
    let (events, caught_up) = timeout(contract::catch_up(&mut followed)).await;
    assert_eq!(events.into_iter().map(|(_, entry)| entry.position).collect::<Vec<_>>(), [kept]);
    assert_eq!(caught_up, gone);
    let next = contract::append(&*store, &log, "next").await.unwrap();
    let Some(Followed::Event(_, entry)) = contract::next(&mut followed).await else {
        panic!("no event")
    };
    assert_eq!(entry.position, next);
}

/// A stream that would lose events is refused with a reason, and used once it is corrected.
#[tokio::test]
async fn a_stream_that_loses_events_is_refused() {
    let server = NatsServer::start().await;
    let settings = settings(&server.url());
    let admin = admin(&server).await;
    let StreamConfigs([good, ..]) =
        StreamConfigs::new(&NatsNames::new(&settings.prefix), &settings, KEEP);
    let bad =
        jetstream::stream::Config { discard: DiscardPolicy::Old, max_messages: 5, ..good.clone() };
    admin.create_stream(bad).await.unwrap();

    let store = Nats::open(&settings, KEEP).await.unwrap();
    let refused = async {
        loop {
            match store.trouble() {
                Some(why) if why.starts_with("stream gw_events: ") => break why,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let why = timeout(refused).await;
    assert_eq!(why, "stream gw_events: discard is Old, must be New; max_messages is 5, must be -1");
    let refused = contract::append(&store, &contract::new_log(), "lost").await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");

    admin.update_stream(&good).await.unwrap();
    timeout(store.usable()).await;
    contract::append(&store, &contract::new_log(), "kept").await.unwrap();
}

#[tokio::test]
async fn servers_that_take_no_large_events_are_refused() {
    let server = NatsServer::start_with("max_payload: 500000").await;
    let store = Nats::open(&settings(&server.url()), KEEP).await.unwrap();
    let refused = async {
        while !store.trouble().is_some_and(|why| why.contains("set max_payload to at least")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(refused).await;
}

/// NATS allows a thousand consumers. A read makes none.
#[tokio::test]
async fn reads_and_followers_leave_no_consumers() {
    let (server, store) = new().await;
    let log = contract::new_log();
    contract::append(&*store, &log, "event").await.unwrap();
    let mut followed = store.follow(None);
    contract::catch_up(&mut followed).await;
    for _ in 0..1_100 {
        assert_eq!(store.read(&log, 0, 10).await.unwrap().len(), 1);
    }
    let stream = admin(&server).await.get_stream("gw_events").await.unwrap();
    assert_eq!(stream.cached_info().state.consumer_count, 1);
}

/// A follower delivers large events, and a read returns them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_events_are_followed_and_read() {
    const EVENTS: usize = 60;
    let (_server, store) = new().await;
    let log = contract::new_log();
    let mut written = Vec::new();
    for n in 0..EVENTS {
        let small = n % 2 == 0;
        let event = vec![b'x'; if small { 10 } else { MAX_EVENT_BYTES }];
        written.push(store.append(&log, Uuid::new_v4(), event.into()).await.unwrap());
    }
    let (events, _) = contract::catch_up(&mut store.follow(None)).await;
    let positions = |entries: &mut dyn Iterator<Item = Entry>| {
        entries.map(|entry| entry.position).collect::<Vec<_>>()
    };
    assert_eq!(positions(&mut events.into_iter().map(|(_, entry)| entry)), written);
    let entries = contract::read_to_end(&*store, &log).await.unwrap();
    assert_eq!(positions(&mut entries.into_iter()), written);
}

/// A slow link from a server, of about 1.4 MB/s. Returns its address.
async fn slow_link(server: SocketAddr) -> SocketAddr {
    const PIECE_BYTES: usize = 64 * 1024;
    const PER_KIB: Duration = Duration::from_micros(700);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = TcpStream::connect(server).await else { continue };
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            tokio::spawn(async move {
                let mut piece = vec![0; PIECE_BYTES];
                while let Ok(length @ 1..) = from_server.read(&mut piece).await {
                    if to_client.write_all(&piece[..length]).await.is_err() {
                        break;
                    }
                    tokio::time::sleep(PER_KIB * u32::try_from(length / 1024).unwrap()).await;
                }
            });
        }
    });
    address
}

/// A page may take longer than the time limit of an answer if none of its messages does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_over_a_slow_link_is_read() {
    const EVENTS: usize = 4;
    let (server, store) = new().await;
    let log = contract::new_log();
    for _ in 0..EVENTS {
        store.append(&log, Uuid::new_v4(), vec![b'x'; MAX_EVENT_BYTES].into()).await.unwrap();
    }
    let address = server.url().trim_start_matches("nats://").parse().unwrap();
    let distant = slow_link(address).await;
    let distant = Nats::open(&settings(&format!("nats://{distant}")), KEEP).await.unwrap();
    timeout(distant.usable()).await;
    let began = Instant::now();
    let read = timeout(distant.read(&log, 0, EVENTS)).await.unwrap();
    assert!(began.elapsed() > link::ANSWER, "the link is not slow: {:?}", began.elapsed());
    assert_eq!(read.len(), EVENTS);
}

/// A cell may be as large as an event, and the same id in two logs is two events.
#[tokio::test]
async fn large_cells_and_shared_ids() {
    let (_server, store) = new().await;
    let value = Bytes::from(vec![b'x'; MAX_EVENT_BYTES]);
    let cell = CellName::retained("a key/with anything in it");
    let swapped = store.swap(&cell, None, value.clone()).await.unwrap();
    let held = store.load(&cell).await.unwrap().unwrap();
    assert_eq!(swapped, Swap::Swapped(held.version));
    assert_eq!(held.value, value);
    let too_large = store.swap(&cell, None, vec![0; MAX_EVENT_BYTES + 1].into()).await;
    assert!(matches!(too_large, Err(StoreError::TooLarge(_))), "{too_large:?}");

    let (logs, id) = ([contract::new_log(), contract::new_log()], Uuid::new_v4());
    for log in &logs {
        store.append(log, id, Bytes::from_static(b"event")).await.unwrap();
        assert_eq!(contract::read_to_end(&*store, log).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn prefixes_keep_gateways_apart() {
    let (server, store) = new().await;
    let settings = NatsConfig { prefix: "other".to_owned(), ..settings(&server.url()) };
    let other = Nats::open(&settings, KEEP).await.unwrap();
    timeout(other.usable()).await;
    let log = contract::new_log();
    contract::append(&*store, &log, "event").await.unwrap();
    assert_eq!(other.read(&log, 0, 10).await.unwrap(), []);
    assert_eq!(contract::catch_up(&mut other.follow(None)).await.0, []);
}

#[tokio::test]
async fn a_closed_store_says_so_and_its_followers_end() {
    let (_server, store) = new().await;
    let mut followed = store.follow(None);
    contract::catch_up(&mut followed).await;
    timeout(store.close()).await;
    assert_eq!(contract::next(&mut followed).await, None);
    let refused = contract::append(&*store, &contract::new_log(), "late").await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert!(store.load(&CellName::permanent("cell")).await.is_err());
}
