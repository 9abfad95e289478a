//! Publishes one message to a stream, and decides from the answer whether it is stored, certainly
//! not stored, or perhaps stored. An append or a swap sends it again with the same id until that is
//! known.

use std::{error::Error as _, time::Duration};

use async_nats::jetstream::{
    self, ErrorCode, context::PublishErrorKind, message::PublishMessage, publish::PublishAck,
};
use bytes::Bytes;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::{Core, record::EVENTS};
use crate::{backoff::backoff, store::StoreError};

/// How long an append or a swap is repeated. The election of a leader takes less time.
const PUBLISH_WITHIN: Duration = Duration::from_secs(10);

/// The back-off between two attempts.
pub(super) const RETRY_MIN: Duration = Duration::from_millis(20);
pub(super) const RETRY_MAX: Duration = Duration::from_millis(500);

/// Why a message was not acknowledged.
#[derive(Debug)]
pub(super) enum WriteError {
    /// Not stored, and repeating it would not help.
    Refused(StoreError),
    /// Not stored: the last message of the subject is not the expected one.
    Conflict,
    /// Not sent: NATS has been unavailable for a while.
    Unavailable(StoreError),
    /// Not stored: the stream has no leader now, or does not exist.
    NotStored(String),
    /// May be stored, now or a little later.
    Unknown(String),
}

impl WriteError {
    pub(super) fn not_stored(error: impl std::fmt::Display) -> Self {
        Self::NotStored(error.to_string())
    }

    pub(super) fn unknown(error: impl std::fmt::Display) -> Self {
        Self::Unknown(error.to_string())
    }
}

/// Repeats a write for up to [`PUBLISH_WITHIN`], until it is known whether the message is stored.
pub(super) async fn retry_until_known<T, F: Future<Output = Result<T, WriteError>>>(
    core: &Core,
    mut attempt: impl FnMut() -> F,
) -> Result<T, StoreError> {
    let until = Instant::now() + PUBLISH_WITHIN;
    let mut may_be_stored = false;
    let mut failures = 0;
    loop {
        let why = match attempt().await {
            Ok(done) => return Ok(done),
            Err(WriteError::Refused(error)) => return Err(error),
            Err(WriteError::Unavailable(error)) if !may_be_stored => return Err(error),
            Err(WriteError::Unavailable(error)) => error.to_string(),
            Err(WriteError::Conflict) => "another message is being stored".to_owned(),
            Err(WriteError::NotStored(why)) => {
                // The stream may be gone.
                core.check_now.notify_one();
                why
            }
            Err(WriteError::Unknown(why)) => {
                may_be_stored = true;
                why
            }
        };
        let retry_at = Instant::now() + backoff(failures, RETRY_MIN, RETRY_MAX);
        if retry_at > until || core.end.is_cancelled() {
            return Err(if may_be_stored {
                StoreError::UnknownOutcome(why)
            } else {
                StoreError::Unavailable(why)
            });
        }
        failures += 1;
        sleep_until(retry_at).await;
    }
}

/// Publishes a message in one attempt. `bytes`: the size of its payload.
pub(super) async fn publish(
    core: &Core,
    subject: String,
    message: PublishMessage,
    bytes: usize,
) -> Result<PublishAck, WriteError> {
    let result = match core.link.context.send_publish(subject, message).await {
        Ok(acknowledgement) => acknowledgement.await,
        Err(error) => Err(error),
    };
    let error = match result {
        Ok(ack) => {
            let is_event = ack.stream == core.names.streams()[EVENTS];
            core.space.stored(bytes, is_event && !ack.duplicate);
            return Ok(ack);
        }
        Err(error) => error,
    };
    let answer: Option<&jetstream::Error> =
        error.source().and_then(<dyn std::error::Error>::downcast_ref);
    if let Some(answer) = answer.filter(|answer| is_full(answer.error_code())) {
        core.space.refused(bytes, answer.to_string());
    } else if error.kind() == PublishErrorKind::TimedOut {
        core.space.unacknowledged();
    }
    Err(match error.kind() {
        // NATS reports "no responders" if the stream has no leader or does not exist.
        PublishErrorKind::StreamNotFound => {
            WriteError::NotStored("no stream can store it now".to_owned())
        }
        PublishErrorKind::WrongLastSequence => WriteError::Conflict,
        PublishErrorKind::MaxPayloadExceeded => WriteError::Refused(StoreError::TooLarge(bytes)),
        PublishErrorKind::MaxAckPending | PublishErrorKind::WrongLastMessageId => {
            WriteError::not_stored(error)
        }
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => WriteError::unknown(error),
        PublishErrorKind::Other => match answer {
            Some(answer) => refused(answer, bytes),
            None => WriteError::unknown(error),
        },
    })
}

/// Publishes a message in one attempt, if the newest message of its subject still has the sequence
/// `expected` (0: there is none). Returns the new sequence. `None`: another gateway was first.
pub(super) async fn publish_next(
    core: &Core,
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
    match publish(core, subject, message, bytes).await {
        Ok(ack) => Ok(Some(ack.sequence)),
        Err(WriteError::Conflict) => Ok(None),
        Err(WriteError::Refused(error) | WriteError::Unavailable(error)) => Err(error),
        Err(WriteError::NotStored(why)) => Err(StoreError::Unavailable(why)),
        Err(WriteError::Unknown(why)) => Err(StoreError::UnknownOutcome(why)),
    }
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

/// Converts an error with which the stream answered a message. It has not stored that message.
fn refused(error: &jetstream::Error, bytes: usize) -> WriteError {
    match error.error_code() {
        code if is_full(code) => WriteError::Refused(StoreError::Full(error.to_string())),
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => {
            WriteError::Refused(StoreError::TooLarge(bytes))
        }
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => WriteError::Conflict,
        // The stream is just storing a message with the same id.
        ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT => WriteError::unknown(error),
        _ => WriteError::not_stored(error),
    }
}
