//! Streams that were deleted, purged, or put back to an older copy. The store notices the loss,
//! refuses everything, makes no stream, and continues once an operator has accepted the loss.

mod cells;
mod peers;
mod recent;
mod records;

use futures_util::{StreamExt as _, future::join_all};

use super::{faults::written, *};
use crate::store::{CellLife, Lost};

const STREAMS: [&str; 3] = ["gw_events", "gw_cells", "gw_keys"];

/// A server's configuration with one user, who may not publish or subscribe to these subjects.
fn user_without(publish: &str, subscribe: &str) -> String {
    format!(
        "authorization {{ users: [ {{ user: gw, password: pw, permissions: {{ \
         publish: {{ deny: [{publish}] }}, subscribe: {{ deny: [{subscribe}] }} }} }} ] }}\n\
         no_auth_user: gw"
    )
}

/// Writes to each stream. Returns the position of the event.
async fn write(store: &dyn Store, name: &str) -> Position {
    for life in [CellLife::Permanent, CellLife::Retained] {
        let cell = CellName { life, name: name.to_owned() };
        let swapped = store.swap(&cell, None, Bytes::from_static(b"value")).await.unwrap();
        assert!(matches!(swapped, Swap::Swapped(_)), "{swapped:?}");
    }
    contract::append(store, &LogName::order(name), name).await.unwrap()
}

/// Waits until the store reports a loss, and checks that it refuses everything.
async fn lost(store: &dyn Store) -> String {
    let what = noticed_loss(store).await;
    assert!(
        store.trouble().is_some_and(|trouble| trouble.contains(&what)),
        "{:?}",
        store.trouble()
    );
    let refused = contract::append(store, &contract::new_log(), "late").await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    for cell in [CellName::permanent("a"), CellName::retained("a")] {
        let refused = store.load(&cell).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        let refused = store.swap(&cell, None, Bytes::new()).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    }
    what
}

/// Accepts the loss as an operator does: a new epoch begins, in which everything works.
async fn accept(store: &dyn Store, before: Position) {
    let what = store.loss().map(|loss| loss.what);
    let accepted = store.accept_loss(false).await.unwrap().map(|loss| loss.what);
    assert_eq!(accepted, what);
    assert_eq!((store.loss(), store.trouble()), (None, None));
    assert_eq!(store.accept_loss(false).await.unwrap(), None, "there is nothing left to accept");
    let after = contract::append(store, &contract::new_log(), "after").await.unwrap();
    assert!(after.epoch > before.epoch, "{after:?} {before:?}");
    let mut followed = store.follow(Some(before));
    assert_eq!(contract::next(&mut followed).await, Some(Followed::Lost(Lost::Replaced)));
}

async fn close(store: Arc<dyn Store>) {
    timeout(store.close()).await;
}

async fn reopen(server: &NatsServer) -> Arc<dyn Store> {
    Arc::new(Nats::open(&settings(&server.url()), KEEP).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_stream_is_not_made_again_before_somebody_accepts_it() {
    let case = async |stream: &str| {
        let (server, store) = new().await;
        let before = write(&*store, "a").await;
        let since = store.remembers_since().unwrap();
        let mut followed = store.follow(Some(before));
        contract::catch_up(&mut followed).await;
        let admin = admin(&server).await;
        admin.delete_stream(stream).await.unwrap();
        assert_eq!(lost(&*store).await, format!("stream {stream} was deleted"));
        assert!(admin.get_stream(stream).await.is_err(), "{stream} was made again");
        // A gateway that starts now does not make it, either.
        let second = reopen(&server).await;
        assert_eq!(lost(&*second).await, format!("stream {stream} was deleted"));
        assert!(admin.get_stream(stream).await.is_err(), "{stream} was made again");

        accept(&*store, before).await;
        assert_eq!(contract::next(&mut followed).await, Some(Followed::Lost(Lost::Replaced)));
        assert!(store.remembers_since().unwrap() > since);
        assert_eq!(store.has_lost_cells(), stream == "gw_cells");
        // The other gateway notices it.
        timeout(second.usable()).await;
        assert_eq!((second.loss(), second.has_lost_cells()), (None, stream == "gw_cells"));
        let [a, b] = [&store, &second].map(|store| store.remembers_since());
        assert_eq!(a, b);
        contract::append(&*second, &contract::new_log(), "event").await.unwrap();
        close(second).await;
        let third = open(&server).await;
        assert_eq!((third.loss(), third.has_lost_cells()), (None, stream == "gw_cells"));
    };
    join_all(STREAMS.map(case)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_made_anew_is_a_loss() {
    let case = async |stream: &str| {
        let (server, store) = new().await;
        let before = write(&*store, "a").await;
        let admin = admin(&server).await;
        let config = admin.get_stream(stream).await.unwrap().cached_info().config.clone();
        admin.delete_stream(stream).await.unwrap();
        admin.create_stream(config).await.unwrap();
        let what = lost(&*store).await;
        assert!(what.contains(stream), "{what}");
        accept(&*store, before).await;
    };
    join_all(STREAMS.map(case)).await;
}

/// The part of a stream that is purged.
#[derive(Debug, Clone, Copy)]
enum Purge {
    All,
    /// The older half.
    Half,
}

async fn purge(server: &NatsServer, stream: &str, what: Purge) {
    let stream = admin(server).await.get_stream(stream).await.unwrap();
    let state = &stream.cached_info().state;
    match what {
        Purge::All => stream.purge().await.unwrap(),
        Purge::Half => {
            let middle = u64::midpoint(state.first_sequence, state.last_sequence);
            stream.purge().sequence(middle + 1).await.unwrap()
        }
    };
}

/// Also while no gateway runs, and before the record was refreshed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purged_stream_is_a_loss() {
    let case = async |stream: &str, what, live: bool| {
        let (server, mut store) = new().await;
        let mut before = write(&*store, "a").await;
        for n in 0..10 {
            before = write(&*store, &n.to_string()).await;
        }
        if live {
            purge(&server, stream, what).await;
        } else {
            close(store).await;
            purge(&server, stream, what).await;
            store = reopen(&server).await;
        }
        let lost = lost(&*store).await;
        assert!(
            lost.contains(stream) && lost.contains("purged"),
            "{stream} {what:?} {live}: {lost}"
        );
        accept(&*store, before).await;
        assert_eq!(store.has_lost_cells(), stream == "gw_cells");
    };
    for (what, live) in
        [(Purge::All, true), (Purge::All, false), (Purge::Half, true), (Purge::Half, false)]
    {
        join_all(STREAMS.map(|stream| case(stream, what, live))).await;
    }
}

/// A key of a purged stream is not free, not even before the next check.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_that_was_purged_is_not_absent() {
    for (stream, life) in [("gw_cells", CellLife::Permanent), ("gw_keys", CellLife::Retained)] {
        let (server, store) = new().await;
        write(&*store, "a").await;
        purge(&server, stream, Purge::All).await;
        let loaded = store.load(&CellName { life, name: "a".to_owned() }).await;
        assert!(matches!(loaded, Err(StoreError::Unavailable(_))), "{loaded:?}");
    }
}

/// An older copy of the disk is put back while the server is stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_put_back_is_a_loss() {
    let case = async |put_back: &[&str], live: bool| {
        let (mut server, mut store) = new().await;
        write(&*store, "a").await;
        let copies = tempfile::tempdir().unwrap();
        server.back_up(put_back, copies.path()).await;
        // More than a refresh writes.
        for n in 0..5 {
            timeout(written(&*store)).await;
            write(&*store, &n.to_string()).await;
        }
        let before = write(&*store, "b").await;
        if !live {
            close(Arc::clone(&store)).await;
        }
        server.put_back(put_back, copies.path()).await;
        if !live {
            store = reopen(&server).await;
        }
        let what = lost(&*store).await;
        for stream in put_back {
            assert!(what.contains(&format!("stream {stream} ended at")), "{stream} {live}: {what}");
        }
        assert!(what.ends_with("it was put back to an older copy"), "{what}");
        accept(&*store, before).await;
    };
    let [events, cells, keys] = STREAMS.map(|stream| vec![stream]);
    let live = [&events, &cells, &keys, &STREAMS.to_vec()];
    join_all(live.map(|put_back| case(put_back, true))).await;
    // All of them put back while no gateway runs is not noticed.
    join_all([&events, &cells, &keys].map(|put_back| case(put_back, false))).await;
}

/// Another gateway writes to an older copy until it ends beyond the sequence that this one knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_that_was_written_to_since_is_a_loss() {
    let (mut server, store) = new().await;
    write(&*store, "a").await;
    let (older, newer) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    server.back_up(&STREAMS, older.path()).await;
    timeout(written(&*store)).await;
    let before = write(&*store, "b").await;
    let mut followed = store.follow(Some(before));
    contract::catch_up(&mut followed).await;

    let mut other = NatsServer::start().await;
    other.put_back(&STREAMS, older.path()).await;
    let second = open(&other).await;
    for n in 0..10 {
        write(&*second, &n.to_string()).await;
    }
    close(second).await;
    other.back_up(&STREAMS, newer.path()).await;
    server.put_back(&STREAMS, newer.path()).await;
    let second = reopen(&server).await;
    let what = lost(&*store).await;
    let another =
        format!("stream gw_events holds another message at {} than before", before.sequence);
    assert!(what.contains(&another), "{what}");
    // A gateway that has not seen the lost messages learns of the loss.
    assert!(lost(&*second).await.contains(&another));
    accept(&*second, before).await;
    timeout(store.usable()).await;
    // The follower has delivered nothing of the copy.
    assert_eq!(contract::next(&mut followed).await, Some(Followed::Lost(Lost::Replaced)));
}

/// A count of rejected logins that came with a backup may be too low, so it counts as missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_in_a_backup_are_void_until_they_are_written_again() {
    let (server, store) = new().await;
    let (guard, other) = (CellName::permanent("guard/user/a"), CellName::permanent("token-key"));
    for cell in [&guard, &other] {
        store.swap(cell, None, Bytes::from_static(b"backup")).await.unwrap();
    }
    store.accept_loss(true).await.unwrap().unwrap();
    assert_eq!(store.load(&guard).await.unwrap(), None);
    assert!(store.load(&other).await.unwrap().is_some());
    // Another replica sees the same.
    let second = open(&server).await;
    assert_eq!(second.load(&guard).await.unwrap(), None);
    let [a, b] =
        [&store, &second].map(|store| store.swap(&guard, None, Bytes::from_static(b"new")));
    let swapped = |swap: &Swap| matches!(swap, Swap::Swapped(_));
    let swaps = [a.await.unwrap(), b.await.unwrap()];
    assert_eq!(swaps.iter().filter(|swap| swapped(swap)).count(), 1, "{swaps:?}");
    for store in [&store, &second] {
        assert_eq!(store.load(&guard).await.unwrap().unwrap().value, "new");
    }
    // The loss of another stream does not change this.
    admin(&server).await.delete_stream("gw_keys").await.unwrap();
    lost(&*store).await;
    store.accept_loss(false).await.unwrap().unwrap();
    assert_eq!(store.load(&guard).await.unwrap().unwrap().value, "new");
}

/// Several operators accept a loss at once, at several gateways.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_that_is_accepted_at_every_gateway_at_once_is_accepted() {
    let (server, first) = new().await;
    let stores = [first, open(&server).await, open(&server).await];
    for stream in STREAMS {
        let before = contract::append(&*stores[0], &contract::new_log(), "before").await.unwrap();
        admin(&server).await.delete_stream(stream).await.unwrap();
        join_all(stores.iter().map(|store| lost(&**store))).await;
        let accepted = join_all(stores.iter().map(|store| store.accept_loss(false))).await;
        let accepted: Vec<_> = accepted.into_iter().map(Result::unwrap).collect();
        assert!(accepted.iter().any(Option::is_some), "{accepted:?}");
        for store in &stores {
            timeout(store.usable()).await;
            let after = contract::append(&**store, &contract::new_log(), "after").await.unwrap();
            assert!(after.epoch > before.epoch, "{after:?} {before:?}");
        }
    }
}

/// A restore that no gateway notices is reported by an operator.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_says_that_a_backup_was_restored() {
    let (_server, store) = new().await;
    let before = write(&*store, "a").await;
    assert_eq!(store.accept_loss(false).await.unwrap(), None);
    let accepted = store.accept_loss(true).await.unwrap().unwrap();
    assert_eq!(accepted.what, "a backup was restored");
    let after = contract::append(&*store, &LogName::order("a"), "after").await.unwrap();
    assert!(after.epoch > before.epoch && after.sequence > before.sequence);
    assert!(store.has_lost_cells());
    let entries = contract::read_to_end(&*store, &LogName::order("a")).await.unwrap();
    assert_eq!(contract::texts(&entries), ["a", "after"]);
}

/// Streams that an older gateway used, which writes no record, are taken over with their positions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_of_an_older_version_is_taken_over() {
    let server = NatsServer::start().await;
    let settings = settings(&server.url());
    let admin = admin(&server).await;
    let StreamConfigs(configs) =
        StreamConfigs::new(&NatsNames::new(&settings.prefix), &settings, KEEP);
    for config in configs {
        admin.create_stream(config).await.unwrap();
    }
    for subject in ["gw.ev.o.a", "gw.cell.token-key", "gw.key.k"] {
        admin.publish(subject, "old".into()).await.unwrap().await.unwrap();
    }
    let created = admin.get_stream("gw_events").await.unwrap().cached_info().created;
    let store = open(&server).await;
    let entries = contract::read_to_end(&*store, &LogName::order("a")).await.unwrap();
    assert_eq!(contract::texts(&entries), ["old"]);
    assert_eq!(i128::from(entries[0].position.epoch), created.unix_timestamp_nanos());
    assert!(!store.has_lost_cells());
    close(store).await;

    // From then on losses are noticed.
    let end = admin.get_stream("gw_events").await.unwrap().cached_info().state.last_sequence;
    purge(&server, "gw_events", Purge::All).await;
    let what = lost(&*reopen(&server).await).await;
    assert_eq!(what, format!("stream gw_events was purged up to {end}"));
}

/// A store with keys and without permanent cells was purged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_store_without_cells_was_purged() {
    let server = NatsServer::start().await;
    let settings = settings(&server.url());
    let admin = admin(&server).await;
    let StreamConfigs(configs) =
        StreamConfigs::new(&NatsNames::new(&settings.prefix), &settings, KEEP);
    for config in configs {
        admin.create_stream(config).await.unwrap();
    }
    admin.publish("gw.key.k", "old".into()).await.unwrap().await.unwrap();
    let store = reopen(&server).await;
    assert_eq!(lost(&*store).await, "stream gw_cells was purged");
}

/// What expires is not lost, whether or not a gateway runs meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expires_is_no_loss() {
    const SHORT: Duration = Duration::from_secs(3);
    let server = NatsServer::start().await;
    let short = async || Nats::open(&settings(&server.url()), SHORT).await;
    let store = short().await.unwrap();
    timeout(store.usable()).await;
    let admin = admin(&server).await;
    let left =
        async |stream: &str| admin.get_stream(stream).await.unwrap().cached_info().state.messages;
    let expires = write(&store, "a").await.sequence;
    // The running gateway's reports keep the stream from becoming empty.
    timeout(async {
        let first = async || {
            admin.get_stream("gw_events").await.unwrap().cached_info().state.first_sequence
        };
        while first().await <= expires {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let before = write(&store, "b").await;
    timeout(store.close()).await;
    timeout(async {
        while left("gw_events").await + left("gw_keys").await > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let store = short().await.unwrap();
    timeout(store.usable()).await;
    let after = write(&store, "c").await;
    assert_eq!((store.loss(), after.epoch), (None, before.epoch));
}

/// Orders are refused before the stream is full, so that everything else still fits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_part_of_a_stream_is_no_room_for_orders() {
    const BYTES: u64 = 16 << 20;
    let server = NatsServer::start().await;
    let settings = NatsConfig { max_bytes: BYTES, ..settings(&server.url()) };
    let store = Nats::open(&settings, KEEP).await.unwrap();
    timeout(store.usable()).await;
    assert_eq!(store.shortage(), None);
    let log = contract::new_log();
    contract::append(&store, &log, "first").await.unwrap();
    let large = contract::new_log();
    while store.shortage().is_none() {
        store.append(&large, Uuid::new_v4(), vec![0; MAX_EVENT_BYTES].into()).await.unwrap();
    }
    let held =
        admin(&server).await.get_stream("gw_events").await.unwrap().cached_info().state.bytes;
    assert!((BYTES * 80 / 100..BYTES * 92 / 100).contains(&held), "{held}");
    contract::append(&store, &log, "second").await.unwrap();
    let stream = admin(&server).await.get_stream("gw_events").await.unwrap();
    stream.purge().filter(store.core.names.log(&large)).await.unwrap();
    timeout(async {
        while store.shortage().is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(store.loss(), None);
}
