//! Promises 3 and 4 on a full disk: nothing acknowledged is lost, nothing is ordered that the store did not take first, and
//! when there is space again the gateway goes on without a restart.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tonic::{Code, Status};
use tonic_types::StatusExt;

use thingspace_gateway::identity::RequestId;

use crate::{assert_known, assert_nothing_ordered_twice, harness::*, placed};

/// Set for the copy of this test that runs in a name space of its own.
const NESTED: &str = "HEAVY_DISK_NESTED";

/// In MiB.
const DISK: usize = 8;
const BALLAST: usize = 3;

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

fn devices(order: usize) -> std::ops::Range<usize> {
    order * DEVICES_PER_ORDER..(order + 1) * DEVICES_PER_ORDER
}

async fn place_nth(client: &mut Client, n: usize) -> Result<RequestId, Status> {
    place(client, &n.to_string(), devices(n)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_and_then_space_again() {
    /// The disk is full when so many orders in a row failed.
    const FAILURES: usize = 5;

    let upstream = Upstream::manual().await;
    let mut config = upstream.config();
    let disk = upstream.dir.path().join("disk");
    config.store.path = disk.join("store.redb");
    let Some(_mounted) = Disk::mount(&disk) else { return run_nested() };
    let ballast = disk.join("ballast");
    fs::write(&ballast, vec![1; BALLAST << 20]).unwrap();

    let gateway = Process::serve(&config, upstream.dir.path());
    let mut client = gateway.client().await;
    let mut told = Vec::new();
    while told.iter().rev().take_while(|told: &&Result<_, Status>| told.is_err()).count() < FAILURES {
        told.push(place_nth(&mut client, told.len()).await);
        assert!(told.len() < 1_000, "the disk does not get full");
    }
    assert!(told[0].is_ok());
    // From here on nothing is looked at twice, lest a repeat repairs what the first answer got wrong.
    let ledger = upstream.sim.ledger();
    for (n, told) in told.iter().enumerate() {
        let ordered = placed(&ledger).get(&device(devices(n).start).eid).cloned();
        match told {
            Ok(id) => assert_eq!(ordered.as_ref(), Some(id)),
            Err(error) => match (error.code(), reason(error).as_str()) {
                (Code::Unavailable, "STORE_UNAVAILABLE") => assert_eq!(ordered, None, "order {n} was sent"),
                (Code::FailedPrecondition, "ORDER_OUTCOME_UNKNOWN") => {}
                _ => panic!("order {n}: {error:?}"),
            },
        }
    }

    fs::remove_file(&ballast).unwrap();
    let fresh = told.len();
    eventually("orders work again", || {
        let mut client = client.clone();
        async move { place_nth(&mut client, fresh).await.is_ok() }
    })
    .await;
    let mut again = Vec::new();
    for (n, told) in told.iter().enumerate() {
        again.push(settled(&client, n).await);
        match (told, &again[n]) {
            (Ok(told), Ok(again)) => assert_eq!(told, again),
            (Ok(told), Err(lost)) => panic!("order {n}: acknowledged as {told}, and now: {lost:?}"),
            (Err(error), now) => {
                // What ThingSpace had answered is not forgotten because the disk was full.
                let known = error.get_details_error_info().unwrap().metadata.get("requestId").cloned();
                assert!(known.is_none_or(|id| now.as_ref().is_ok_and(|now| now.as_str() == id)), "order {n}");
            }
        }
    }
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
        assert_eq!(place_nth(&mut client, *n).await.unwrap(), **id);
    }
    assert_nothing_ordered_twice(&upstream.sim.ledger());
}

/// What the `n`th order came to, once its call is neither in progress nor to be repeated.
async fn settled(client: &Client, n: usize) -> Result<RequestId, Status> {
    let outcome = std::sync::Mutex::new(None);
    eventually("an order is settled", || {
        let (mut client, outcome) = (client.clone(), &outcome);
        async move {
            let told = place_nth(&mut client, n).await;
            let repeat = told.as_ref().is_err_and(|error| error.code() == Code::Unavailable);
            *outcome.lock().unwrap() = (!repeat).then_some(told);
            !repeat
        }
    })
    .await;
    outcome.into_inner().unwrap().unwrap()
}
