//! Promise 5 of the README under random events: a watch that breaks at any point and resumes with
//! its last token sees exactly the same changes as a watch that never breaks.

use std::time::Duration;

use futures_util::future::join_all;
use proptest::prelude::*;
use thingspace_gateway::{
    identity::RequestId,
    proto::esim::{
        DeviceCounts, DeviceState, DeviceStatus, RequestState, RequestStatus, WatchRequestResponse,
        watch_request_response::Event,
    },
    simulator::DeviceResult,
};
use tonic::Code;

use crate::harness::*;

#[derive(Debug, Clone)]
enum Step {
    /// ThingSpace reports a new or an old state of a device.
    Poke(usize, DeviceResult),
    /// A number of concurrent status calls.
    Ask(usize),
    /// The watcher resumes if its watch was broken, and reads a number of messages.
    Read(usize),
    Break,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        3 => Just(DeviceResult::Success),
        2 => Just(DeviceResult::Failed),
        2 => Just(DeviceResult::Word("Warning")),
        1 => Just(DeviceResult::Word("no such word")),
        1 => Just(DeviceResult::Pending),
    ];
    prop_oneof![
        8 => (0..8_usize, outcome).prop_map(|(device, outcome)| Step::Poke(device, outcome)),
        6 => (1..4_usize).prop_map(Step::Ask),
        5 => (1..4_usize).prop_map(Step::Read),
        3 => Just(Step::Break),
        1 => Just(Step::Restart),
    ]
}

/// The changes that a watcher has to see.
struct Model {
    said: Vec<DeviceResult>,
    states: Vec<DeviceState>,
    /// Each change: its revision, the device, and its new state.
    changes: Vec<(i64, usize, DeviceState)>,
    /// The states of all devices at each revision, from 1 on.
    history: Vec<Vec<DeviceState>>,
}

impl Model {
    fn new(devices: usize) -> Self {
        let states = vec![DeviceState::Pending; devices];
        let said = vec![DeviceResult::Pending; devices];
        Self { said, history: vec![states.clone()], states, changes: Vec::new() }
    }

    fn revision(&self) -> i64 {
        self.history.len().try_into().unwrap()
    }

    /// The gateway queries ThingSpace.
    fn observe(&mut self) {
        let revision = self.revision() + 1;
        let before = self.states.clone();
        for (at, said) in self.said.iter().enumerate() {
            let next = match said {
                DeviceResult::Success => DeviceState::Succeeded,
                DeviceResult::Failed => DeviceState::Failed,
                DeviceResult::Word("Warning") => DeviceState::Waiting,
                DeviceResult::Pending | DeviceResult::Word(_) => DeviceState::Pending,
            };
            let state = &mut self.states[at];
            let is_final = matches!(state, DeviceState::Succeeded | DeviceState::Failed);
            if !is_final && next > *state {
                *state = next;
                self.changes.push((revision, at, next));
            }
        }
        if self.states != before {
            self.history.push(self.states.clone());
        }
    }

    fn states_at(&self, revision: i64) -> &[DeviceState] {
        &self.history[usize::try_from(revision).unwrap() - 1]
    }

    /// The state and the counts at a revision.
    fn summary(&self, revision: i64) -> (RequestState, DeviceCounts) {
        let states = self.states_at(revision);
        let count = |wanted| {
            i32::try_from(states.iter().filter(|&&state| state == wanted).count()).unwrap()
        };
        let total = i32::try_from(states.len()).unwrap();
        let (succeeded, failed) = (count(DeviceState::Succeeded), count(DeviceState::Failed));
        let pending = total - succeeded - failed;
        let state = match (pending, succeeded, failed) {
            (0, _, 0) => RequestState::Succeeded,
            (0, 0, _) => RequestState::Failed,
            (0, ..) => RequestState::PartiallySucceeded,
            _ => RequestState::Pending,
        };
        (state, DeviceCounts { total, pending, succeeded, failed })
    }

    fn is_final(&self) -> bool {
        self.summary(self.revision()).0 != RequestState::Pending
    }
}

/// A watcher that resumes with its last token.
#[derive(Default)]
struct Watcher {
    watching: Option<Watching>,
    token: String,
    /// The last revision that was seen completely.
    revision: i64,
    /// The number of the model's changes up to there.
    seen: usize,
    done: bool,
}

impl Watcher {
    /// Checks that a message contains exactly the next changes of the model.
    fn see(&mut self, message: WatchRequestResponse, model: &Model) {
        assert!(!message.more && !message.resume_token.is_empty());
        let (state, counts, revision) = match message.event.unwrap() {
            Event::Snapshot(RequestStatus { state, counts, revision, devices, .. }) => {
                assert_eq!(self.token, "", "a snapshot in the middle of a watch");
                let states: Vec<_> = devices.iter().map(DeviceStatus::state).collect();
                assert_eq!(states, model.states_at(revision));
                self.seen = model.changes.iter().take_while(|(at, ..)| *at <= revision).count();
                (state, counts, revision)
            }
            Event::Change(change) => {
                let expected: Vec<_> = model.changes[self.seen..]
                    .iter()
                    .take_while(|(at, ..)| *at <= change.revision)
                    .collect();
                let expected_devices: Vec<_> =
                    expected.iter().map(|(_, n, state)| (device(*n).eid, *state)).collect();
                let of = |device: &DeviceStatus| {
                    (device.identifiers.clone().unwrap().eid, device.state())
                };
                let devices: Vec<_> = change.devices.iter().map(of).collect();
                assert!(change.revision > self.revision);
                assert_eq!(devices, expected_devices);
                self.seen += expected.len();
                (change.state, change.counts, change.revision)
            }
            Event::Heartbeat(heartbeat) => {
                assert_eq!(heartbeat.revision, self.revision);
                (heartbeat.state, heartbeat.counts, heartbeat.revision)
            }
        };
        let (expected_state, expected_counts) = model.summary(revision);
        assert_eq!((state, counts), (expected_state.into(), Some(expected_counts)));
        (self.revision, self.token) = (revision, message.resume_token);
    }

    async fn read(&mut self, messages: usize, client: &mut Client, id: &RequestId, model: &Model) {
        if self.watching.is_none() {
            self.watching = Some(watch(client, id, &self.token).await.unwrap());
        }
        for _ in 0..messages {
            let Some(watching) = &mut self.watching else { return };
            if let Some(message) = watching.next().await.unwrap() {
                self.see(message, model);
            } else {
                assert!(model.is_final());
                assert_eq!((self.revision, self.seen), (model.revision(), model.changes.len()));
                (self.watching, self.done) = (None, true);
            }
        }
    }

    /// The gateway has stopped: reads the last messages, then the announced end of the stream.
    async fn outlive(&mut self, model: &Model) {
        let Some(mut watching) = self.watching.take() else { return };
        loop {
            match watching.next().await {
                Ok(Some(message)) => self.see(message, model),
                Ok(None) => return assert!(model.is_final()),
                Err(status) => {
                    return assert_eq!(kind(&status), (Code::Unavailable, "DRAINING".to_owned()));
                }
            }
        }
    }
}

async fn run(devices: usize, steps: Vec<Step>) {
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    config.grpc.heartbeat = Duration::from_millis(5);
    let mut gateway = Gateway::start(config.clone()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..devices).await.unwrap();
    let mut model = Model::new(devices);
    let mut watcher = Watcher::default();

    let the_end =
        (0..devices).map(|device| Step::Poke(device, DeviceResult::Success)).chain([Step::Ask(1)]);
    for step in steps.into_iter().chain(the_end) {
        match step {
            Step::Poke(at, outcome) => {
                let at = at % devices;
                model.said[at] = outcome;
                upstream.sim.finish(&id, &device(at).eid, outcome);
            }
            Step::Ask(times) => {
                model.observe();
                let asking = (0..times).map(|_| {
                    let (mut client, status_call) = (client.clone(), status_call(&id));
                    async move { get_status(&mut client, status_call).await.unwrap() }
                });
                for status in join_all(asking).await {
                    assert_eq!(
                        (states(&status), status.revision),
                        (model.states.clone(), model.revision())
                    );
                }
            }
            Step::Read(messages) => watcher.read(messages, &mut client, &id, &model).await,
            Step::Break => watcher.watching = None,
            Step::Restart => {
                gateway.stop().await;
                watcher.outlive(&model).await;
                gateway = Gateway::start(config.clone()).await;
                client = gateway.client().await;
            }
        }
    }
    watcher.done = false;
    while !watcher.done {
        watcher.read(1, &mut client, &id, &model).await;
    }
    // A new watcher sees the same final state.
    let mut late = Watcher::default();
    while !late.done {
        late.read(1, &mut client, &id, &model).await;
    }
    gateway.stop().await;
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 12,
        max_shrink_iters: 100,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_broken_watch_misses_and_repeats_nothing(
        devices in 1..=8_usize,
        steps in prop::collection::vec(step(), 20..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(devices, steps));
    }
}
