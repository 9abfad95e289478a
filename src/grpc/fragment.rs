//! Cuts what a watcher sees into messages of at most [`MAX_WATCH_MESSAGE`].
//!
//! A message ends where a revision ends, wherever it fits; only one that is larger than a message is cut within, and then its
//! messages say `more` and the last has the token. Messages are made one by one, when the reader is ready for them. Of
//! changes, each message is made anew from the watch, so that a reader that stands still holds no transitions.

use std::sync::Arc;

use prost::Message;

use super::{MAX_WATCH_MESSAGE, convert};
use crate::{
    proto::esim::{self, watch_request_response::Event as Sent},
    requests::{
        state::{DeviceStatus, Transition},
        watch::{Event, Snapshot},
    },
    store::Position,
};

/// What a message needs apart from its devices, in bytes: names, counts, times, token.
const OVERHEAD: usize = 1_024;

/// An event on its way out.
#[derive(Debug)]
pub(super) enum Fragments {
    Snapshot {
        snapshot: Snapshot,
        sent: usize,
        done: bool,
    },
    /// `sent`: how many devices of the first transition were sent before.
    Changes {
        transitions: Vec<Arc<Transition>>,
        sent: usize,
    },
    Heartbeat(Option<(esim::Heartbeat, Position, u64)>),
}

/// A message, and the place in history it completes.
#[derive(Debug)]
pub(super) struct Fragment {
    pub(super) event: Sent,
    /// `None`: more of the same revision follows.
    pub(super) completes: Option<(Position, u64)>,
    /// How many devices of an incomplete transition were sent by now.
    pub(super) sent: usize,
}

impl Fragments {
    /// `sent`: how many devices of the first transition were sent before.
    pub(super) fn of(event: Event, sent: usize) -> Self {
        match event {
            Event::Snapshot(snapshot) => Self::Snapshot { snapshot, sent: 0, done: false },
            Event::Changes(transitions) => Self::Changes { transitions, sent },
            Event::Heartbeat { state, counts, revision, position } => {
                let heartbeat = esim::Heartbeat {
                    state: convert::state(state).into(),
                    counts: Some(convert::counts(counts)),
                    revision: convert::revision(revision),
                };
                Self::Heartbeat(Some((heartbeat, position, revision)))
            }
        }
    }

    pub(super) fn next(&mut self) -> Option<Fragment> {
        match self {
            Self::Snapshot { done: true, .. } => None,
            Self::Snapshot { snapshot, sent, done } => {
                let mut status = convert::status_header(snapshot);
                status.devices = fill(&snapshot.devices[*sent..], 0, MAX_WATCH_MESSAGE).0;
                *sent += status.devices.len();
                *done = *sent == snapshot.devices.len();
                let completes = done.then_some((snapshot.position, snapshot.revision));
                Some(Fragment { event: Sent::Snapshot(status), completes, sent: 0 })
            }
            // What does not fit comes from the watch again.
            Self::Changes { transitions, sent } => changes(&std::mem::take(transitions), *sent),
            Self::Heartbeat(heartbeat) => heartbeat.take().map(|(heartbeat, position, revision)| Fragment {
                event: Sent::Heartbeat(heartbeat),
                completes: Some((position, revision)),
                sent: 0,
            }),
        }
    }
}

/// As many whole transitions as fit, or as much of one as fits. `sent`: how many devices of the first were sent before.
fn changes(transitions: &[Arc<Transition>], sent: usize) -> Option<Fragment> {
    let mut devices = Vec::new();
    let mut bytes = 0;
    let mut last = None;
    for (at, transition) in transitions.iter().enumerate() {
        let rest = transition.devices.get(if at == 0 { sent } else { 0 }..)?;
        let (filled, more_bytes) = fill(rest, bytes, MAX_WATCH_MESSAGE);
        let whole = filled.len() == rest.len();
        if !whole && last.is_some() {
            break;
        }
        last = Some((transition, whole));
        devices.extend(filled);
        bytes += more_bytes;
        if !whole {
            break;
        }
    }
    let (transition, whole) = last?;
    let sent = if whole { 0 } else { sent + devices.len() };
    let change = esim::RequestChange {
        state: convert::state(transition.state).into(),
        counts: Some(convert::counts(transition.counts)),
        revision: convert::revision(transition.revision),
        devices,
        update_time: Some(convert::time(transition.time)),
        polling_stopped: transition.polling_stopped,
    };
    Some(Fragment {
        event: Sent::Change(change),
        completes: whole.then_some((transition.position, transition.revision)),
        sent,
    })
}

/// As many devices as fit into a message of at most `max` bytes that already has `bytes` of them, and how many bytes they take;
/// at least one into an empty message.
pub(super) fn fill(
    devices: &[Arc<DeviceStatus>],
    bytes: usize,
    max: usize,
) -> (Vec<esim::DeviceStatus>, usize) {
    let mut filled = Vec::new();
    let mut taken = 0;
    for status in devices {
        let device = convert::device(status);
        // Its tag and length take at most 6 bytes.
        let size = device.encoded_len() + 6;
        let fits = bytes + taken + size + OVERHEAD <= max;
        if !fits && (bytes > 0 || !filled.is_empty()) {
            break;
        }
        taken += size;
        filled.push(device);
    }
    (filled, taken)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        identity::{Device, Digits},
        proto::storage,
        requests::state::{Counts, DeviceState, RequestState},
    };

    fn device(eid: usize, text: usize) -> Arc<DeviceStatus> {
        Arc::new(DeviceStatus {
            device: Device { eid: Digits::new(&format!("{eid:032}")), ..Device::default() },
            state: DeviceState::Failed,
            profile: None,
            fault: Some(storage::Fault { code: "c".to_owned(), message: "m".repeat(text) }),
            update_time: Timestamp::UNIX_EPOCH,
        })
    }

    fn transitions(sizes: &[usize], text: usize) -> Vec<Arc<Transition>> {
        let of = |(at, devices): (usize, &usize)| {
            let revision = at as u64 + 1;
            Arc::new(Transition {
                restart: false,
                revision,
                position: Position { epoch: 1, sequence: revision },
                time: Timestamp::UNIX_EPOCH,
                state: RequestState::Pending,
                counts: Counts::default(),
                polling_stopped: false,
                devices: (0..*devices).map(|eid| device(at * 100_000 + eid, text)).collect(),
            })
        };
        sizes.iter().enumerate().map(of).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

        /// However transitions are cut: nothing is lost or reordered, no message is too large, and a message without a token never
        /// ends a revision.
        #[test]
        fn messages_are_bounded_and_complete(sizes in prop::collection::vec(0_usize..3_000, 1..6), text in 0_usize..1_500) {
            let transitions = transitions(&sizes, text);
            let expected: Vec<_> = transitions.iter().flat_map(|t| &t.devices).map(convert::device).collect();
            let (mut devices, mut completed, mut told, mut sent_before) = (Vec::new(), 0, 0, 0);
            let next = |completed: u64, sent| {
                let rest = transitions.iter().filter(|t| t.revision > completed).map(Arc::clone).collect();
                Fragments::of(Event::Changes(rest), sent).next()
            };
            while let Some(Fragment { event, completes, sent }) = next(completed, sent_before) {
                sent_before = sent;
                let message = esim::WatchRequestResponse { event: Some(event.clone()), resume_token: "t".repeat(100), more: completes.is_none() };
                prop_assert!(message.encoded_len() <= MAX_WATCH_MESSAGE);
                let Sent::Change(change) = event else { panic!("not a change") };
                devices.extend(change.devices);
                told += 1;
                if let Some((_, revision)) = completes {
                    prop_assert!(revision > completed);
                    completed = revision;
                    let so_far: usize = transitions.iter().filter(|t| t.revision <= revision).map(|t| t.devices.len()).sum();
                    prop_assert_eq!(devices.len(), so_far);
                }
            }
            prop_assert_eq!(completed, transitions.len() as u64);
            prop_assert!(devices == expected);
            prop_assert!(told <= 1 + expected.iter().map(|d| d.encoded_len() + 6).sum::<usize>() / (MAX_WATCH_MESSAGE / 2) + transitions.len());
        }
    }

    #[test]
    fn small_transitions_share_a_message() {
        let mut fragments = Fragments::of(Event::Changes(transitions(&[1, 1, 1], 10)), 0);
        assert!(matches!(fragments.next(), Some(Fragment { completes: Some((_, 3)), .. })));
        assert!(fragments.next().is_none());
    }
}
