//! Cells: one message per subject, its sequence is the version. Replaced by a message that expects that sequence, read from
//! the leader.

use async_nats::{
    HeaderValue,
    header::NATS_MESSAGE_ID,
    jetstream::{
        message::{PublishMessage, StreamMessage},
        stream::LastRawMessageErrorKind,
    },
};
use bytes::Bytes;
use uuid::Uuid;

use super::{
    Shared,
    publish::{Failure, publish, settle},
};
use crate::store::{CellName, StoreError, Swap, Version, Versioned};

pub(super) async fn load(shared: &Shared, cell: &CellName) -> Result<Option<Versioned>, StoreError> {
    Ok(held(shared, cell).await?.map(versioned))
}

/// The nonce decides: a swap whose answer got lost is repeated, and refused if its first message was stored. What the cell
/// then holds is ours or not. One that was stored and overtaken at once counts as a conflict.
pub(super) async fn swap(
    shared: &Shared,
    cell: &CellName,
    expected: Option<Version>,
    value: Bytes,
) -> Result<Swap, StoreError> {
    let nonce = Uuid::new_v4().to_string();
    let (_, subject) = shared.names.cell(cell);
    settle(shared, || async {
        shared.there().await.map_err(Failure::Away)?;
        let message = PublishMessage::build()
            .payload(value.clone())
            .message_id(&nonce)
            .expected_last_subject_sequence(expected.map_or(0, |expected| expected.0));
        match publish(&shared.link, subject.clone(), message, value.len()).await {
            Ok(stored) => Ok(Swap::Swapped(Version(stored.sequence))),
            Err(Failure::Conflict) => {
                let held = held(shared, cell).await.map_err(|error| Failure::NotStored(error.to_string()))?;
                let version = held.as_ref().map(|held| Version(held.sequence));
                if let (Some(held), Some(version)) = (&held, version)
                    && nonce_of(held) == Some(&nonce)
                {
                    return Ok(Swap::Swapped(version));
                }
                // Otherwise somebody else's is on its way, and may never be stored.
                let overtaken = version != expected;
                if overtaken { Ok(Swap::Conflict(held.map(versioned))) } else { Err(Failure::Conflict) }
            }
            Err(failure) => Err(failure),
        }
    })
    .await
}

/// What the leader holds.
async fn held(shared: &Shared, cell: &CellName) -> Result<Option<StreamMessage>, StoreError> {
    shared.there().await?;
    let (stream, subject) = shared.names.cell(cell);
    match shared.stream(stream).await?.get_last_raw_message_by_subject(&subject).await {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(StoreError::Unavailable(error.to_string())),
    }
}

fn nonce_of(message: &StreamMessage) -> Option<&str> {
    message.headers.get(NATS_MESSAGE_ID).map(HeaderValue::as_str)
}

fn versioned(message: StreamMessage) -> Versioned {
    Versioned { version: Version(message.sequence), value: message.payload }
}
