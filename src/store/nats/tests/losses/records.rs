//! The record is lost or put back together with its copy, while no gateway runs.

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

/// Both records are as old as the cells. The newest event tells how far the cells were.
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

    // Nor does it go by with restarts, although each gateway writes down what it knows.
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

/// The record is written, and its copy is not: the command says what it has done, although it has
/// to try again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_is_accepted_even_if_the_copy_of_the_record_is_written_late() {
    let users = |denied: &str| {
        format!(
            "authorization {{ users: [ {{ user: gw, password: pw, permissions: {{ publish: {{ deny: [{denied}] }} }} }} ] }}\n\
             no_auth_user: gw"
        )
    };
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
