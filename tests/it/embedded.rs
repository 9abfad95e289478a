//! What the embedded store survives: a wrong clock, and a file that is removed or put back.

use std::{path::Path, process::Command};

use redb::{Database, ReadableTable, TableDefinition};
use thingspace_gateway::{proto::esim::watch_request_response::Event, simulator::DeviceResult};

use crate::{
    harness::*,
    process::{run, text},
};

const EVENTS: TableDefinition<u64, (i64, u128, &str, &[u8])> = TableDefinition::new("events");
const BY_AGE: TableDefinition<u64, (i64, &str)> = TableDefinition::new("by_age");
const TAIL: TableDefinition<(), (u64, u64, i64, u64, u64, u64)> = TableDefinition::new("tail");

const DAY_MICROS: i64 = 24 * 60 * 60 * 1_000_000;

/// Moves every time stamp of a store, as if the host's clock had been wrong while they were
/// written.
fn shift_stamps(path: &Path, by: i64) {
    let database = Database::open(path).unwrap();
    let txn = database.begin_write().unwrap();
    {
        let mut events = txn.open_table(EVENTS).unwrap();
        let sequences: Vec<_> = events.iter().unwrap().map(|row| row.unwrap().0.value()).collect();
        for sequence in sequences {
            let (time, id, log, event) = {
                let row = events.get(sequence).unwrap().unwrap();
                let (time, id, log, event) = row.value();
                (time, id, log.to_owned(), event.to_vec())
            };
            events.insert(sequence, (time + by, id, log.as_str(), event.as_slice())).unwrap();
        }
        let mut by_age = txn.open_table(BY_AGE).unwrap();
        let versions: Vec<_> = by_age.iter().unwrap().map(|row| row.unwrap().0.value()).collect();
        for version in versions {
            let (time, cell) = {
                let row = by_age.get(version).unwrap().unwrap();
                let (time, cell) = row.value();
                (time, cell.to_owned())
            };
            by_age.insert(version, (time + by, cell.as_str())).unwrap();
        }
        let mut tail = txn.open_table(TAIL).unwrap();
        let (commit, sequence, time, version, swept, bytes) =
            tail.get(()).unwrap().unwrap().value();
        tail.insert((), (commit, sequence, time + by, version, swept, bytes)).unwrap();
    }
    txn.commit().unwrap();
}

/// A host whose clock is 40 days ahead of the one that wrote the store, and one whose clock is
/// right again after 40 days too many.
#[tokio::test]
async fn a_clock_that_jumps_by_forty_days_deletes_nothing() {
    for days in [-40, 40] {
        let upstream = Upstream::manual().await;
        let config = upstream.config();
        let gateway = Process::serve(&config, upstream.dir.path());
        let mut client = gateway.client().await;
        let mut ids = Vec::new();
        for n in 0..5 {
            ids.push(place(&mut client, &n.to_string(), [n]).await.unwrap());
        }
        gateway.terminate();
        assert!(gateway.wait().await.0.success());
        shift_stamps(&config.store.path, days * DAY_MICROS);

        let gateway = Process::serve(&config, upstream.dir.path());
        let mut client = gateway.client().await;
        for (n, id) in ids.iter().enumerate() {
            let polls = upstream.sim.ledger().polls_of(id);
            assert_eq!(place(&mut client, &n.to_string(), [n]).await.unwrap(), *id, "{days} days");
            upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls_of(id) > polls + 1).await;
            let status = get_status(&mut client, status_call(id)).await.unwrap();
            assert!(!status.polling_stopped, "{days} days: polling was given up");
        }
        assert_eq!(upstream.sim.ledger().orders.len(), ids.len(), "{days} days");
        gateway.terminate();
        let (_, log) = gateway.wait().await;
        let warned = |what: &str| log.iter().any(|line| line.contains(what));
        assert_eq!(warned("behind the last time stamp"), days > 0, "{log:?}");
        assert_eq!(warned("or the clock is ahead"), days < 0, "{log:?}");
    }
}

/// Removing the file under load is noticed at once, and the same key never orders twice.
#[tokio::test]
async fn a_store_that_is_removed_under_a_running_gateway() {
    let upstream = Upstream::manual().await;
    let config = upstream.config();
    let gateway = Process::serve(&config, upstream.dir.path());
    let mut client = gateway.client().await;
    let first = place(&mut client, "first", [1]).await.unwrap();
    std::fs::remove_file(&config.store.path).unwrap();
    let refused = place(&mut client, "second", [2]).await.unwrap_err();
    assert_eq!(reason(&refused), "STORE_UNAVAILABLE");
    assert_eq!(upstream.sim.ledger().orders.len(), 1);
    gateway.terminate();
    let (_, log) = gateway.wait().await;
    let errors: Vec<_> = log.iter().filter(|line| line.contains("\"ERROR\"")).collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("was removed while the gateway was running"), "{errors:?}");

    // It was written again at the end.
    let gateway = Process::serve(&config, upstream.dir.path());
    let mut client = gateway.client().await;
    assert_eq!(place(&mut client, "first", [1]).await.unwrap(), first);
    place(&mut client, "second", [2]).await.unwrap();
    assert_eq!(upstream.sim.ledger().orders.len(), 2);
}

/// `store restore` works only while the gateway is stopped, and what it restores is used at once.
#[tokio::test]
async fn a_backup_is_restored_by_a_command() {
    let upstream = Upstream::manual().await;
    let config = upstream.config();
    let backup = upstream.dir.path().join("backup");
    let restore = || {
        let mut command = Command::new(binary());
        command.args(["store", "restore"]).arg(&backup);
        command.arg("--config").arg(write_config(&config, upstream.dir.path()));
        run(command)
    };
    let gateway = Process::serve(&config, upstream.dir.path());
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", [1]).await.unwrap();
    gateway.terminate();
    assert!(gateway.wait().await.0.success());
    std::fs::copy(&config.store.path, &backup).unwrap();
    let gateway = Process::serve(&config, upstream.dir.path());
    let mut watching = watch(&mut gateway.client().await, &id, "").await.unwrap();
    let (_, token) = watching.event().await;
    let refused = restore().await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("stop it first"), "{}", text(&refused.stderr));
    gateway.terminate();
    assert!(gateway.wait().await.0.success());

    let restored = restore().await;
    assert!(restored.status.success(), "{}", text(&restored.stderr));
    assert!(text(&restored.stdout).contains("unblock"), "{}", text(&restored.stdout));
    let gateway = Process::serve(&config, upstream.dir.path());
    let mut client = gateway.client().await;
    assert_eq!(place(&mut client, "k", [1]).await.unwrap(), id);
    // The token belongs to another epoch: the watch begins with a snapshot.
    let mut watching = watch(&mut client, &id, &token).await.unwrap();
    assert!(matches!(watching.event().await.0, Event::Snapshot(_)));
}

/// A damaged log affects its own request only.
#[tokio::test]
async fn a_log_that_cannot_be_read_is_set_aside() {
    const BY_LOG: redb::TableDefinition<(&str, u64), ()> = redb::TableDefinition::new("by_log");
    let upstream = Upstream::manual().await;
    let config = upstream.config();
    let gateway = Gateway::start(config.clone()).await;
    let mut client = gateway.client().await;
    let damaged = place(&mut client, "damaged", [0]).await.unwrap();
    let sound = place(&mut client, "sound", [1]).await.unwrap();
    gateway.stop().await;
    let log = format!("r.{damaged}");
    let database = redb::Database::open(&config.store.path).unwrap();
    let txn = database.begin_write().unwrap();
    // An event that is not there.
    txn.open_table(BY_LOG).unwrap().insert((log.as_str(), u64::MAX - 1), ()).unwrap();
    txn.commit().unwrap();
    drop(database);

    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    let unreadable: Vec<_> =
        gateway.requests.unreadable_logs().into_iter().map(|(log, _)| log).collect();
    assert_eq!(unreadable, [log]);
    assert_eq!(
        get_status(&mut client, status_call(&sound)).await.unwrap().request_id,
        sound.as_str()
    );
    let status = get_status(&mut client, status_call(&damaged)).await.unwrap_err();
    assert_eq!(kind(&status).1, "INTERNAL");
    let third = place(&mut client, "third", [2]).await.unwrap();
    upstream.sim.finish_all(&third, DeviceResult::Success);
    within("it is polled", watch(&mut client, &third, "")).await.unwrap().rest().await;
    gateway.stop().await;
}
