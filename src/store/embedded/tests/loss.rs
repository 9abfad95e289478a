//! A store that was removed, was put back to an older copy, or is another one.

use std::fs;

use super::*;

/// Creates a closed store with two events, and a copy from before the second.
async fn with_copy(path: &Path) -> (LogName, PathBuf) {
    let (store, log) = (open(path), contract::new_log());
    contract::append(&store, &log, "one").await.unwrap();
    for cell in ["guard/user/a", "token-key"] {
        store.swap(&CellName::permanent(cell), None, Bytes::new()).await.unwrap();
    }
    store.close().await;
    let copy = path.with_extension("copy");
    fs::copy(path, &copy).unwrap();
    let store = open(path);
    contract::append(&store, &log, "two").await.unwrap();
    store.close().await;
    (log, copy)
}

#[track_caller]
fn assert_lost(store: &Embedded, what: &str) {
    let loss = store.loss().expect("something is lost");
    assert!(loss.what.contains(what) && loss.what.contains("store.redb"), "{}", loss.what);
}

async fn assert_refuses_everything(store: &Embedded) {
    let (log, cell) = (contract::new_log(), CellName::permanent("token-key"));
    let refused = [
        contract::append(store, &log, "event").await.err(),
        store.swap(&cell, None, Bytes::new()).await.err(),
        store.load(&cell).await.err(),
        store.read(&log, 0, 1).await.err(),
    ];
    for error in refused {
        assert!(matches!(error, Some(StoreError::Unavailable(_))), "{error:?}");
    }
}

#[tokio::test]
async fn a_missing_store_waits_for_an_operator_over_restarts() {
    let (_folder, path) = place();
    let (log, _) = with_copy(&path).await;
    fs::remove_file(&path).unwrap();
    for _ in 0..3 {
        let store = open(&path);
        assert_lost(&store, "was missing at the start");
        assert_refuses_everything(&store).await;
        store.close().await;
    }

    let store = open(&path);
    let mut followed = store.follow(None);
    let accepted = store.accept_loss(false).await.unwrap();
    assert!(accepted.is_some_and(|loss| loss.what.contains("missing")));
    assert_eq!(store.loss(), None);
    assert!(store.has_lost_cells() && store.remembers_since().is_some());
    // A follower from before is lost.
    assert_eq!(contract::next(&mut followed).await, Some(Followed::Lost(Lost::Replaced)));
    assert_eq!(store.read(&log, 0, 1).await.unwrap(), []);
    contract::append(&store, &log, "new").await.unwrap();
    assert_eq!(store.accept_loss(false).await.unwrap(), None);
    store.close().await;

    let store = open(&path);
    assert_eq!((store.loss(), store.has_lost_cells()), (None, true));
    assert_eq!(contract::texts(&contract::read_to_end(&store, &log).await.unwrap()), ["new"]);
}

#[tokio::test]
async fn an_older_copy_is_noticed_and_the_right_file_heals_it() {
    let (_folder, path) = place();
    let (log, copy) = with_copy(&path).await;
    let right = path.with_extension("right");
    fs::rename(&path, &right).unwrap();
    fs::copy(&copy, &path).unwrap();
    let store = open(&path);
    assert_lost(&store, "it ended at event 2 and now ends at 1");
    assert_refuses_everything(&store).await;
    store.close().await;

    fs::rename(&right, &path).unwrap();
    let store = open(&path);
    assert_eq!((store.loss(), store.has_lost_cells()), (None, false));
    assert_eq!(
        contract::texts(&contract::read_to_end(&store, &log).await.unwrap()),
        ["one", "two"]
    );
    store.close().await;
}

#[tokio::test]
async fn an_accepted_older_copy_is_a_new_epoch_without_the_guard_s_counts() {
    let (_folder, path) = place();
    let (log, copy) = with_copy(&path).await;
    let before = open(&path);
    let last = contract::read_to_end(&before, &log).await.unwrap()[1].position;
    before.close().await;
    fs::copy(&copy, &path).unwrap();

    let store = open(&path);
    assert_lost(&store, "older copy");
    store.accept_loss(false).await.unwrap().unwrap();
    assert!(store.has_lost_cells());
    let mut followed = store.follow(Some(last));
    assert_eq!(contract::next(&mut followed).await, Some(Followed::Lost(Lost::Replaced)));
    let load = async |cell: &str| store.load(&CellName::permanent(cell)).await.unwrap();
    // Its count may be too low, which could lock the user. Without it, no login is sent.
    assert_eq!(load("guard/user/a").await, None);
    assert!(load("token-key").await.is_some());
    assert_eq!(contract::texts(&contract::read_to_end(&store, &log).await.unwrap()), ["one"]);
}

#[tokio::test]
async fn another_store_is_noticed() {
    let (folder, path) = place();
    with_copy(&path).await;
    let other = folder.path().join("other.redb");
    with_copy(&other).await;
    fs::copy(&other, &path).unwrap();
    let store = open(&path);
    assert_lost(&store, "not the one that");
    assert_refuses_everything(&store).await;
    store.accept_loss(false).await.unwrap().unwrap();
    assert_eq!(store.loss(), None);
}

/// Makes a store of an older gateway.
fn remove_note_of_record(path: &Path) {
    let database = file::open(path).unwrap();
    let txn = database.begin_write().unwrap();
    let meta = TableDefinition::<&str, u64>::new("meta");
    assert!(txn.open_table(meta).unwrap().remove("recorded").unwrap().is_some());
    txn.commit().unwrap();
}

#[tokio::test]
async fn a_new_store_and_one_of_an_older_gateway_are_taken_without_a_record() {
    let (_folder, path) = place();
    let store = open(&path);
    assert_eq!((store.loss(), store.has_lost_cells()), (None, false));
    let since = store.remembers_since().unwrap();
    let log = contract::new_log();
    contract::append(&store, &log, "event").await.unwrap();
    store.close().await;
    fs::remove_file(record_path(&path)).unwrap();
    remove_note_of_record(&path);
    let store = open(&path);
    assert_eq!((store.loss(), store.remembers_since()), (None, Some(since)));
    contract::append(&store, &log, "event").await.unwrap();
    store.close().await;
    // From then on there is one.
    fs::remove_file(record_path(&path)).unwrap();
    assert_lost(&open(&path), "may be an older copy");

    fs::remove_file(&path).unwrap();
    fs::write(record_path(&path), "{").unwrap();
    assert_lost(&open(&path), "missing");
}

/// Nothing shows where the store ended, so it may be a backup on a new volume.
#[tokio::test]
async fn a_store_whose_record_is_gone_or_unreadable_waits_for_the_record_or_an_operator() {
    type Damage = fn(&Path) -> std::io::Result<()>;
    let damages: [Damage; 4] = [
        |record| fs::remove_file(record),
        |record| fs::write(record, "{"),
        |record| fs::write(record, r#"{"version":2,"epoch":1,"commit":1,"sequence":1}"#),
        |record| fs::remove_file(record).and_then(|()| fs::create_dir(record)),
    ];
    for damage in damages {
        let (_folder, path) = place();
        let (log, _) = with_copy(&path).await;
        let record = record_path(&path);
        let right = fs::read(&record).unwrap();
        damage(&record).unwrap();
        for _ in 0..2 {
            let store = open(&path);
            assert_lost(&store, "may be an older copy");
            assert_refuses_everything(&store).await;
            store.close().await;
        }
        if record.is_dir() {
            fs::remove_dir(&record).unwrap();
        }
        fs::write(&record, right).unwrap();
        let store = open(&path);
        assert_eq!((store.loss(), store.has_lost_cells()), (None, false));
        assert_eq!(
            contract::texts(&contract::read_to_end(&store, &log).await.unwrap()),
            ["one", "two"]
        );
        store.close().await;

        fs::remove_file(&record).unwrap();
        let store = open(&path);
        store.accept_loss(false).await.unwrap().unwrap();
        assert_eq!((store.loss(), store.has_lost_cells(), store.unprotected()), (None, true, None));
        contract::append(&store, &log, "three").await.unwrap();
        store.close().await;
        assert_eq!(open(&path).loss(), None, "there is a record again");
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_written_is_reported_until_it_can() {
    let (_folder, path) = place();
    let (store, log) = (open(&path), contract::new_log());
    let record = record_path(&path);
    assert_eq!(store.unprotected(), None);
    // It is noticed also if nothing is stored.
    fs::remove_file(&record).unwrap();
    until(async || record.exists().then_some(())).await;
    fs::remove_file(&record).unwrap();
    fs::create_dir(&record).unwrap();
    let why = until(async || store.unprotected()).await;
    assert!(why.contains("store.redb.record") && why.contains("cannot be written"), "{why}");
    contract::append(&store, &log, "event").await.unwrap();
    fs::remove_dir(&record).unwrap();
    until(async || store.unprotected().is_none().then_some(())).await;
    store.close().await;
    assert_eq!(open(&path).loss(), None);
}

#[tokio::test]
async fn a_removed_file_is_noticed_at_once_and_can_be_put_back() {
    let (_folder, path) = place();
    let (store, log) = (open(&path), contract::new_log());
    let first = contract::append(&store, &log, "one").await.unwrap();
    let moved = path.with_extension("moved");
    fs::rename(&path, &moved).unwrap();
    // The next write notices it.
    let refused = contract::append(&store, &log, "two").await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert_lost(&store, "removed while the gateway was running");
    assert_refuses_everything(&store).await;
    fs::rename(&moved, &path).unwrap();
    until(async || store.loss().is_none().then_some(())).await;
    contract::append(&store, &log, "two").await.unwrap();

    fs::remove_file(&path).unwrap();
    // It is noticed without a write, too.
    until(async || store.loss()).await;
    assert!(store.accept_loss(false).await.unwrap().is_some());
    assert_eq!((store.loss(), store.has_lost_cells()), (None, false));
    let entries = contract::read_to_end(&store, &log).await.unwrap();
    assert_eq!(
        (contract::texts(&entries), entries[0].position),
        (vec!["one".into(), "two".into()], first)
    );
    contract::append(&store, &log, "three").await.unwrap();

    fs::remove_file(&path).unwrap();
    until(async || store.loss()).await;
    store.close().await;
    let store = open(&path);
    assert_eq!(store.loss(), None);
    let texts = contract::texts(&contract::read_to_end(&store, &log).await.unwrap());
    assert_eq!(texts, ["one", "two", "three"]);
}

#[tokio::test]
async fn a_file_in_the_place_of_ours_is_neither_used_nor_overwritten() {
    let (folder, path) = place();
    let (store, log) = (open(&path), contract::new_log());
    contract::append(&store, &log, "ours").await.unwrap();
    let other = folder.path().join("other.redb");
    with_copy(&other).await;
    fs::rename(&other, &path).unwrap();
    let theirs = fs::read(&path).unwrap();
    until(async || store.loss()).await;
    assert_refuses_everything(&store).await;
    let refused = store.accept_loss(false).await;
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("restart the gateway"), "{text}");
    store.close().await;
    assert_eq!(fs::read(&path).unwrap(), theirs);
    assert_lost(&open(&path), "not the one that");
}

#[tokio::test]
async fn a_restored_store_begins_a_new_epoch() {
    let (_folder, path) = place();
    let (store, log) = (open(&path), contract::new_log());
    let position = contract::append(&store, &log, "event").await.unwrap();
    let accepted = store.accept_loss(true).await.unwrap().unwrap();
    assert_eq!(accepted.what, "a backup was restored");
    assert!(store.has_lost_cells());
    let mut followed = store.follow(Some(position));
    assert_eq!(contract::next(&mut followed).await, Some(Followed::Lost(Lost::Replaced)));
    store.close().await;
    let store = open(&path);
    assert_eq!((store.loss(), store.has_lost_cells()), (None, true));
}

#[tokio::test]
async fn a_backup_that_is_restored_begins_a_new_epoch_and_the_former_file_is_kept() {
    let (_folder, path) = place();
    let (log, backup) = with_copy(&path).await;
    let running = open(&path);
    let last = contract::read_to_end(&running, &log).await.unwrap()[1].position;
    let refused = restore(&backup, &path).unwrap_err().to_string();
    assert!(refused.contains("is another gateway using it?"), "{refused}");
    running.close().await;
    assert!(restore(&path, &path).is_err(), "the store is no backup of itself");
    let no_store = path.with_extension("text");
    fs::write(&no_store, "not a store").unwrap();
    restore(&no_store, &path).unwrap_err();
    let untouched = open(&path);
    assert_eq!(contract::read_to_end(&untouched, &log).await.unwrap().len(), 2);
    untouched.close().await;

    let restored = restore(&backup, &path).unwrap();
    assert_eq!(restored.sequence, 1);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    let store = open(&path);
    assert_eq!((store.loss(), store.has_lost_cells()), (None, true));
    let mut followed = store.follow(Some(last));
    assert_eq!(contract::next(&mut followed).await, Some(Followed::Lost(Lost::Replaced)));
    assert_eq!(store.load(&CellName::permanent("guard/user/a")).await.unwrap(), None);
    assert_eq!(contract::texts(&contract::read_to_end(&store, &log).await.unwrap()), ["one"]);
    store.close().await;
    let former = open(&restored.replaced.unwrap());
    // The record is now that of the restored store.
    former.accept_loss(false).await.unwrap().unwrap();
    assert_eq!(
        contract::texts(&contract::read_to_end(&former, &log).await.unwrap()),
        ["one", "two"]
    );

    // It works also without a former file.
    fs::remove_file(&path).unwrap();
    assert_eq!(restore(&backup, &path).unwrap(), Restored { sequence: 1, replaced: None });
    assert_eq!(open(&path).loss(), None);
}

/// redb reports some damages with an error and some with a panic.
#[tokio::test]
async fn a_damaged_store_is_replaced_by_a_backup() {
    let (_folder, path) = place();
    let (_, backup) = with_copy(&path).await;
    let whole = fs::read(&path).unwrap();
    for part in 0..16 {
        let mut damaged = whole.clone();
        let (from, to) = (whole.len() * part / 16, whole.len() * (part + 1) / 16);
        damaged[from.max(16)..to].fill(0xff);
        fs::write(&path, &damaged).unwrap();
        let restored = restore(&backup, &path).unwrap();
        assert_eq!(restored.sequence, 1);
        assert_eq!(fs::read(restored.replaced.unwrap()).unwrap().len(), whole.len());
    }
}
