//! Promises 3 and 4 of the README on a full disk: nothing acknowledged is lost, no order is sent
//! before it is stored, and with space again the gateway continues without a restart.

use std::{
    fs::{self, File},
    io::Write as _,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use tokio::task::JoinHandle;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use thingspace_gateway::{
    config::Config,
    identity::RequestId,
    proto::esim::RequestState,
    simulator::{DeviceResult, Endpoint, Fault, Gate, What, When},
};

use crate::{assert_known, assert_nothing_ordered_twice, harness::*, placed};

/// Set in the process that runs this test in a name space of its own.
const NESTED: &str = "HEAVY_DISK_NESTED";

/// The size of the disk in MiB. The gateway reserves 32 of them for the known orders.
const DISK: u64 = 96;

/// The free space in MiB when orders begin to fill the disk.
const LEFT: u64 = 33;

const MIB: u64 = 1 << 20;

/// How often the disk is filled and emptied.
const ROUNDS: usize = 5;

/// Large enough that a few dozen orders fill the disk up to the reserve.
const DEVICES_PER_ORDER: usize = 200;

/// The disk counts as full when this number of orders in a row was refused.
const REFUSALS: usize = 3;

/// A small file system, unmounted at the end.
struct Disk(PathBuf);

impl Disk {
    /// `None`: this user may not mount.
    fn mount(at: &Path) -> Option<Self> {
        fs::create_dir(at).unwrap();
        let options = format!("size={DISK}m");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(at.to_owned()))
    }

    /// Fills it up to this number of free bytes.
    fn fill(&self, ballast: &str, left: u64) {
        const CHUNK: u64 = 64 << 10;
        let mut file = File::create(self.0.join(ballast)).unwrap();
        loop {
            let disk = rustix::fs::statvfs(&self.0).unwrap();
            let free = disk.f_bavail * disk.f_frsize;
            let chunk = free.saturating_sub(left).min(CHUNK);
            if chunk == 0 || file.write_all(&vec![1; usize::try_from(chunk).unwrap()]).is_err() {
                return;
            }
        }
    }

    fn empty(&self, ballast: &str) {
        fs::remove_file(self.0.join(ballast)).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: after a failure the gateway may still have its file open.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Runs this test again as root of a name space of its own, where any user may mount.
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
        "a small file system is needed: run as root, or where \
         `unshare --map-root-user --mount` works"
    );
}

/// An order and the answer to it.
struct Told {
    key: String,
    devices: Range<usize>,
    outcome: Result<RequestId, Status>,
}

/// Devices that no other order has.
fn devices_of(n: usize, count: usize) -> Range<usize> {
    n * DEVICES_PER_ORDER..n * DEVICES_PER_ORDER + count
}

/// An order that ThingSpace has executed and whose answer it holds back.
struct Held {
    gate: Gate,
    key: String,
    devices: Range<usize>,
    id: RequestId,
    answer: JoinHandle<Result<RequestId, Status>>,
}

impl Held {
    async fn place(
        upstream: &Upstream,
        client: &Client,
        key: String,
        devices: Range<usize>,
    ) -> Self {
        let gate = Gate::default();
        let before = upstream.sim.ledger().orders.len();
        upstream.sim.inject(Fault::once(
            Endpoint::Download,
            When::AfterEffect,
            What::Hold(gate.clone()),
        ));
        let answer = tokio::spawn({
            let (mut client, key, devices) = (client.clone(), key.clone(), devices.clone());
            async move { place(&mut client, &key, devices).await }
        });
        let ledger =
            upstream.sim.wait_until(DEADLINE, |ledger| ledger.orders.len() == before + 1).await;
        let id = ledger.orders[before].request_id.clone();
        Self { gate, key, devices, id, answer }
    }

    async fn release(self) -> Told {
        self.gate.open();
        Told { key: self.key, devices: self.devices, outcome: self.answer.await.unwrap() }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_and_then_space_again() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    let folder = upstream.dir.path().join("disk");
    config.store.path = folder.join("store.redb");
    let Some(disk) = Disk::mount(&folder) else { return run_nested() };
    let gateway = Process::serve(&config, upstream.dir.path());
    let mut client = gateway.client().await;
    let mut orders = 0..;
    let mut next = || orders.next().unwrap();
    let mut told = Vec::new();
    for _ in 0..ROUNDS {
        let n = next();
        let first = place(&mut client, &n.to_string(), devices_of(n, 1)).await.unwrap();
        let (fits, does_not) = (next(), next());
        let fits = Held::place(&upstream, &client, fits.to_string(), devices_of(fits, 3)).await;
        let does_not =
            Held::place(&upstream, &client, does_not.to_string(), devices_of(does_not, 3)).await;

        disk.fill("ballast", LEFT * MIB);
        let mut refused = 0;
        while refused < REFUSALS {
            let n = next();
            let outcome =
                place(&mut client, &n.to_string(), devices_of(n, DEVICES_PER_ORDER)).await;
            match &outcome {
                Ok(_) => refused = 0,
                Err(error) => {
                    assert_eq!(
                        (error.code(), reason(error).as_str()),
                        (Code::ResourceExhausted, "STORE_FULL")
                    );
                    assert!(error.get_details_retry_info().is_some());
                    refused += 1;
                }
            }
            told.push(Told {
                key: n.to_string(),
                devices: devices_of(n, DEVICES_PER_ORDER),
                outcome,
            });
        }
        // Results of known orders still fit.
        let id = fits.id.clone();
        let answered = fits.release().await;
        assert_eq!(*answered.outcome.as_ref().unwrap(), id);
        told.push(answered);
        upstream.sim.finish_all(&id, DeviceResult::Success);
        let status = get_status(&mut client, status_call(&id)).await.unwrap();
        assert_eq!(status.state(), RequestState::Succeeded);
        let status = control(&config, upstream.dir.path(), "status");
        assert!(status.contains("new orders are refused"), "{status}");

        disk.fill("more", 0);
        let id = does_not.id.clone();
        let answered = does_not.release().await;
        let error = answered.outcome.as_ref().unwrap_err();
        assert_eq!(reason(error), "ORDER_OUTCOME_UNKNOWN");
        assert_eq!(error.get_details_error_info().unwrap().metadata["requestId"], id.as_str());
        told.push(answered);
        // New results cannot be stored. Stored states are still returned.
        upstream.sim.finish_all(&first, DeviceResult::Success);
        assert_known(&mut client, &first, devices_of(n, 1)).await;

        disk.empty("more");
        disk.empty("ballast");
        let n = next();
        eventually("orders work again", || {
            let mut client = client.clone();
            async move { place(&mut client, &n.to_string(), devices_of(n, 3)).await.is_ok() }
        })
        .await;
        // The last failed query is remembered for a moment.
        eventually("what ThingSpace told is stored", || {
            let (mut client, status_call) = (client.clone(), status_call(&first));
            async move {
                let answer = get_status(&mut client, status_call).await.unwrap();
                answer.state() == RequestState::Succeeded
            }
        })
        .await;
    }

    let ledger = placed(&upstream.sim.ledger());
    for told in &told {
        let ordered = ledger.get(&device(told.devices.start).eid);
        match &told.outcome {
            Ok(id) => assert_eq!(ordered, Some(id)),
            Err(error) if reason(error) == "STORE_FULL" => {
                assert_eq!(ordered, None, "{} was sent", told.key);
            }
            Err(_) => assert!(ordered.is_some()),
        }
    }
    let mut known = Vec::new();
    for Told { key, devices, outcome } in told {
        let again = settled(&client, &key, devices.clone()).await.unwrap();
        assert!(outcome.is_err() || outcome.unwrap() == again);
        known.push((key, devices, again));
    }
    gateway.kill();
    let gateway = Process::serve(&config, upstream.dir.path());
    let mut client = gateway.client().await;
    for (key, devices, id) in known {
        assert_known(&mut client, &id, devices.clone()).await;
        assert_eq!(place(&mut client, &key, devices).await.unwrap(), id);
    }
    assert_nothing_ordered_twice(&upstream.sim.ledger());
}

/// Returns the output of an operator command.
fn control(config: &Config, dir: &Path, command: &str) -> String {
    let file = write_config(config, dir);
    let output = Command::new(binary()).arg(command).arg("--config").arg(file).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Repeats an order while its error says so, and returns the result.
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
