//! The record is lost or put back together with its copy, while no gateway runs.

use super::{
    super::clocks::{Proxy, Shift},
    *,
};

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

/// Both records are as old as the cells. Events tell how old that is.
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

    // To this gateway, the first event that the record does not know of is a year old.
    let proxy = Proxy::start(&server).await;
    proxy.shift(Shift::MessageTimes);
    let store: Arc<dyn Store> = Arc::new(Nats::open(&settings(&proxy.url()), KEEP).await.unwrap());
    let older = "knows nothing of the latest events: it was put back to an older copy";
    let what = format!("stream gw_cells {older}; stream gw_keys {older}");
    assert_eq!(lost(&*store).await, what);
    // Nor does it go by with time, or a restart.
    drop(store);
    let store: Arc<dyn Store> = Arc::new(Nats::open(&settings(&proxy.url()), KEEP).await.unwrap());
    assert_eq!(lost(&*store).await, what);
    accept(&*store, before).await;
    assert!(store.has_lost_cells());
}

/// A gateway that dies is not given the time to write the record.
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
