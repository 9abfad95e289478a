//! Cuts what a watcher sees into messages of at most [`MAX_WATCH_MESSAGE`].
//!
//! A message ends where a revision ends, wherever it fits; only one that is larger than a message
//! is cut within, and then its messages say `more` and the last has the token. Messages are made
//! one by one, when the reader is ready for them, each from an event that the watch gives anew, so
//! that a reader that stands still holds no devices.

use std::sync::Arc;

use prost::Message;

use super::{MAX_WATCH_MESSAGE, convert};
use crate::{
    proto::esim::{self, watch_request_response::Event as Sent},
    requests::{
        fold::state::{DeviceStatus, Transition},
        watch::{Event, Snapshot},
    },
    store::Position,
};

/// What a message needs apart from its devices, in bytes: names, counts, times, token.
const OVERHEAD: usize = 1_024;

/// What was sent of a revision that is larger than a message: so many of its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Partly {
    Nothing,
    Snapshot(usize),
    Change(usize),
}

/// A message, and the place in history it completes.
#[derive(Debug)]
pub(super) struct Fragment {
    pub(super) event: Sent,
    /// `None`: more of the same revision follows.
    pub(super) completes: Option<(Position, u64)>,
    /// What of the same revision was sent by now, if it is not complete.
    pub(super) partly: Partly,
}

/// The next message of an event. `None`: the event does not continue what was sent in part.
pub(super) fn next(event: &Event, partly: Partly) -> Option<Fragment> {
    match (event, partly) {
        (Event::Snapshot(whole), Partly::Nothing) => snapshot(whole, 0),
        (Event::Snapshot(whole), Partly::Snapshot(sent)) => snapshot(whole, sent),
        (Event::Changes(transitions), Partly::Nothing) => changes(transitions, 0),
        (Event::Changes(transitions), Partly::Change(sent)) => changes(transitions, sent),
        (Event::Heartbeat { state, counts, revision, position }, Partly::Nothing) => {
            let heartbeat = esim::Heartbeat {
                state: convert::state(*state).into(),
                counts: Some(convert::counts(*counts)),
                revision: convert::revision(*revision),
            };
            let completes = Some((*position, *revision));
            Some(Fragment { event: Sent::Heartbeat(heartbeat), completes, partly })
        }
        _ => None,
    }
}

/// As many devices as fit. `sent`: how many were sent before.
fn snapshot(snapshot: &Snapshot, sent: usize) -> Option<Fragment> {
    let mut status = convert::status_header(snapshot);
    status.devices = fill(snapshot.devices.get(sent..)?, 0, MAX_WATCH_MESSAGE).0;
    let sent = sent + status.devices.len();
    let whole = sent == snapshot.devices.len();
    let completes = whole.then_some((snapshot.position, snapshot.revision));
    let partly = if whole { Partly::Nothing } else { Partly::Snapshot(sent) };
    Some(Fragment { event: Sent::Snapshot(status), completes, partly })
}

/// As many whole transitions as fit, or as much of one as fits. `sent`: how many devices of the
/// first were sent before.
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
    let partly = if whole { Partly::Nothing } else { Partly::Change(sent + devices.len()) };
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
        partly,
    })
}

/// As many devices as fit into a message of at most `max` bytes that already has `bytes` of them,
/// and how many bytes they take; at least one into an empty message.
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
        requests::fold::state::{Counts, DeviceState, RequestState},
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

        /// However transitions are cut: nothing is lost or reordered, no message is too large, and
        /// a message without a token never ends a revision.
        #[test]
        fn messages_are_bounded_and_complete(sizes in prop::collection::vec(0_usize..3_000, 1..6), text in 0_usize..1_500) {
            let transitions = transitions(&sizes, text);
            let expected: Vec<_> = transitions.iter().flat_map(|t| &t.devices).map(convert::device).collect();
            let (mut devices, mut completed, mut told, mut sent) = (Vec::new(), 0, 0, Partly::Nothing);
            let next = |completed: u64, sent| {
                let rest = transitions.iter().filter(|t| t.revision > completed).map(Arc::clone).collect();
                next(&Event::Changes(rest), sent)
            };
            while let Some(Fragment { event, completes, partly }) = next(completed, sent) {
                sent = partly;
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
        let event = Event::Changes(transitions(&[1, 1, 1], 10));
        let fragment = next(&event, Partly::Nothing);
        assert!(matches!(
            fragment,
            Some(Fragment { completes: Some((_, 3)), partly: Partly::Nothing, .. })
        ));
        assert!(next(&event, Partly::Snapshot(1)).is_none());
    }
}
