mod failure;
mod faulty;
mod loss;
mod model;
mod time;

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Instant,
};

use futures_util::future::{join_all, try_join_all};
use jiff::{Timestamp, ToSpan as _};
use redb::{ReadableTable as _, TableDefinition};
use tempfile::TempDir;

use super::{
    tables::{Tables, Tail},
    *,
};
use crate::{
    config::record_path,
    store::{Lost, MAX_EVENT_BYTES, MAX_READ, contract},
};

const KEEP: Duration = Duration::from_hours(1);

/// The longest wait for something that must happen.
const DEADLINE: Duration = Duration::from_secs(30);

/// Returns a new folder and a path in it.
fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    (folder, path)
}

fn open(path: &Path) -> Embedded {
    Embedded::open(path, KEEP).unwrap()
}

fn new() -> (TempDir, Arc<dyn Store>) {
    let (folder, path) = place();
    (folder, Arc::new(open(&path)))
}

/// Returns the counters of a closed file.
fn tail(path: &Path) -> Tail {
    tables::load_state(&file::open(path).unwrap()).unwrap().tail
}

async fn until<T>(mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(result) = condition().await {
            return result;
        }
        assert!(Instant::now() < deadline, "the condition did not come true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn order() {
    contract::order(&*new().1).await;
}

#[tokio::test]
async fn pages() {
    contract::pages(&*new().1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_your_writes() {
    contract::read_your_writes(&*new().1).await;
}

#[tokio::test]
async fn same_id() {
    contract::same_id(&*new().1).await;
}

#[tokio::test]
async fn largest_event() {
    contract::largest_event(&*new().1).await;
}

#[tokio::test]
async fn durable() {
    let (_folder, path) = place();
    contract::durable(async || Arc::new(open(&path)) as Arc<dyn Store>).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follow_all() {
    let (_folder, store) = new();
    contract::follow_all(store, contract::LearnsEnd::AtOnce).await;
}

#[tokio::test]
async fn follow_from() {
    contract::follow_from(&*new().1).await;
}

#[tokio::test]
async fn replaced() {
    contract::replaced(&*new().1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swap_race() {
    let (_folder, store) = new();
    contract::swap_race(store).await;
}

#[tokio::test]
async fn swap_conflict() {
    contract::swap_conflict(&*new().1).await;
}

#[tokio::test]
async fn a_new_file_is_another_store() {
    let (_folder, path) = place();
    let store = open(&path);
    let position = contract::append(&store, &contract::new_log(), "event").await.unwrap();
    store.close().await;
    std::fs::remove_file(&path).unwrap();
    std::fs::remove_file(record_path(&path)).unwrap();

    let store = open(&path);
    let mut followed = store.follow(Some(position));
    assert_eq!(contract::next(&mut followed).await, Some(Followed::Lost(Lost::Replaced)));
}

#[tokio::test]
async fn one_process_at_a_time_and_for_this_user_only() {
    let (_folder, path) = place();
    let store = open(&path);
    let error = Embedded::open(&path, KEEP).unwrap_err().to_string();
    assert!(
        error.contains("is another gateway using it?") && error.contains("store.redb"),
        "{error}"
    );
    assert!(store.exclusive());
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    let files: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
    // The store and its record.
    assert_eq!(files.len(), 2, "{files:?}");
    assert_eq!(mode(&record_path(&path)), 0o600);
}

#[tokio::test]
async fn closing_finishes_what_is_queued_and_releases_the_file() {
    let (_folder, path) = place();
    let store = open(&path);
    let log = contract::new_log();
    let mut followed = store.follow(None);
    contract::catch_up(&mut followed).await;
    let (appended, ()) = tokio::join!(
        join_all((0..100).map(|_| contract::append(&store, &log, "queued"))),
        store.close()
    );
    assert!(appended.iter().all(Result::is_ok), "{appended:?}");
    let cell = CellName::permanent("cell");
    let refused = [
        contract::append(&store, &log, "late").await.err(),
        store.swap(&cell, None, Bytes::new()).await.err(),
        store.load(&cell).await.err(),
        store.read(&log, 0, 1).await.err(),
    ];
    for error in refused {
        assert!(matches!(error, Some(StoreError::Unavailable(_))), "{error:?}");
    }
    while contract::next(&mut followed).await.is_some() {}
    store.close().await;

    let again = open(&path);
    assert_eq!(contract::read_to_end(&again, &log).await.unwrap().len(), 100);
    drop(again);
    until(async || Embedded::open(&path, KEEP).ok()).await;
}

#[tokio::test]
async fn what_is_no_store_is_refused_and_left_alone() {
    let (_folder, path) = place();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, "not a store").unwrap();
    let error = Embedded::open(&path, KEEP).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt(_)), "{error:?}");
    assert_eq!(std::fs::read(&path).unwrap(), b"not a store");
    std::fs::remove_file(&path).unwrap();

    redb::Database::create(&path).unwrap();
    let error = Embedded::open(&path, KEEP).unwrap_err();
    assert!(
        matches!(&error, StoreError::Corrupt(text) if text.contains("not written by")),
        "{error:?}"
    );
    std::fs::remove_file(&path).unwrap();

    open(&path).close().await;
    let database = file::open(&path).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(TableDefinition::<&str, u64>::new("meta")).unwrap().insert("format", 7).unwrap();
    txn.commit().unwrap();
    drop(database);
    let error = Embedded::open(&path, KEEP).unwrap_err();
    assert!(
        matches!(&error, StoreError::Corrupt(text) if text.contains("format is 7")),
        "{error:?}"
    );
}

#[tokio::test]
async fn time_never_goes_back() {
    let (_folder, path) = place();
    open(&path).close().await;
    let ahead = Timestamp::now().checked_add(48.hours()).unwrap();
    let mut far = tail(&path);
    far.time = Timestamp::from_microsecond(ahead.as_microsecond()).unwrap();
    let database = file::open(&path).unwrap();
    let txn = database.begin_write().unwrap();
    far.save(&txn).unwrap();
    txn.commit().unwrap();
    drop(database);

    let (store, log) = (open(&path), contract::new_log());
    contract::append(&store, &log, "event").await.unwrap();
    assert_eq!(contract::read_to_end(&store, &log).await.unwrap()[0].time, far.time);
}

#[tokio::test]
async fn old_events_expire_and_their_positions_are_not_used_again() {
    let (_folder, path) = place();
    let store = open(&path);
    let (log, id) = (contract::new_log(), Uuid::new_v4());
    let (permanent, retained) = (CellName::permanent("cell"), CellName::retained("cell"));
    let first = store.append(&log, id, Bytes::from_static(b"old")).await.unwrap();
    // More than one sweep removes.
    let rest = (0..2_100).map(|_| contract::append(&store, &log, "old"));
    let last = try_join_all(rest).await.unwrap().into_iter().max().unwrap();
    let mut versions = Vec::new();
    for cell in [&permanent, &retained] {
        let Ok(Swap::Swapped(version)) = store.swap(cell, None, Bytes::new()).await else {
            panic!("conflict")
        };
        versions.push(version);
    }
    store.close().await;

    let store = Embedded::open(&path, Duration::ZERO).unwrap();
    until(async || store.read(&log, 0, MAX_READ).await.unwrap().is_empty().then_some(())).await;
    until(async || store.load(&retained).await.unwrap().is_none().then_some(())).await;
    assert_eq!(store.load(&permanent).await.unwrap().unwrap().version, versions[0]);
    contract::too_old(&store, first).await;
    let (events, caught_up) = contract::catch_up(&mut store.follow(Some(last))).await;
    assert!(caught_up > last && events.iter().all(|(_, entry)| entry.position > last));

    // The id of a removed event is new, and so is a removed cell; positions and versions are not
    // used twice.
    let again = store.append(&log, id, Bytes::from_static(b"new")).await.unwrap();
    assert!(again > last, "{again:?} is not after {last:?}");
    let stale = store.swap(&retained, Some(versions[1]), Bytes::new()).await.unwrap();
    assert_eq!(stale, Swap::Conflict(None));
    let Swap::Swapped(version) = store.swap(&retained, None, Bytes::new()).await.unwrap() else {
        panic!("conflict")
    };
    assert!(version > versions[1]);
    store.close().await;
    let tail = tail(&path);
    assert_eq!((tail.swept, tail.bytes), (last.sequence, "new".len() as u64 + "kept".len() as u64));
}

/// The age of a cell is that of its last swap.
#[tokio::test]
async fn a_cell_has_one_age() {
    let (_folder, path) = place();
    let (store, cell) = (open(&path), CellName::retained("cell"));
    let mut held = None;
    for _ in 0..3 {
        let Swap::Swapped(version) = store.swap(&cell, held, Bytes::new()).await.unwrap() else {
            panic!("conflict")
        };
        held = Some(version);
    }
    store.close().await;
    let txn = file::open(&path).unwrap().begin_write().unwrap();
    let ages = Tables::open(&txn).unwrap().by_age;
    let versions: Vec<_> =
        ages.iter().unwrap().map(|row| Version(row.unwrap().0.value())).collect();
    assert_eq!(versions, Vec::from_iter(held));
}

#[tokio::test]
async fn a_follower_overtaken_by_expiry_is_lost() {
    let (_folder, path) = place();
    let store = open(&path);
    let log = contract::new_log();
    let first = contract::append(&store, &log, "first").await.unwrap();
    contract::append(&store, &log, "second").await.unwrap();
    store.close().await;

    let store = Embedded::open(&path, Duration::ZERO).unwrap();
    until(async || store.read(&log, 0, 1).await.unwrap().is_empty().then_some(())).await;
    contract::too_old(&store, first).await;
}

#[tokio::test]
async fn a_file_that_is_mostly_free_is_compacted() {
    let (_folder, path) = place();
    let store = open(&path);
    let large = Bytes::from(vec![7; MAX_EVENT_BYTES]);
    let log = contract::new_log();
    try_join_all((0..20).map(|_| store.append(&log, Uuid::new_v4(), large.clone()))).await.unwrap();
    // It is at the end of the file, so that closing alone cannot shorten the file.
    let cell = CellName::permanent("cell");
    store.swap(&cell, None, large.clone()).await.unwrap();
    store.close().await;
    let store = Embedded::open(&path, Duration::ZERO).unwrap();
    until(async || store.read(&log, 0, 1).await.unwrap().is_empty().then_some(())).await;
    store.close().await;

    let before = path.metadata().unwrap().len();
    let store = open(&path);
    let after = path.metadata().unwrap().len();
    assert!(after < before / 4, "{before} → {after}");
    assert!(store.load(&cell).await.unwrap().unwrap().value == large, "compaction changed a cell");
}

#[tokio::test]
async fn large_events_are_read_in_pages_and_queued_within_bounds() {
    let (_folder, path) = place();
    let store = open(&path);
    let log = contract::new_log();
    let large = Bytes::from(vec![7; MAX_EVENT_BYTES]);
    // More than the queue holds.
    let count = IN_FLIGHT_BYTES / MAX_EVENT_BYTES + 5;
    try_join_all((0..count).map(|_| store.append(&log, Uuid::new_v4(), large.clone())))
        .await
        .unwrap();
    let page = store.read(&log, 0, MAX_READ).await.unwrap();
    assert_eq!(page.len(), tables::READ_BYTES / MAX_EVENT_BYTES);
    assert_eq!(contract::read_to_end(&store, &log).await.unwrap().len(), count);
    let (events, _) = contract::catch_up(&mut store.follow(None)).await;
    assert_eq!(events.len(), count);
    let too_large =
        store.swap(&CellName::permanent("cell"), None, vec![0; MAX_EVENT_BYTES + 1].into()).await;
    assert!(matches!(too_large, Err(StoreError::TooLarge(_))), "{too_large:?}");
}

#[test]
fn debug_shows_where_but_not_what() {
    let (_folder, path) = place();
    let text = format!("{:?}", open(&path));
    assert!(text.contains("store.redb") && text.contains("end: 0"), "{text}");
}
