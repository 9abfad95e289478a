//! `kill -9` in the middle of ten thousand results: acknowledged callbacks are durable, others are
//! sent again, and a watcher that resumes with its last token sees each transition once.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::Duration,
};

use thingspace_gateway::{
    identity::AccountName,
    proto::esim::{DeviceState, DeviceStatus, RequestState, watch_request_response::Event},
    simulator::{
        CallbackOptions, CallbackRetries, CallbackShape, Case, DeviceResult, Endpoint, Ledger,
        Sequence,
    },
};

use crate::{Dice, big::pages, harness::*};

const DEVICES: usize = 10_000;

/// Callbacks that are shuffled with each other.
const WAVE: usize = 1_000;

const KILLS: u64 = 2;

/// Retries that begin soon and last longer than any restart.
const RETRIES: CallbackRetries = CallbackRetries { times: 60, interval: Duration::from_secs(1) };

fn failed(n: usize) -> bool {
    n.is_multiple_of(3)
}

/// A warning comes before the result.
fn warned(n: usize) -> bool {
    n.is_multiple_of(5)
}

/// Each of its callbacks is sent twice, at about the same time.
fn copied(n: usize) -> bool {
    n.is_multiple_of(7)
}

fn outcome(n: usize) -> DeviceResult {
    if failed(n) { DeviceResult::Failed } else { DeviceResult::Success }
}

fn shape(n: usize) -> CallbackShape {
    CallbackShape {
        warning_first: warned(n),
        case: if n.is_multiple_of(2) { Case::Camel } else { Case::Pascal },
    }
}

/// The transitions of a device that the watcher has to see.
fn transitions(n: usize) -> Vec<DeviceState> {
    let end = if failed(n) { DeviceState::Failed } else { DeviceState::Succeeded };
    if warned(n) { vec![DeviceState::Waiting, end] } else { vec![end] }
}

/// Returns a free port that ThingSpace calls. The system does not choose these ports for others, so
/// it is still free after the gateway has been down.
pub fn free_address() -> SocketAddr {
    let mut addresses = (28_201..=28_220).map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    addresses.find(|address| TcpListener::bind(address).is_ok()).expect("a free port")
}

/// A watcher that resumes with its last token after each break.
#[derive(Default)]
struct Watcher {
    token: String,
    revision: i64,
    state: RequestState,
    /// In the sequence of their arrival, with the details in the last one of each device.
    seen: Vec<DeviceStatus>,
}

impl Watcher {
    /// Reads until the stream ends. Returns whether the request is final.
    async fn read(&mut self, mut watching: Watching) -> bool {
        // Changes of a revision without a token yet, with which a resumed watch begins again.
        let mut uncertain = Vec::new();
        loop {
            let message = match watching.next().await {
                Ok(Some(message)) => message,
                Ok(None) => return true,
                Err(_killed) => return false,
            };
            match message.event.unwrap() {
                Event::Snapshot(snapshot) => {
                    assert!(self.token.is_empty(), "a watch does not start over");
                    assert!(
                        snapshot
                            .devices
                            .iter()
                            .all(|device| device.state() == DeviceState::Pending)
                    );
                    self.revision = snapshot.revision;
                }
                Event::Change(change) => {
                    self.state = change.state();
                    uncertain.extend(change.devices);
                    if !message.more {
                        // A callback is about one device.
                        let changes = i64::try_from(uncertain.len()).unwrap();
                        assert_eq!(
                            change.revision,
                            self.revision + changes,
                            "a gap or a repetition"
                        );
                        self.revision = change.revision;
                        self.seen.append(&mut uncertain);
                    }
                }
                Event::Heartbeat(heartbeat) => assert_eq!(heartbeat.revision, self.revision),
            }
            if !message.more {
                self.token = message.resume_token;
            }
        }
    }
}

/// Checks every detail.
#[track_caller]
fn assert_ended(n: usize, status: &DeviceStatus) {
    assert_eq!(status.identifiers.as_ref(), Some(&device(n)));
    assert_eq!(Some(&status.state()), transitions(n).last(), "device {n}");
    if failed(n) {
        let fault = status.fault.as_ref().expect("the callback knows the reason");
        assert_eq!(fault.code, "DeviceProfileService.REQUEST_FAILED.DownloadFailed");
    } else {
        let profile = status.profile.as_ref().expect("the callback knows the profile");
        assert_eq!((status.fault.as_ref(), profile.role.as_str()), (None, "LOCAL"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_in_a_flood_of_callbacks() {
    let mut dice = Dice::new();
    let upstream =
        Upstream::calling(CallbackOptions { retries: RETRIES, ..CallbackOptions::default() }).await;
    let mut config = upstream.called();
    config.callbacks.listen = free_address();
    config.callbacks.public_url = format!("http://{}/callbacks/", config.callbacks.listen);
    let account = AccountName::parse(ACCOUNT).unwrap();

    let mut gateway = Process::serve(&config, upstream.dir.path());
    eventually("it is registered", async || upstream.sim.registered(&account).is_some()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..DEVICES).await.unwrap();
    let mut watcher = Watcher::default();
    let mut watching = watch(&mut client, &id, "").await.unwrap();

    let scattered: Vec<_> = (0..DEVICES).map(|n| n * 1_987 % DEVICES).collect();
    for wave in scattered.chunks(WAVE) {
        upstream.sim.hold_callbacks();
        for &n in wave {
            upstream.sim.set_callback_shape(shape(n));
            upstream.sim.finish(&id, &device(n).eid, outcome(n));
        }
        upstream.sim.release_callbacks(Sequence::Shuffled);
        for &n in wave.iter().filter(|n| copied(**n)) {
            upstream.sim.deliver(&id, &device(n).eid, outcome(n), shape(n));
        }
    }
    let callbacks: u64 =
        (0..DEVICES).map(|n| transitions(n).len() as u64 * if copied(n) { 2 } else { 1 }).sum();

    for kill in 0..KILLS {
        let reading = tokio::spawn(async move { (watcher.read(watching).await, watcher) });
        // At any moment of its part, except the last fifth.
        let part = callbacks / KILLS;
        let moment = kill * part + part / 5 + dice.roll(part * 3 / 5);
        let reached = |ledger: &Ledger| ledger.callbacks().acknowledged >= moment;
        let broken = upstream.sim.wait_until(DEADLINE, reached).await.callbacks().broken;
        gateway.kill();
        let missed = |ledger: &Ledger| ledger.callbacks().broken > broken;
        let ledger = upstream.sim.wait_until(DEADLINE, missed).await;
        let ended;
        (ended, watcher) = within("the watch breaks", reading).await.unwrap();
        assert!(!ended, "killed after the flood, at {:?}", ledger.callbacks());

        gateway = Process::serve(&config, upstream.dir.path());
        client = gateway.client().await;
        watching = watch(&mut client, &id, &watcher.token).await.unwrap();
    }
    let reading = tokio::spawn(async move { (watcher.read(watching).await, watcher) });
    let all = |ledger: &Ledger| ledger.callbacks().acknowledged == callbacks;
    let ledger = upstream.sim.wait_until(DEADLINE, all).await;
    // It would not, if an acknowledged callback had been lost.
    let (ended, watcher) = within("the watch ends with the request", reading).await.unwrap();
    assert!(ended);

    let asked_again = |status: &u16| *status == 503;
    assert!(ledger.callbacks().refused.keys().all(asked_again), "{:?}", ledger.callbacks());
    assert_eq!(ledger.calls(Endpoint::RegisterCallback), 1, "the registration holds");

    let mut seen: HashMap<_, Vec<_>> = HashMap::new();
    for status in &watcher.seen {
        seen.entry(status.identifiers.clone().unwrap().eid).or_default().push(status);
    }
    for n in 0..DEVICES {
        let changes = seen.get(&device(n).eid).map_or(&[][..], Vec::as_slice);
        let states: Vec<_> = changes.iter().map(|status| status.state()).collect();
        assert_eq!(states, transitions(n), "device {n}");
        assert_ended(n, changes[changes.len() - 1]);
    }
    assert_eq!(watcher.state, RequestState::PartiallySucceeded);

    let devices = pages(&mut client, ACCOUNT, id.as_str()).await;
    assert_eq!(devices.len(), DEVICES);
    devices.iter().enumerate().for_each(|(n, status)| assert_ended(n, status));
    let status = get_status(&mut client, status_call(&id)).await.unwrap();
    assert_eq!((status.state(), status.revision), (watcher.state, watcher.revision));
    assert_eq!(upstream.sim.ledger().polls(), 0, "the callbacks told everything");
}
