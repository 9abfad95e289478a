//! Cuts the events of a watch into messages of at most [`MAX_WATCH_MESSAGE`].
//!
//! A message ends where a revision ends. Only a revision that is larger than a message is cut. Then
//! all its messages except the last have `more` set, and only the last has a token. The watch
//! returns an event again until it is sent completely, and a message is made only when the reader
//! is ready for it. So a slow reader holds no devices in memory.

use std::sync::Arc;

use prost::Message;

use super::{MAX_WATCH_MESSAGE, convert};
use crate::{
    proto::esim::{self, watch_request_response::Event as MessageEvent},
    requests::{
        fold::state::{DeviceStatus, Transition},
        watch::{Snapshot, WatchEvent, token::Resume},
    },
};

/// Bytes that a message needs besides its devices: names, counts, times, token.
const OVERHEAD: usize = 1_024;

/// The number of devices that were sent of a revision that is larger than a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Partial {
    Nothing,
    Snapshot(usize),
    Change(usize),
}

/// A message of a watch, without its token.
#[derive(Debug)]
pub(super) struct Fragment {
    pub(super) event: MessageEvent,
    /// The revision that the message completes, and its position. `None`: more of the revision
    /// follows.
    pub(super) completes: Option<Resume>,
    /// What has been sent of the revision, if it is not complete.
    pub(super) partial: Partial,
}

/// Returns the next message of an event. `None`: the event does not continue the revision that was
/// sent in part.
pub(super) fn next(event: &WatchEvent, partial: Partial) -> Option<Fragment> {
    match (event, partial) {
        (WatchEvent::Snapshot(whole), Partial::Nothing) => snapshot(whole, 0),
        (WatchEvent::Snapshot(whole), Partial::Snapshot(sent)) => snapshot(whole, sent),
        (WatchEvent::Changes(transitions), Partial::Nothing) => changes(transitions, 0),
        (WatchEvent::Changes(transitions), Partial::Change(sent)) => changes(transitions, sent),
        (WatchEvent::Heartbeat { state, counts, revision, position }, Partial::Nothing) => {
            let heartbeat = esim::Heartbeat {
                state: convert::state(*state).into(),
                counts: Some(convert::counts(*counts)),
                revision: convert::revision(*revision),
            };
            let completes = Some(Resume { position: *position, revision: *revision });
            Some(Fragment { event: MessageEvent::Heartbeat(heartbeat), completes, partial })
        }
        _ => None,
    }
}

/// Returns a message with as many devices as fit, after the first `sent` devices.
fn snapshot(snapshot: &Snapshot, sent: usize) -> Option<Fragment> {
    let mut status = convert::status_header(snapshot);
    status.devices = fill(snapshot.devices.get(sent..)?, 0, MAX_WATCH_MESSAGE).0;
    let sent = sent + status.devices.len();
    let is_complete = sent == snapshot.devices.len();
    Some(Fragment {
        event: MessageEvent::Snapshot(status),
        completes: is_complete
            .then_some(Resume { position: snapshot.position, revision: snapshot.revision }),
        partial: if is_complete { Partial::Nothing } else { Partial::Snapshot(sent) },
    })
}

/// Returns a message with as many complete transitions as fit, or with a part of the first one.
/// Leaves out the first `sent` devices of the first one.
fn changes(transitions: &[Arc<Transition>], sent: usize) -> Option<Fragment> {
    let mut devices = Vec::new();
    let mut bytes = 0;
    let mut last = None;
    for (at, transition) in transitions.iter().enumerate() {
        let rest = transition.devices.get(if at == 0 { sent } else { 0 }..)?;
        let (filled, more_bytes) = fill(rest, bytes, MAX_WATCH_MESSAGE);
        let is_complete = filled.len() == rest.len();
        if !is_complete && last.is_some() {
            break;
        }
        last = Some((transition, is_complete));
        devices.extend(filled);
        bytes += more_bytes;
        if !is_complete {
            break;
        }
    }
    let (transition, is_complete) = last?;
    let partial =
        if is_complete { Partial::Nothing } else { Partial::Change(sent + devices.len()) };
    let change = esim::RequestChange {
        state: convert::state(transition.state).into(),
        counts: Some(convert::counts(transition.counts)),
        revision: convert::revision(transition.revision),
        devices,
        update_time: Some(convert::time(transition.time)),
        polling_stopped: transition.polling_stopped,
    };
    Some(Fragment {
        event: MessageEvent::Change(change),
        completes: is_complete
            .then_some(Resume { position: transition.position, revision: transition.revision }),
        partial,
    })
}

/// Converts as many devices as fit into a message of at most `max` bytes that already has `bytes`.
/// An empty message gets at least one. Returns the converted devices and their size in bytes.
pub(super) fn fill(
    devices: &[Arc<DeviceStatus>],
    bytes: usize,
    max: usize,
) -> (Vec<esim::DeviceStatus>, usize) {
    let mut filled = Vec::new();
    let mut added = 0;
    for status in devices {
        let device = convert::device(status);
        // Tag and length of a device take at most 6 bytes.
        let size = device.encoded_len() + 6;
        let fits = bytes + added + size + OVERHEAD <= max;
        if !fits && (bytes > 0 || !filled.is_empty()) {
            break;
        }
        added += size;
        filled.push(device);
    }
    (filled, added)
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
        store::Position,
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

    /// Checks that no device is lost or reordered, that no message is too large, and that a message
    /// without a token never ends a revision.
    fn check(sizes: &[usize], text: usize) -> Result<(), TestCaseError> {
        let transitions = transitions(sizes, text);
        let expected: Vec<_> =
            transitions.iter().flat_map(|t| &t.devices).map(convert::device).collect();
        let (mut devices, mut completed, mut messages) = (Vec::new(), 0, 0);
        let mut partial = Partial::Nothing;
        loop {
            let rest = transitions.iter().filter(|t| t.revision > completed);
            let rest = WatchEvent::Changes(rest.map(Arc::clone).collect());
            let Some(fragment) = next(&rest, partial) else { break };
            partial = fragment.partial;
            let message = esim::WatchRequestResponse {
                event: Some(fragment.event.clone()),
                resume_token: "t".repeat(100),
                more: fragment.completes.is_none(),
            };
            prop_assert!(message.encoded_len() <= MAX_WATCH_MESSAGE);
            let MessageEvent::Change(change) = fragment.event else { panic!("not a change") };
            devices.extend(change.devices);
            messages += 1;
            if let Some(Resume { revision, .. }) = fragment.completes {
                prop_assert!(revision > completed);
                completed = revision;
                let so_far = transitions.iter().filter(|t| t.revision <= revision);
                let so_far: usize = so_far.map(|t| t.devices.len()).sum();
                prop_assert_eq!(devices.len(), so_far);
            }
        }
        prop_assert_eq!(completed, transitions.len() as u64);
        prop_assert!(devices == expected);
        let bytes: usize = expected.iter().map(|device| device.encoded_len() + 6).sum();
        prop_assert!(messages <= 1 + bytes / (MAX_WATCH_MESSAGE / 2) + transitions.len());
        Ok(())
    }

    #[test]
    fn messages_are_bounded_and_complete() {
        let config =
            ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() };
        proptest!(config, |(sizes in prop::collection::vec(0_usize..3_000, 1..6),
                            text in 0_usize..1_500)| check(&sizes, text)?);
    }

    #[test]
    fn small_transitions_share_a_message() {
        let event = WatchEvent::Changes(transitions(&[1, 1, 1], 10));
        let fragment = next(&event, Partial::Nothing);
        assert!(matches!(
            fragment,
            Some(Fragment {
                completes: Some(Resume { revision: 3, .. }),
                partial: Partial::Nothing,
                ..
            })
        ));
        assert!(next(&event, Partial::Snapshot(1)).is_none());
    }
}
