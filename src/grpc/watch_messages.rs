//! The encoded messages of watches.
//!
//! Watches of a request that have sent the same send the same next message, with the same token. So
//! a message is usually encoded once, and all of them send the same bytes. It is not kept for the
//! watches that are behind: only the last [`MESSAGES`] of all requests are.

use std::{
    collections::VecDeque,
    mem::{Discriminant, discriminant},
    sync::Mutex,
};

use bytes::Bytes;
use prost::Message;

use super::fragment::{self, Fragment, Partial};
use crate::{
    identity::RequestId,
    lock::lock,
    proto::esim::WatchRequestResponse,
    requests::watch::{Watch, WatchEvent, token::Resume},
};

/// The number of messages that are kept. Each has at most [`MAX_WATCH_MESSAGE`] bytes.
///
/// [`MAX_WATCH_MESSAGE`]: super::MAX_WATCH_MESSAGE
const MESSAGES: usize = 64;

/// The bytes before a message: whether it is compressed, and its length (gRPC over HTTP/2).
const PREFIX: usize = 5;

/// The last messages, the newest at the end.
#[derive(Debug, Default)]
pub(super) struct WatchMessages(Mutex<VecDeque<(MessageKey, WatchMessage)>>);

/// A message as it is sent.
#[derive(Debug, Clone)]
pub(super) struct WatchMessage {
    /// The message with its prefix.
    pub(super) bytes: Bytes,
    /// See [`Fragment::completes`].
    pub(super) completes: Option<Resume>,
    /// See [`Fragment::partial`].
    pub(super) partial: Partial,
}

/// What a message is made from. All replicas and all watches compute the same for equal keys.
#[derive(Debug, PartialEq, Eq)]
struct MessageKey {
    /// The end of the event. Its position is unique among all requests and store epochs.
    end: Resume,
    /// The first revision of the event.
    first: u64,
    partial: Partial,
    kind: Discriminant<WatchEvent>,
    id: RequestId,
}

impl MessageKey {
    fn of(id: &RequestId, event: &WatchEvent, partial: Partial) -> Option<Self> {
        let (first, end) = match event {
            WatchEvent::Snapshot(snapshot) => (
                snapshot.revision,
                Resume { position: snapshot.position, revision: snapshot.revision },
            ),
            WatchEvent::Changes(transitions) => {
                let (first, last) = (transitions.first()?, transitions.last()?);
                (first.revision, Resume { position: last.position, revision: last.revision })
            }
            WatchEvent::Heartbeat { revision, position, .. } => {
                (*revision, Resume { position: *position, revision: *revision })
            }
        };
        Some(Self { end, first, partial, kind: discriminant(event), id: id.clone() })
    }
}

impl WatchMessages {
    /// Returns the next message of an event of a watch. `None`: the event does not continue the
    /// revision that was sent in part.
    pub(super) fn next(
        &self,
        watch: &Watch,
        event: &WatchEvent,
        partial: Partial,
    ) -> Option<WatchMessage> {
        let key = MessageKey::of(watch.id(), event, partial)?;
        if let Some((_, known)) = lock(&self.0).iter().rev().find(|(known, _)| *known == key) {
            return Some(known.clone());
        }
        let Fragment { event, completes, partial } = fragment::next(event, partial)?;
        let resume_token = completes.map(|end| watch.token_at(end)).unwrap_or_default();
        let message =
            WatchRequestResponse { event: Some(event), resume_token, more: completes.is_none() };
        let message = WatchMessage { bytes: encode(&message), completes, partial };
        let mut recent = lock(&self.0);
        if recent.len() == MESSAGES {
            recent.pop_front();
        }
        recent.push_back((key, message.clone()));
        Some(message)
    }
}

/// Encodes a message with its prefix.
fn encode(message: &WatchRequestResponse) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = Vec::with_capacity(PREFIX + length);
    bytes.push(0);
    bytes.extend(u32::try_from(length).expect("messages are small").to_be_bytes());
    message.encode_raw(&mut bytes);
    bytes.into()
}
