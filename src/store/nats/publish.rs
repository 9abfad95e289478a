//! One message into a stream, what it means when that fails, and how often it is tried.
//!
//! The answer to "was it stored" is yes, certainly not, or unknown. A message is repeated, with the
//! same id, until the answer is clear.

use std::{error::Error as _, time::Duration};

use async_nats::jetstream::{
    self, ErrorCode,
    context::{PublishError, PublishErrorKind},
    message::PublishMessage,
    publish::PublishAck,
};
use bytes::Bytes;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::{Shared, link::backoff, record::EVENTS};
use crate::store::StoreError;

/// How long an append or a swap is repeated before it is given up: longer than it takes to elect a
/// leader.
const PUBLISH_WITHIN: Duration = Duration::from_secs(10);

/// Between two tries of the same.
pub(super) const RETRY_LEAST: Duration = Duration::from_millis(20);
pub(super) const RETRY_MOST: Duration = Duration::from_millis(500);

/// Why there was no acknowledgement.
#[derive(Debug)]
pub(super) enum Failure {
    /// Certainly not stored, and it would not be if it were repeated.
    Refused(StoreError),
    /// Somebody else was first.
    Conflict,
    /// Not even tried: NATS has been away for a while.
    Away(StoreError),
    /// Certainly not stored; there is no stream or no leader now.
    NotStored(String),
    /// May be stored, now or a little later.
    Unknown(String),
}

/// Tries until there is a clear answer, or until time is up. What may be stored is worth waiting
/// for NATS to come back.
pub(super) async fn settle<T, F: Future<Output = Result<T, Failure>>>(
    shared: &Shared,
    mut attempt: impl FnMut() -> F,
) -> Result<T, StoreError> {
    let until = Instant::now() + PUBLISH_WITHIN;
    let mut may_be_stored = false;
    let mut failures = 0;
    loop {
        let why = match attempt().await {
            Ok(done) => return Ok(done),
            Err(Failure::Refused(error)) => return Err(error),
            Err(Failure::Away(error)) if !may_be_stored => return Err(error),
            Err(Failure::Away(error)) => error.to_string(),
            Err(Failure::Conflict) => "somebody else is being stored".to_owned(),
            Err(Failure::NotStored(why)) => {
                // Is there a stream at all?
                shared.look.notify_one();
                why
            }
            Err(Failure::Unknown(why)) => {
                may_be_stored = true;
                why
            }
        };
        let again = Instant::now() + backoff(failures, RETRY_LEAST, RETRY_MOST);
        if again > until || shared.end.is_cancelled() {
            return Err(if may_be_stored {
                StoreError::Ambiguous(why)
            } else {
                StoreError::Unavailable(why)
            });
        }
        failures += 1;
        sleep_until(again).await;
    }
}

/// `bytes`: how large the payload is.
pub(super) async fn publish(
    shared: &Shared,
    subject: String,
    message: PublishMessage,
    bytes: usize,
) -> Result<PublishAck, Failure> {
    let acknowledged = match shared.link.context.send_publish(subject, message).await {
        Ok(acknowledgement) => acknowledgement.await,
        Err(error) => Err(error),
    };
    match &acknowledged {
        Ok(stored) => {
            let is_event = stored.stream == shared.names.streams()[EVENTS];
            shared.room.stored(bytes, is_event && !stored.duplicate);
        }
        Err(error) => {
            if let Some(why) = lacks_storage(error) {
                shared.room.refused(bytes, why);
            } else if error.kind() == PublishErrorKind::TimedOut {
                shared.room.unacknowledged();
            }
        }
    }
    acknowledged.map_err(|error| match error.kind() {
        // "No responders": the stream has no leader, or does not exist.
        PublishErrorKind::StreamNotFound => Failure::NotStored("no stream takes it now".to_owned()),
        PublishErrorKind::WrongLastSequence => Failure::Conflict,
        PublishErrorKind::MaxPayloadExceeded => Failure::Refused(StoreError::TooLarge(bytes)),
        PublishErrorKind::MaxAckPending | PublishErrorKind::WrongLastMessageId => {
            Failure::NotStored(error.to_string())
        }
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => {
            Failure::Unknown(error.to_string())
        }
        PublishErrorKind::Other => {
            match error.source().and_then(<dyn std::error::Error>::downcast_ref) {
                Some(answer) => refused(answer, bytes),
                None => Failure::Unknown(error.to_string()),
            }
        }
    })
}

/// Publishes, in one try, the message of a subject that comes after the one with this sequence (0:
/// none). Returns its sequence; `None`: another gateway was first.
pub(super) async fn publish_next(
    shared: &Shared,
    subject: String,
    expected: u64,
    value: Bytes,
    message: PublishMessage,
) -> Result<Option<u64>, StoreError> {
    let bytes = value.len();
    let message = message
        .payload(value)
        .message_id(Uuid::new_v4().to_string())
        .expected_last_subject_sequence(expected);
    match publish(shared, subject, message, bytes).await {
        Ok(stored) => Ok(Some(stored.sequence)),
        Err(Failure::Conflict) => Ok(None),
        Err(Failure::Refused(error) | Failure::Away(error)) => Err(error),
        Err(Failure::NotStored(why)) => Err(StoreError::Unavailable(why)),
        Err(Failure::Unknown(why)) => Err(StoreError::Ambiguous(why)),
    }
}

/// Whether the servers refused for lack of storage, and what they said.
fn lacks_storage(error: &PublishError) -> Option<String> {
    let answer: &jetstream::Error = error.source()?.downcast_ref()?;
    is_full(answer.error_code()).then(|| answer.to_string())
}

fn is_full(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::STREAM_STORE_FAILED
            | ErrorCode::STORAGE_RESOURCES_EXCEEDED
            | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
            | ErrorCode::INSUFFICIENT_RESOURCES
            | ErrorCode::MEMORY_RESOURCES_EXCEEDED
    )
}

/// An answer of the stream that is no acknowledgement: it did not store.
fn refused(error: &jetstream::Error, bytes: usize) -> Failure {
    match error.error_code() {
        code if is_full(code) => Failure::Refused(StoreError::Full(error.to_string())),
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => Failure::Refused(StoreError::TooLarge(bytes)),
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => Failure::Conflict,
        // The same id is being stored this very moment.
        ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT => Failure::Unknown(error.to_string()),
        _ => Failure::NotStored(error.to_string()),
    }
}
