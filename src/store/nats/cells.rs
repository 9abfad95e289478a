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
    facts::Message,
    newest::id_of,
    publish::{Failure, publish, publish_next, settle},
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
    is_count(cell) && sequence <= shared.facts().void_to
}

/// Whether a cell counts rejected logins.
fn is_count(cell: &CellName) -> bool {
    cell.life == CellLife::Permanent && must_be_current(&cell.name)
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
        let unknown = |error: StoreError| Failure::Unknown(error.to_string());
        let sequence = match publish(shared, subject.clone(), message, value.len()).await {
            Ok(stored) => {
                shared.acknowledged(epoch, stream, seen, &stored, &nonce)?;
                if cell.life == CellLife::Permanent {
                    shared.enter(&subject).await.map_err(unknown)?;
                }
                stored.sequence
            }
            Err(Failure::Conflict) => {
                let held = held(shared, cell)
                    .await
                    .map_err(|error| Failure::NotStored(error.to_string()))?;
                let current = held.as_ref().map_or(0, |held| held.sequence);
                let is_ours = held.as_ref().is_some_and(|held| id_of(Some(&held.headers)) == nonce);
                if !is_ours {
                    // Otherwise somebody else's is on its way, and may never be stored.
                    let overtaken = current != sequence;
                    let conflict = Swap::Conflict(held.map(versioned));
                    return if overtaken { Ok(conflict) } else { Err(Failure::Conflict) };
                }
                let message = Message { sequence: current, id: nonce.clone() };
                shared.facts().saw(epoch, stream, message);
                current
            }
            Err(failure) => return Err(failure),
        };
        // Nobody logs in before a report says that the count has changed.
        if is_count(cell)
            && let Some(known) = shared.current_record()
        {
            shared.report(&known).await.map_err(unknown)?;
        }
        Ok(Swap::Swapped(Version(sequence)))
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
    let expected = expected.map_or(0, |expected| expected.0);
    let (_, subject) = shared.names.cell(cell);
    let stored = publish_next(shared, subject, expected, value, PublishMessage::build()).await?;
    Ok(stored.map(Version))
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
