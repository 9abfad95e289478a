//! Single permanent cells that are lost.

use super::*;
use crate::{
    proto::storage,
    store::{load_or_create, nats::record::MAX_CELLS},
};

const SUBJECT: &str = "gw.cell.guard_2flogin_2fa";
const MISSING: &str = "stream gw_cells no longer holds gw.cell.guard_2flogin_2fa: it was purged";

fn guard() -> CellName {
    CellName::permanent("guard/login/a")
}

async fn make(store: &dyn Store, cell: &CellName) -> Version {
    match store.swap(cell, None, Bytes::from_static(b"value")).await.unwrap() {
        Swap::Swapped(version) => version,
        conflict @ Swap::Conflict(_) => panic!("{conflict:?}"),
    }
}

async fn purge_guard(server: &NatsServer) {
    let cells = admin(server).await.get_stream("gw_cells").await.unwrap();
    assert_eq!(cells.purge().filter(SUBJECT).await.unwrap().purged, 1);
}

async fn put(server: &NatsServer, subject: String) {
    admin(server).await.publish(subject, "value".into()).await.unwrap().await.unwrap();
}

/// When a cell is lost.
#[derive(Debug, Clone, Copy)]
enum While {
    Running,
    Stopped,
    /// The record was not refreshed before the gateway died.
    Dead,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_that_goes_missing_is_a_loss_that_names_it() {
    let case = async |when: While| {
        let (server, store) = new().await;
        make(&*store, &guard()).await;
        let before = write(&*store, "a").await;
        let running = match when {
            While::Running => Some(store),
            While::Stopped => {
                close(store).await;
                None
            }
            While::Dead => {
                drop(store);
                None
            }
        };
        purge_guard(&server).await;
        // As many cells as there were.
        put(&server, "gw.cell.other".to_owned()).await;
        let store = match running {
            Some(store) => store,
            None => reopen(&server).await,
        };
        assert_eq!(lost(&*store).await, MISSING, "{when:?}");
        let cells = admin(&server).await.get_stream("gw_cells").await.unwrap();
        assert!(
            cells.get_last_raw_message_by_subject(SUBJECT).await.is_err(),
            "{when:?}: it was made anew"
        );

        accept(&*store, before).await;
        assert!(store.has_lost_cells(), "{when:?}");
        assert_eq!(store.load(&guard()).await.unwrap(), None);
        // A loss of the new cell is noticed, too.
        make(&*store, &guard()).await;
        purge_guard(&server).await;
        assert_eq!(lost(&*store).await, MISSING, "{when:?}");
    };
    join_all([While::Running, While::Stopped, While::Dead].map(case)).await;
}

/// Not even a gateway that has not checked the streams yet, or that loaded the cell before it was
/// made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_replica_makes_a_missing_cell_anew() {
    for _ in 0..3 {
        let (server, first) = new().await;
        let second = open(&server).await;
        assert_eq!(second.load(&guard()).await.unwrap(), None);
        let version = make(&*first, &guard()).await;
        purge_guard(&server).await;
        let newcomer = reopen(&server).await;
        let value = || Bytes::from_static(b"anew");
        let cell = guard();
        let swaps = join_all([
            first.swap(&cell, None, value()),
            first.swap(&cell, Some(version), value()),
            second.swap(&cell, None, value()),
            newcomer.swap(&cell, None, value()),
        ]);
        let loads = join_all([first.load(&cell), second.load(&cell), newcomer.load(&cell)]);
        let (swaps, loads) = tokio::join!(swaps, loads);
        let refused = |error: &StoreError| matches!(error, StoreError::Unavailable(_));
        assert!(swaps.iter().all(|swap| swap.as_ref().is_err_and(refused)), "{swaps:?}");
        assert!(loads.iter().all(|load| load.as_ref().is_err_and(refused)), "{loads:?}");
        for store in [&first, &second, &newcomer] {
            assert_eq!(lost(&**store).await, MISSING);
        }
        second.accept_loss(false).await.unwrap().unwrap();
        for store in [&first, &second, &newcomer] {
            timeout(store.usable()).await;
            assert!(store.has_lost_cells());
        }
    }
}

/// If a gateway dies right after it made a cell, no caller knows of the cell, so its loss does no
/// harm. A gateway that reads the cell enters it into the record first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_counts_from_the_moment_that_somebody_may_act_on_it() {
    let (server, store) = new().await;
    close(store).await;
    put(&server, SUBJECT.to_owned()).await;
    purge_guard(&server).await;
    let store = open(&server).await;
    assert_eq!((store.load(&guard()).await.unwrap(), store.has_lost_cells()), (None, false));

    put(&server, SUBJECT.to_owned()).await;
    assert_eq!(store.load(&guard()).await.unwrap().unwrap().value, "value");
    drop(store);
    purge_guard(&server).await;
    assert_eq!(lost(&*reopen(&server).await).await, MISSING);
}

/// Also if the record was lost with the cell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_copy_of_the_record_knows_the_cells_too() {
    let (server, store) = new().await;
    make(&*store, &guard()).await;
    drop(store);
    let cells = admin(&server).await.get_stream("gw_cells").await.unwrap();
    cells.purge().filter("gw.cell.store").await.unwrap();
    purge_guard(&server).await;
    assert_eq!(lost(&*reopen(&server).await).await, MISSING);
}

/// An older gateway has made cells that its record does not list.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cells_from_before_are_watched_from_the_first_look_on() {
    let (server, store) = new().await;
    close(store).await;
    put(&server, SUBJECT.to_owned()).await;
    drop(open(&server).await);
    purge_guard(&server).await;
    assert_eq!(lost(&*reopen(&server).await).await, MISSING);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_make_the_same_cells_at_once_lose_none() {
    let (server, first) = new().await;
    let stores = [first, open(&server).await, open(&server).await];
    let cells: Vec<_> = (0..10).map(|n| CellName::permanent(format!("cell/{n}"))).collect();
    let made = stores.iter().flat_map(|store| {
        let key = Uuid::new_v4().as_bytes().to_vec();
        let value = storage::TokenKey { key, ..storage::TokenKey::default() };
        cells.iter().map(move |cell| {
            load_or_create(&**store, cell, {
                let value = value.clone();
                || Ok(value)
            })
        })
    });
    let made: Vec<_> = join_all(made).await.into_iter().map(Result::unwrap).collect();
    let (first, others) = made.split_at(cells.len());
    assert!(others.chunks(cells.len()).all(|other| other == first), "{made:?}");
    for store in &stores {
        assert_eq!((store.loss(), store.trouble()), (None, None));
    }
}

/// Only as many cells are made as the record can list. Existing ones can still be used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_cells_than_can_be_watched_are_refused() {
    // So many are acknowledged within the client's time-out, also on a slow machine.
    const AT_ONCE: usize = 256;
    let (server, store) = new().await;
    make(&*store, &guard()).await;
    close(store).await;
    let admin = admin(&server).await;
    for first in (1..MAX_CELLS).step_by(AT_ONCE) {
        let some = first..MAX_CELLS.min(first + AT_ONCE);
        let put = some.map(|n| admin.publish(format!("gw.cell.{n}"), "value".into()));
        for stored in join_all(put).await {
            stored.unwrap().await.unwrap();
        }
    }
    let store = open(&server).await;
    let refused = store.swap(&CellName::permanent("new"), None, Bytes::new()).await;
    let Err(StoreError::Unavailable(why)) = refused else { panic!("{refused:?}") };
    assert_eq!(why, "stream gw_cells holds 4096 cells and takes no more: see docs/nats.md");
    let held = store.load(&guard()).await.unwrap().unwrap();
    let swapped =
        store.swap(&guard(), Some(held.version), Bytes::from_static(b"next")).await.unwrap();
    assert!(matches!(swapped, Swap::Swapped(_)), "{swapped:?}");
    let swapped = store.swap(&CellName::retained("key"), None, Bytes::new()).await.unwrap();
    assert!(matches!(swapped, Swap::Swapped(_)), "{swapped:?}");
}
