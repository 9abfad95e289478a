//! Streams that are put back to a copy that is seconds old, after all gateways were killed. The
//! streams that were not put back show what was stored since the copy.

use super::{records::set, *};
use crate::{proto::storage::StoreRecord, store::decode_cell};

const EVENTS: &str = "gw_events";
const CELLS: &str = "gw_cells";
const KEYS: &str = "gw_keys";

/// A store that has something in each stream, and a copy of some of its streams.
async fn copied(streams: &[&str]) -> (NatsServer, Arc<dyn Store>, TempDir) {
    let (mut server, store) = new().await;
    write(&*store, "a").await;
    set(&*store, &guard(), "1 rejected").await;
    let copies = tempfile::tempdir().unwrap();
    server.back_up(streams, copies.path()).await;
    timeout(written(&*store)).await;
    (server, store, copies)
}

fn guard() -> CellName {
    CellName::permanent("guard/user/a")
}

/// Puts streams back. A gateway that starts then must say that those in `noticed` are older.
async fn must_notice(mut server: NatsServer, copies: TempDir, put_back: &[&str], noticed: &[&str]) {
    server.put_back(put_back, copies.path()).await;
    let store = reopen(&server).await;
    tokio::select! {
        biased;
        () = store.usable() => panic!("the copy of {put_back:?} is used"),
        what = lost(&*store) => for stream in noticed {
            let loss = format!("stream {stream} ended at ");
            assert!(what.contains(&loss), "put back {put_back:?}: {what}");
        }
    }
}

/// Waits until the record says that the stream of events has come this far. The copy is written
/// before the record.
async fn recorded(server: &NatsServer, position: Position) {
    let cells = admin(server).await.get_stream(CELLS).await.unwrap();
    let reached = async {
        loop {
            let record = cells.get_last_raw_message_by_subject("gw.cell.store").await.unwrap();
            let record: StoreRecord = decode_cell(record.payload).unwrap();
            if record.events.unwrap().last_sequence >= position.sequence {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(reached).await;
}

/// A gateway that is killed right after it has counted a login may have sent it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_count_of_rejected_logins_is_noticed_if_one_stream_is_current() {
    let case = async |put_back: &[&str]| {
        let (server, store, copies) = copied(put_back).await;
        set(&*store, &guard(), "2 rejected").await;
        drop(store);
        must_notice(server, copies, put_back, &[CELLS]).await;
    };
    let put_back: [&[&str]; 3] = [&[CELLS], &[EVENTS, CELLS], &[CELLS, KEYS]];
    join_all(put_back.map(case)).await;
}

/// Within a second after the last write, every stream shows how far the others were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_seconds_old_is_noticed_if_one_stream_is_current() {
    let case = async |put_back: &[&str]| {
        let (server, store, copies) = copied(put_back).await;
        let last = write(&*store, "b").await;
        recorded(&server, last).await;
        drop(store);
        must_notice(server, copies, put_back, put_back).await;
    };
    let put_back: [&[&str]; 6] =
        [&[EVENTS], &[CELLS], &[KEYS], &[EVENTS, CELLS], &[EVENTS, KEYS], &[CELLS, KEYS]];
    join_all(put_back.map(case)).await;
}

/// A gateway that is killed right after it has stored a key or another cell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_shows_how_far_the_events_were_when_it_was_stored() {
    let case = async |(put_back, cell): (&[&str], CellName)| {
        let (server, store, copies) = copied(put_back).await;
        contract::append(&*store, &contract::new_log(), "lost").await.unwrap();
        set(&*store, &cell, "new").await;
        drop(store);
        must_notice(server, copies, put_back, &[EVENTS]).await;
    };
    let key = || CellName::retained("key");
    let cases: [(&[&str], CellName); 3] = [
        (&[EVENTS], key()),
        (&[EVENTS, CELLS], key()),
        (&[EVENTS, KEYS], CellName::permanent("cell")),
    ];
    join_all(cases.map(case)).await;
}
