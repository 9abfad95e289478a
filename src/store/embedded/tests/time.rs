//! Ages in running time: neither the wall clock nor downtime changes them.

use jiff::SignedDuration;

use super::*;

/// Moves every time stamp in a closed file, as if the host's clock had been wrong.
fn shift_stamps(path: &Path, by: SignedDuration) {
    let by = i64::try_from(by.as_micros()).unwrap();
    let mut tail = tail(path);
    tail.time = Timestamp::from_microsecond(tail.time.as_microsecond() + by).unwrap();
    let database = file::open(path).unwrap();
    let txn = database.begin_write().unwrap();
    {
        let mut tables = Tables::open(&txn).unwrap();
        let events: Vec<_> =
            tables.events.iter().unwrap().map(|row| row.unwrap().0.value()).collect();
        for sequence in events {
            let (time, id, log, event) = {
                let row = tables.events.get(sequence).unwrap().unwrap();
                let (time, id, log, event) = row.value();
                (time, id, log.to_owned(), event.to_vec())
            };
            tables
                .events
                .insert(sequence, (time + by, id, log.as_str(), event.as_slice()))
                .unwrap();
        }
        let cells: Vec<_> =
            tables.by_age.iter().unwrap().map(|row| row.unwrap().0.value()).collect();
        for version in cells {
            let (time, cell) = {
                let row = tables.by_age.get(version).unwrap().unwrap();
                let (time, cell) = row.value();
                (time, cell.to_owned())
            };
            tables.by_age.insert(version, (time + by, cell.as_str())).unwrap();
        }
    }
    tail.save(&txn).unwrap();
    txn.commit().unwrap();
}

/// Makes a file of an older gateway.
fn remove_samples(path: &Path) {
    let database = file::open(path).unwrap();
    let txn = database.begin_write().unwrap();
    assert!(txn.delete_table(TableDefinition::<u64, (u64, u64)>::new("rungs")).unwrap());
    txn.commit().unwrap();
}

#[tokio::test]
async fn a_wrong_clock_deletes_nothing() {
    for (days, old_file) in [(-40, false), (40, false), (-40, true)] {
        let (_folder, path) = place();
        let (store, log, cell) = (open(&path), contract::new_log(), CellName::retained("cell"));
        let first = contract::append(&store, &log, "event").await.unwrap();
        store.swap(&cell, None, Bytes::new()).await.unwrap();
        store.close().await;
        shift_stamps(&path, SignedDuration::from_hours(24 * days));
        if old_file {
            remove_samples(&path);
        }

        let store = open(&path);
        // Old rows are removed before the first job.
        contract::append(&store, &log, "after").await.unwrap();
        let entries = contract::read_to_end(&store, &log).await.unwrap();
        assert_eq!(contract::texts(&entries), ["event", "after"], "{days} days");
        assert!(store.load(&cell).await.unwrap().is_some(), "{days} days");
        assert!(store.age(first, entries[0].time) < KEEP, "{days} days");
        store.close().await;
    }
}

#[tokio::test]
async fn age_continues_after_a_restart_and_downtime_does_not_count() {
    const SOME: Duration = Duration::from_millis(20);
    const DOWN: Duration = Duration::from_millis(300);
    let (_folder, path) = place();
    let began = Instant::now();
    let (store, log) = (open(&path), contract::new_log());
    let first = contract::append(&store, &log, "event").await.unwrap();
    let age = |store: &Embedded| store.age(first, Timestamp::UNIX_EPOCH);
    until(async || (age(&store) >= SOME).then_some(())).await;
    store.close().await;
    // After a restart, the age counts from the end of the session that stored the event.
    let store = open(&path);
    until(async || (age(&store) >= SOME).then_some(())).await;
    store.close().await;
    tokio::time::sleep(DOWN).await;

    let store = open(&path);
    let running = began.elapsed().checked_sub(DOWN).unwrap();
    assert!((SOME..=running).contains(&age(&store)), "{:?}", age(&store));
    let later = contract::append(&store, &log, "later").await.unwrap();
    until(async || (store.age(later, Timestamp::UNIX_EPOCH) >= SOME).then_some(())).await;
    assert!(age(&store) > store.age(later, Timestamp::UNIX_EPOCH));
    for unknown in [
        Position { sequence: later.sequence + 1, ..later },
        Position { epoch: later.epoch ^ 1, ..first },
    ] {
        assert_eq!(store.age(unknown, Timestamp::UNIX_EPOCH), Duration::ZERO);
    }
}
