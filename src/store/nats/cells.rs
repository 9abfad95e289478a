//! Cells: one message per subject, its sequence is the version. Replaced by a message that expects
//! that sequence, read from the leader.
//!
//! That a cell is absent counts only while the mark of its stream is there: a stream that was
//! purged has no cells either. A permanent cell must also not be in the record. It is entered there
//! before anybody learns that it exists, so that nobody acts on a cell whose loss would go
//! unnoticed. A count of rejected logins that came with a backup is treated as absent: see
//! [`is_void`].

use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use bytes::Bytes;
use uuid::Uuid;

use super::{
    Shared,
    newest::id_of,
    publish::{Failure, publish, settle},
    record::{self, CELLS, KEYS},
};
use crate::store::{CellLife, CellName, StoreError, Swap, Version, Versioned, must_be_current};

pub(super) async fn load(
    shared: &Shared,
    cell: &CellName,
) -> Result<Option<Versioned>, StoreError> {
    let held = held(shared, cell).await?;
    Ok(held.filter(|held| !is_void(shared, cell, held.sequence)).map(versioned))
}

/// Whether a value came with a backup and must not be trusted, because it may be out of date.
fn is_void(shared: &Shared, cell: &CellName, sequence: u64) -> bool {
    cell.life == CellLife::Permanent
        && must_be_current(&cell.name)
        && sequence <= shared.facts().void_to
}

/// The sequence that a swap of a cell expects: an absent cell may have a void value. A permanent
/// cell that was absent when its caller looked may have been made and lost since.
async fn expected_sequence(
    shared: &Shared,
    cell: &CellName,
    expected: Option<Version>,
) -> Result<u64, Failure> {
    if let Some(Version(sequence)) = expected {
        return Ok(sequence);
    }
    if cell.life == CellLife::Retained {
        return Ok(0);
    }
    let held = held(shared, cell).await.map_err(|error| Failure::NotStored(error.to_string()))?;
    if held.is_none() {
        shared.has_room_for_a_cell().map_err(Failure::Refused)?;
    }
    let sequence = held.map(|held| held.sequence);
    Ok(sequence.filter(|sequence| is_void(shared, cell, *sequence)).unwrap_or_default())
}

/// The nonce decides: a swap whose answer got lost is repeated, and refused if its first message
/// was stored. What the cell then holds is ours or not. One that was stored and overtaken at once
/// counts as a conflict.
pub(super) async fn swap(
    shared: &Shared,
    cell: &CellName,
    expected: Option<Version>,
    value: Bytes,
) -> Result<Swap, StoreError> {
    let nonce = Uuid::new_v4().to_string();
    let stream = stream_of(cell);
    let (_, subject) = shared.names.cell(cell);
    settle(shared, || async {
        let epoch = shared.there().await.map_err(Failure::Away)?.epoch;
        let seen = shared.facts().seen.in_epoch(epoch)[stream];
        let sequence = expected_sequence(shared, cell, expected).await?;
        let message = PublishMessage::build()
            .payload(value.clone())
            .message_id(&nonce)
            .expected_last_subject_sequence(sequence);
        match publish(shared, subject.clone(), message, value.len()).await {
            Ok(stored) => {
                shared.acknowledged(epoch, stream, seen, &stored, &nonce)?;
                if cell.life == CellLife::Permanent {
                    let entered = shared.enter(&subject).await;
                    entered.map_err(|error| Failure::Unknown(error.to_string()))?;
                }
                Ok(Swap::Swapped(Version(stored.sequence)))
            }
            Err(Failure::Conflict) => {
                let held = held(shared, cell)
                    .await
                    .map_err(|error| Failure::NotStored(error.to_string()))?;
                let version = held.as_ref().map(|held| Version(held.sequence));
                if let (Some(held), Some(version)) = (&held, version)
                    && id_of(Some(&held.headers)) == nonce
                {
                    return Ok(Swap::Swapped(version));
                }
                // Otherwise somebody else's is on its way, and may never be stored.
                let overtaken = version.map_or(0, |version| version.0) != sequence;
                if overtaken {
                    Ok(Swap::Conflict(held.map(versioned)))
                } else {
                    Err(Failure::Conflict)
                }
            }
            Err(failure) => Err(failure),
        }
    })
    .await
}

/// What the leader holds of a store that can be used.
async fn held(shared: &Shared, cell: &CellName) -> Result<Option<StreamMessage>, StoreError> {
    shared.there().await?;
    let missed = |error: StoreError| {
        // Is there a stream at all?
        shared.look.notify_one();
        error
    };
    let is_permanent = cell.life == CellLife::Permanent;
    let (stream, subject) = shared.names.cell(cell);
    if let Some(held) = fetch(shared, cell).await.map_err(missed)? {
        if is_permanent {
            shared.enter(&subject).await?;
        }
        return Ok(Some(held));
    }
    let mark = match cell.life {
        CellLife::Permanent => Some(record::cells_mark()),
        CellLife::Retained => shared.facts().key_mark.clone(),
    };
    if let Some(mark) = mark
        && fetch(shared, &mark).await.map_err(missed)?.is_none()
    {
        return Err(StoreError::Unavailable(
            shared.suspect(&format!("stream {stream} was purged")),
        ));
    }
    if !is_permanent || !shared.is_recorded(&subject).await? {
        return Ok(None);
    }
    // Another gateway may have made it after the first look.
    let held = fetch(shared, cell).await.map_err(missed)?;
    if held.is_none() {
        let why =
            shared.suspect(&format!("stream {stream} {}", record::no_longer_holds(&[&subject])));
        return Err(StoreError::Unavailable(why));
    }
    Ok(held)
}

/// What the leader holds, whether the store can be used or not; `None` also where there is no
/// stream.
pub(super) async fn fetch(
    shared: &Shared,
    cell: &CellName,
) -> Result<Option<StreamMessage>, StoreError> {
    let (stream, subject) = shared.names.cell(cell);
    shared.newest_message(stream, &subject).await
}

/// Replaces what a cell holds, whether the store can be used or not, in one try; `None`: somebody
/// else was first.
pub(super) async fn replace(
    shared: &Shared,
    cell: &CellName,
    expected: Option<Version>,
    value: Bytes,
) -> Result<Option<Version>, StoreError> {
    let bytes = value.len();
    let message = PublishMessage::build()
        .payload(value)
        .message_id(Uuid::new_v4().to_string())
        .expected_last_subject_sequence(expected.map_or(0, |expected| expected.0));
    match publish(shared, shared.names.cell(cell).1, message, bytes).await {
        Ok(stored) => Ok(Some(Version(stored.sequence))),
        Err(Failure::Conflict) => Ok(None),
        Err(Failure::Refused(error) | Failure::Away(error)) => Err(error),
        Err(Failure::NotStored(why)) => Err(StoreError::Unavailable(why)),
        Err(Failure::Unknown(why)) => Err(StoreError::Ambiguous(why)),
    }
}

fn stream_of(cell: &CellName) -> usize {
    match cell.life {
        CellLife::Permanent => CELLS,
        CellLife::Retained => KEYS,
    }
}

fn versioned(message: StreamMessage) -> Versioned {
    Versioned { version: Version(message.sequence), value: message.payload }
}
