//! Promises 3 and 4 on a full disk: nothing acknowledged is lost, nothing is ordered that the store did not take first, and
//! when there is space again the gateway goes on without a restart.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use tonic::{Code, Status};
use tonic_types::StatusExt;

use thingspace_gateway::{
    identity::RequestId,
    simulator::{Endpoint, Fault, Gate, What, When},
};

use crate::{assert_known, assert_nothing_ordered_twice, harness::*, placed, quiet};

/// Set for the copy of this test that runs in a name space of its own.
const NESTED: &str = "HEAVY_DISK_NESTED";

/// In MiB.
const DISK: usize = 8;
const BALLAST: usize = 4;

/// So that a few dozen orders fill the disk.
const DEVICES_PER_ORDER: usize = 200;

/// A small file system, unmounted at the end.
struct Disk(PathBuf);

impl Disk {
    /// `None`: this user may not mount.
    fn mount(at: &Path) -> Option<Self> {
        fs::create_dir(at).unwrap();
        let options = format!("size={DISK}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: after a failure the gateway may still have its file open.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Runs this test again as root of a name space of its own, where everybody may mount.
fn run_nested() {
    assert!(
        std::env::var_os(NESTED).is_none(),
        "cannot mount a tmpfs, not even in a user name space of our own"
    );
    let test = std::env::current_exe().unwrap();
    let status = Command::new("unshare")
        .args(["--map-root-user", "--mount"])
        .arg(test)
        .args(["--exact", "disk::a_full_disk_and_then_space_again", "--nocapture"])
        .env(NESTED, "1")
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "a small file system is needed: run as root, or where `unshare --map-root-user --mount` works"
    );
}

const LATE: Range<usize> = 1_000_000..1_000_003;
const FRESH: Range<usize> = 1_000_003..1_000_006;

/// The `n`th order, under a key of its own.
async fn place_nth(client: &mut Client, orders: &[Range<usize>], n: usize) -> Result<RequestId, Status> {
    place(client, &n.to_string(), orders[n].clone()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_and_then_space_again() {
    /// The disk is full when so many orders in a row failed.
    const FAILURES: usize = 5;

    let upstream = Upstream::manual().await;
    let mut config = quiet(&upstream);
    let disk = upstream.dir.path().join("disk");
    config.store.path = disk.join("store.redb");
    let Some(_mounted) = Disk::mount(&disk) else { return run_nested() };
    let ballast = disk.join("ballast");
    fs::write(&ballast, vec![1; BALLAST << 20]).unwrap();

    let gateway = Process::serve(&config, upstream.dir.path());
    let mut client = gateway.client().await;
    // One order has been executed, and its answer comes when the disk is full.
    let gate = Gate::default();
    upstream.sim.inject(Fault::once(Endpoint::Download, When::AfterEffect, What::Hold(gate.clone())));
    let late = tokio::spawn({
        let mut client = client.clone();
        async move { place(&mut client, "late", LATE).await }
    });
    let ledger = upstream.sim.wait_until(DEADLINE, |ledger| ledger.orders.len() == 1).await;
    let late_id = ledger.orders[0].request_id.clone();

    // Large orders until no more of them fit, then small ones.
    let mut told = Vec::new();
    let mut orders = Vec::new();
    for size in [DEVICES_PER_ORDER, 1] {
        let mut failures = 0;
        while failures < FAILURES {
            let first = orders.len() * DEVICES_PER_ORDER;
            let n = orders.len();
            orders.push(first..first + size);
            told.push(place_nth(&mut client, &orders, n).await);
            failures = if told[n].is_ok() { 0 } else { failures + 1 };
            assert!(n < 1_000, "the disk does not get full");
        }
    }
    let devices = |n: usize| orders[n].clone();
    gate.open();
    match late.await.unwrap() {
        // There was room left for so little.
        Ok(id) => assert_eq!(id, late_id),
        Err(error) => {
            assert_eq!(reason(&error), "ORDER_OUTCOME_UNKNOWN");
            let details = error.get_details_error_info().unwrap();
            assert_eq!(details.metadata["requestId"], late_id.as_str());
        }
    }
    // What was stored can still be asked for.
    assert_known(&mut client, told[0].as_ref().unwrap(), devices(0)).await;
    // Before any call is repeated, which would repair what the first answer got wrong.
    let ledger = placed(&upstream.sim.ledger());
    for (n, told) in told.iter().enumerate() {
        let ordered = ledger.get(&device(devices(n).start).eid);
        match told {
            Ok(id) => assert_eq!(ordered, Some(id)),
            Err(error) => match (error.code(), reason(error).as_str()) {
                (Code::Unavailable, "STORE_UNAVAILABLE") => assert_eq!(ordered, None, "order {n} was sent"),
                (Code::FailedPrecondition, "ORDER_OUTCOME_UNKNOWN") => {}
                _ => panic!("order {n}: {error:?}"),
            },
        }
    }

    fs::remove_file(&ballast).unwrap();
    eventually("orders work again", || {
        let mut client = client.clone();
        async move { place(&mut client, "fresh", FRESH).await.is_ok() }
    })
    .await;
    let mut again = Vec::new();
    for (n, told) in told.iter().enumerate() {
        again.push(settled(&client, &n.to_string(), devices(n)).await);
        if let Ok(told) = told {
            assert_eq!(again[n].as_ref().unwrap(), told);
        }
    }
    // What ThingSpace had answered was not forgotten because the disk was full.
    assert_eq!(settled(&client, "late", LATE).await.unwrap(), late_id);
    assert_known(&mut client, &late_id, LATE).await;
    let acknowledged: Vec<_> =
        again.iter().enumerate().filter_map(|(n, told)| Some((n, told.as_ref().ok()?))).collect();
    for (n, id) in &acknowledged {
        assert_known(&mut client, id, devices(*n)).await;
    }

    gateway.kill();
    let gateway = Process::serve(&config, upstream.dir.path());
    let mut client = gateway.client().await;
    for (n, id) in &acknowledged {
        assert_known(&mut client, id, devices(*n)).await;
        assert_eq!(place_nth(&mut client, &orders, *n).await.unwrap(), **id);
    }
    assert_known(&mut client, &late_id, LATE).await;
    assert_nothing_ordered_twice(&upstream.sim.ledger());
}

/// What an order came to, once its call is neither in progress nor to be repeated.
async fn settled(client: &Client, key: &str, devices: Range<usize>) -> Result<RequestId, Status> {
    let outcome = Mutex::new(None);
    eventually("an order is settled", || {
        let (mut client, outcome, devices) = (client.clone(), &outcome, devices.clone());
        async move {
            let told = place(&mut client, key, devices).await;
            let repeat = told.as_ref().is_err_and(|error| error.code() == Code::Unavailable);
            *outcome.lock().unwrap() = Some(told);
            !repeat
        }
    })
    .await;
    outcome.into_inner().unwrap().unwrap()
}
