//! Calls while the disk fails.

use std::{future, io::ErrorKind};

use super::{
    faulty::{Disk, Fault},
    *,
};

const CACHE: usize = 1024 * 1024;

/// If any single write or sync fails, the answer is definite and right.
#[tokio::test]
async fn every_single_failure_is_settled() {
    for swap in [false, true] {
        let (mut stored, mut refused) = (0, 0);
        for after in 0.. {
            let (_folder, path) = place();
            let (store, disk) = Disk::store(&path, CACHE);
            let (log, cell) = (contract::new_log(), CellName::permanent("cell"));
            contract::append(&store, &log, "before").await.unwrap();
            disk.set(Fault::Once(after, ErrorKind::StorageFull));
            let answer = if swap {
                store
                    .swap(&cell, None, Bytes::new())
                    .await
                    .map(|swap| assert_eq!(swap, Swap::Swapped(Version(1))))
            } else {
                contract::append(&store, &log, "at").await.map(|_| ())
            };
            let failed = disk.fault() == Fault::None;
            disk.set(Fault::None);
            contract::append(&store, &log, "after").await.unwrap();
            store.close().await;

            let store = open(&path);
            let texts = contract::texts(&contract::read_to_end(&store, &log).await.unwrap());
            let there = if swap {
                assert_eq!(texts, ["before", "after"]);
                store.load(&cell).await.unwrap().is_some()
            } else {
                assert_eq!((&*texts[0], &*texts[texts.len() - 1]), ("before", "after"));
                texts.len() == 3
            };
            match answer {
                Ok(()) => assert!(there, "acknowledged and lost, failure {after}"),
                Err(StoreError::Full(_)) => assert!(!there, "refused and stored, failure {after}"),
                Err(error) => panic!("{error}, failure {after}"),
            }
            match (failed, there) {
                (false, _) => break,
                (true, true) => stored += 1,
                (true, false) => refused += 1,
            }
        }
        // The last failure is that of the sync, after everything was written.
        assert!(stored > 0 && refused > 0, "{stored} stored, {refused} refused");
    }
}

#[tokio::test]
async fn full() {
    for reports_free in [true, false] {
        let (_folder, path) = place();
        let make = if reports_free { Disk::store } else { Disk::with_quota };
        let (store, disk) = make(&path, CACHE);
        let fill = async || disk.set(Fault::Growth(ErrorKind::StorageFull));
        let free = async || {
            let trouble = store.trouble().unwrap();
            assert!(trouble.starts_with("the last write failed"), "{trouble}");
            disk.set(Fault::None);
        };
        contract::full(&store, fill, free).await;
        assert_eq!(store.trouble(), None);
    }
}

/// While the disk is full, reads go on and nothing is written; five times.
#[tokio::test]
async fn a_full_disk_is_not_touched_and_what_is_stored_can_be_read() {
    let (_folder, path) = place();
    let (store, disk) = Disk::store(&path, CACHE);
    let (log, cell) = (contract::new_log(), CellName::permanent("cell"));
    let mut expected = Vec::new();
    for round in 0..5 {
        let text = round.to_string();
        until(async || contract::append(&store, &log, &text).await.ok()).await;
        expected.push(text);
        until(async || store.shortage().is_none().then_some(())).await;
        let opened = disk.opened();
        disk.set(Fault::Growth(ErrorKind::StorageFull));
        for _ in 0..50 {
            let refused = contract::append(&store, &log, "refused").await;
            assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
            let refused = store.swap(&cell, None, Bytes::new()).await;
            assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
            let entries = contract::read_to_end(&store, &log).await.unwrap();
            assert_eq!(contract::texts(&entries), expected);
            assert_eq!(store.load(&cell).await.unwrap(), None);
        }
        assert!(store.shortage().is_some() && store.trouble().is_some());
        assert_eq!(disk.opened(), opened, "the file was reopened");
        disk.set(Fault::None);
        // It is noticed without a write.
        until(async || store.shortage().is_none().then_some(())).await;
        assert_eq!(store.trouble(), None);
    }
}

/// A quota shows only when a write fails. The file is not repaired for each attempt.
#[tokio::test]
async fn a_disk_with_a_quota_is_tried_rarely() {
    let (_folder, path) = place();
    let (store, disk) = Disk::with_quota(&path, CACHE);
    let log = contract::new_log();
    contract::append(&store, &log, "before").await.unwrap();
    disk.set(Fault::Growth(ErrorKind::QuotaExceeded));
    let mut refused = 0;
    let large = Bytes::from(vec![0; 100_000]);
    while refused < 200 {
        match store.append(&log, Uuid::new_v4(), large.clone()).await {
            Err(StoreError::Full(_)) => refused += 1,
            other => drop(other.unwrap()),
        }
        assert!(store.read(&log, 0, 1).await.is_ok(), "reads stopped after {refused}");
    }
    // Once at the start, once for each of the first two failures, and at most twice more.
    assert!((3..=5).contains(&disk.opened()), "{}", disk.opened());
    assert!(store.shortage().is_some());
    disk.set(Fault::None);
    until(async || contract::append(&store, &log, "after").await.ok()).await;
    assert_eq!(store.shortage(), None);
}

#[tokio::test]
async fn a_write_that_is_not_settled_in_time_is_unknown_and_can_be_repeated() {
    let (_folder, path) = place();
    let (store, disk) = Disk::store(&path, CACHE);
    let (log, id) = (contract::new_log(), Uuid::new_v4());
    contract::append(&store, &log, "before").await.unwrap();
    disk.set(Fault::All(ErrorKind::Other));
    let event = Bytes::from_static(b"at");
    let ambiguous = store.append(&log, id, event.clone()).await;
    assert!(matches!(ambiguous, Err(StoreError::UnknownOutcome(_))), "{ambiguous:?}");
    for refused in
        [store.append(&log, id, event.clone()).await.err(), store.read(&log, 0, 1).await.err()]
    {
        assert!(matches!(refused, Some(StoreError::Unavailable(_))), "{refused:?}");
    }
    disk.set(Fault::None);
    until(async || store.read(&log, 0, 1).await.ok()).await;
    store.append(&log, id, event).await.unwrap();
    assert_eq!(
        contract::texts(&contract::read_to_end(&store, &log).await.unwrap()),
        ["before", "at"]
    );
}

#[tokio::test]
async fn closing_does_not_wait_for_a_dead_disk() {
    let (_folder, path) = place();
    let (store, disk) = Disk::store(&path, CACHE);
    disk.set(Fault::All(ErrorKind::Other));
    contract::append(&store, &contract::new_log(), "lost").await.unwrap_err();
    store.close().await;
    disk.set(Fault::None);
    open(&path).close().await;
}

/// Another store under the same name is not written.
#[tokio::test]
async fn another_file_is_not_used() {
    let (_folder, path) = place();
    let (store, disk) = Disk::store(&path, CACHE);
    let log = contract::new_log();
    contract::append(&store, &log, "before").await.unwrap();
    let ours = path.with_extension("ours");
    std::fs::rename(&path, &ours).unwrap();
    let other = open(&path);
    other.close().await;
    disk.set(Fault::Once(0, ErrorKind::Other));
    for _ in 0..2 {
        let refused = contract::append(&store, &log, "at").await;
        let Err(StoreError::Unavailable(text)) = refused else { panic!("{refused:?}") };
        assert!(text.contains("taken the place"), "{text}");
    }

    std::fs::rename(&ours, &path).unwrap();
    until(async || contract::append(&store, &log, "after").await.ok()).await;
    assert_eq!(
        contract::texts(&contract::read_to_end(&store, &log).await.unwrap()),
        ["before", "after"]
    );
}

#[tokio::test]
async fn a_failed_read_alone_makes_it_reopen() {
    let (_folder, path) = place();
    let log = contract::new_log();
    let (store, disk) = Disk::store(&path, 0);
    contract::append(&store, &log, "before").await.unwrap();
    let mut followed = store.follow(None);
    disk.set(Fault::Read(ErrorKind::Other));
    let failed = store.read(&log, 0, 1).await;
    assert!(matches!(failed, Err(StoreError::Unavailable(_))), "{failed:?}");
    let entries = until(async || store.read(&log, 0, 1).await.ok()).await;
    assert_eq!(contract::texts(&entries), ["before"]);
    assert_eq!(contract::catch_up(&mut followed).await.0.len(), 1);
}

#[tokio::test]
async fn a_panic_of_redb_is_one_more_failure() {
    let (_folder, path) = place();
    let (store, disk) = Disk::store(&path, CACHE);
    let log = contract::new_log();
    contract::append(&store, &log, "before").await.unwrap();
    disk.set(Fault::Panic);
    let panicked = contract::append(&store, &log, "at").await;
    assert!(matches!(panicked, Err(StoreError::Corrupt(_))), "{panicked:?}");
    contract::append(&store, &log, "after").await.unwrap();
    assert_eq!(
        contract::texts(&contract::read_to_end(&store, &log).await.unwrap()),
        ["before", "after"]
    );
}

/// Appends that wait for a sync share the next one.
#[tokio::test]
async fn concurrent_appends_share_a_commit() {
    let (_folder, path) = place();
    let (store, disk) = Disk::store(&path, CACHE);
    let log = contract::new_log();
    disk.set(Fault::Hold);
    let mut first = Box::pin(contract::append(&store, &log, "first"));
    let mut rest =
        Box::pin(try_join_all((0..100).map(|_| contract::append(&store, &log, "shared"))));
    // After one poll each has queued its job.
    tokio::select! {
        biased;
        _ = &mut first => panic!("acknowledged before it was synced"),
        () = future::ready(()) => {}
    }
    until(async || (disk.fault() == Fault::Held).then_some(())).await;
    tokio::select! {
        biased;
        _ = &mut rest => panic!("acknowledged before it was synced"),
        () = future::ready(()) => {}
    }
    assert!(store.read(&log, 0, 1).await.unwrap().is_empty(), "visible before it was synced");
    disk.set(Fault::None);
    first.await.unwrap();
    rest.await.unwrap();
    store.close().await;
    assert_eq!(tail(&path).commit, 2);
}
