//! The record and its copy are lost or put back while no gateway runs, and what gateways store
//! about a loss.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_both_records_was_purged() {
    let (server, store) = new().await;
    let before = write(&*store, "a").await;
    close(store).await;
    for (stream, subject) in [("gw_cells", "gw.cell.store"), ("gw_keys", "gw.key.store-record")] {
        let stream = admin(&server).await.get_stream(stream).await.unwrap();
        assert_eq!(stream.purge().filter(subject).await.unwrap().purged, 1);
    }
    let store = reopen(&server).await;
    let what = "stream gw_cells no longer holds gw.cell.store: it was purged; \
                stream gw_keys no longer holds gw.key.store-record: it was purged";
    assert_eq!(lost(&*store).await, what);
    accept(&*store, before).await;
    assert!(store.has_lost_cells());
}

/// Both records are as old as the cells. The newest event shows how far the cells were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cells_of_both_kinds_that_were_put_back_together_are_a_loss() {
    const CELLS: [&str; 2] = ["gw_cells", "gw_keys"];
    let (mut server, store) = new().await;
    write(&*store, "a").await;
    let copies = tempfile::tempdir().unwrap();
    server.back_up(&CELLS, copies.path()).await;
    timeout(written(&*store)).await;
    let before = write(&*store, "b").await;
    close(store).await;
    server.put_back(&CELLS, copies.path()).await;

    // The loss remains over restarts, although each gateway stores what it knows.
    let mut store = reopen(&server).await;
    for _ in 0..3 {
        let what = lost(&*store).await;
        for stream in CELLS {
            assert!(what.contains(&format!("stream {stream} ended at ")), "{what}");
        }
        drop(store);
        store = reopen(&server).await;
    }
    lost(&*store).await;
    accept(&*store, before).await;
    assert!(store.has_lost_cells());
}

pub(super) async fn set(store: &dyn Store, cell: &CellName, value: &'static str) {
    let version = store.load(cell).await.unwrap().map(|held| held.version);
    let swapped = store.swap(cell, version, Bytes::from_static(value.as_bytes())).await.unwrap();
    assert!(matches!(swapped, Swap::Swapped(_)), "{swapped:?}");
}

/// What happens between the copy and the end of the gateway.
#[derive(Debug, Clone, Copy)]
enum Since {
    /// A login is counted, and the gateway dies.
    Login,
    /// An operator accepts a loss, and the gateway dies.
    Accepted,
    /// The gateway stops in order.
    Stopped,
}

/// No event was stored since the copy was made. A report shows how far the cells were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cells_of_both_kinds_that_are_put_back_together_are_a_loss_also_without_events() {
    const CELLS: [&str; 2] = ["gw_cells", "gw_keys"];
    let case = async |since: Since| {
        let (mut server, store) = new().await;
        let before = write(&*store, "a").await;
        let guard = CellName::permanent("guard/user/a");
        set(&*store, &guard, "1 rejected").await;
        let copies = tempfile::tempdir().unwrap();
        server.back_up(&CELLS, copies.path()).await;
        timeout(store.usable()).await;
        match since {
            Since::Login => {
                timeout(async {
                    while store.load(&guard).await.is_err() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                })
                .await;
                set(&*store, &guard, "2 rejected").await;
                drop(store);
            }
            Since::Accepted => {
                store.accept_loss(true).await.unwrap().unwrap();
                drop(store);
            }
            Since::Stopped => close(store).await,
        }
        server.put_back(&CELLS, copies.path()).await;
        let store = reopen(&server).await;
        let what = lost(&*store).await;
        assert!(what.contains("stream gw_cells "), "{since:?}: {what}");
        assert!(what.contains("put back to an older copy"), "{since:?}: {what}");
        accept(&*store, before).await;
        assert_eq!(store.load(&guard).await.unwrap(), None, "{since:?}: an old count is used");
    };
    join_all([Since::Login, Since::Accepted, Since::Stopped].map(case)).await;
}

/// What is wrong before the right streams come back.
#[derive(Debug, Clone, Copy)]
enum Wrong {
    OlderCopy,
    MadeAnew,
}

/// Gateways continue without an operator: what they stored about the loss is not missing in the
/// right stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_right_stream_ends_the_loss_of_a_wrong_one() {
    let case = async |wrong: Wrong, stream: &str| {
        let (mut server, store) = new().await;
        write(&*store, "a").await;
        let (other, right) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        match wrong {
            Wrong::OlderCopy => server.back_up(&[stream], other.path()).await,
            Wrong::MadeAnew => {
                let config = admin(&server).await.get_stream(stream).await.unwrap();
                let mut empty = NatsServer::start().await;
                let admin = admin(&empty).await;
                admin.create_stream(config.cached_info().config.clone()).await.unwrap();
                empty.back_up(&[stream], other.path()).await;
            }
        }
        timeout(written(&*store)).await;
        let before = write(&*store, "b").await;
        server.exchange(&[stream], right.path(), other.path()).await;
        lost(&*store).await;
        // It knows only what the first one stored.
        drop(store);
        let second = reopen(&server).await;
        let what = lost(&*second).await;
        assert!(what.contains(stream), "{wrong:?} {stream}: {what}");

        server.put_back(&[stream], right.path()).await;
        timeout(second.usable()).await;
        let third = open(&server).await;
        for store in [&second, &third] {
            assert_eq!(store.loss(), None, "{wrong:?} {stream}");
            let after = contract::append(&**store, &contract::new_log(), "after").await.unwrap();
            assert_eq!(after.epoch, before.epoch, "{wrong:?} {stream}");
        }
    };
    join_all(STREAMS.map(|stream| case(Wrong::OlderCopy, stream))).await;
    join_all(STREAMS.map(|stream| case(Wrong::MadeAnew, stream))).await;
}

/// Reports are no events. A follower that has read them is at the end of the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_passes_over_reports() {
    let (_server, store) = new().await;
    write(&*store, "a").await;
    let mut followed = store.follow(None);
    let (events, _) = contract::catch_up(&mut followed).await;
    assert_eq!(events.len(), 1);
    set(&*store, &CellName::permanent("guard/user/a"), "1 rejected").await;
    // A report may be followed by the refresh of the record.
    let end = async {
        loop {
            let Some(Followed::Skipped(position)) = followed.next().await else {
                panic!("an event")
            };
            if store.end() == Some(position) {
                break position;
            }
        }
    };
    let skipped = timeout(end).await;
    let next = contract::append(&*store, &contract::new_log(), "next").await.unwrap();
    assert!(next > skipped);
    let Some(Followed::Event(_, entry)) = contract::next(&mut followed).await else {
        panic!("no event")
    };
    assert_eq!(entry.position, next);
}

/// A gateway that dies does not write the record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_is_a_moment_older_than_the_events_is_no_loss() {
    let (server, store) = new().await;
    let before = write(&*store, "a").await;
    drop(store);
    let store = open(&server).await;
    assert_eq!(store.loss(), None);
    let after = contract::append(&*store, &contract::new_log(), "after").await.unwrap();
    assert_eq!(after.epoch, before.epoch);
}

/// The record is written, and its copy only later: the command repeats the attempt, and says what
/// it has done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_is_accepted_even_if_the_copy_of_the_record_is_written_late() {
    let users = |denied: &str| user_without(denied, "");
    let server = NatsServer::start_with(&users("")).await;
    let store = open(&server).await;
    let admin = admin(&server).await;
    admin.delete_stream("gw_events").await.unwrap();
    let what = lost(&*store).await;
    let cells =
        async || admin.get_stream("gw_cells").await.unwrap().cached_info().state.last_sequence;
    let before = cells().await;
    server.reload_with(&users("gw.key.store-record"));
    let accepting = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.accept_loss(false).await }
    });
    let written = async {
        while cells().await == before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(written).await;
    server.reload_with(&users(""));
    let accepted = timeout(accepting).await.unwrap().unwrap();
    assert_eq!(accepted.map(|loss| loss.what), Some(what));
}
