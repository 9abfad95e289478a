//! Loads and swaps cells. A cell is the newest message of its subject. The message's sequence is
//! the version of the cell, and a swap expects that sequence. A cell is always read from the
//! leader.
//!
//! A cell that is not found may have been purged. So it counts as absent only while the mark of its
//! stream exists and, if it is permanent, while the record does not list it. A permanent cell is in
//! the record before any caller learns that it exists, so its loss is always noticed. A count of
//! rejected logins that came with a backup is void: it is treated as absent.

use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use bytes::Bytes;
use uuid::Uuid;

use super::{
    Core,
    facts::MessageId,
    publish::{WriteError, publish, publish_next, retry_until_known},
    record::{self, CELLS, KEYS, MAX_CELLS},
    replaced::id_of,
    reports::SEEN,
};
use crate::store::{CellLife, CellName, StoreError, Swap, Version, Versioned, must_be_current};

pub(super) async fn load(core: &Core, cell: &CellName) -> Result<Option<Versioned>, StoreError> {
    let current = current(core, cell).await?;
    Ok(current.filter(|current| !is_void(core, cell, current.sequence)).map(versioned))
}

/// Returns whether a value is a count of rejected logins that came with a backup and may be too
/// low.
fn is_void(core: &Core, cell: &CellName, sequence: u64) -> bool {
    is_login_count(cell) && sequence <= core.facts().void_to
}

fn is_login_count(cell: &CellName) -> bool {
    cell.life == CellLife::Permanent && must_be_current(&cell.name)
}

/// Returns the sequence that a swap expects. For an absent cell that is 0, or the sequence of a
/// void value. Notices a permanent cell that was lost after its caller had loaded it.
async fn expected_sequence(
    core: &Core,
    cell: &CellName,
    expected: Option<Version>,
) -> Result<u64, WriteError> {
    if let Some(Version(sequence)) = expected {
        return Ok(sequence);
    }
    if cell.life == CellLife::Retained {
        return Ok(0);
    }
    match current(core, cell).await.map_err(WriteError::not_stored)? {
        Some(current) if is_void(core, cell, current.sequence) => Ok(current.sequence),
        Some(_) => Ok(0),
        None => core.check_cell_limit().map(|()| 0).map_err(WriteError::Refused),
    }
}

/// Swaps a cell. If the answer is lost, the message is sent again, and NATS refuses it if the first
/// one was stored. Then the message id shows whether the cell holds this swap's value. A value that
/// was stored and meanwhile replaced counts as a conflict.
pub(super) async fn swap(
    core: &Core,
    cell: &CellName,
    expected: Option<Version>,
    value: Bytes,
) -> Result<Swap, StoreError> {
    let id = Uuid::new_v4().to_string();
    let stream = stream_of(cell);
    let (_, subject) = core.names.cell(cell);
    retry_until_known(core, || async {
        let epoch = core.usable().await.map_err(WriteError::Unavailable)?.epoch;
        let expected = expected_sequence(core, cell, expected).await?;
        let seen = core.facts().seen;
        let message = PublishMessage::build()
            .payload(value.clone())
            .message_id(&id)
            .header(SEEN, seen.to_string())
            .expected_last_subject_sequence(expected);
        let sequence = match publish(core, subject.clone(), message, value.len()).await {
            Ok(ack) => {
                core.acknowledged(epoch, stream, seen.in_epoch(epoch)[stream], &ack, &id)?;
                if cell.life == CellLife::Permanent {
                    core.add_to_record(&subject).await.map_err(WriteError::unknown)?;
                }
                ack.sequence
            }
            Err(WriteError::Conflict) => {
                let current = current(core, cell).await.map_err(WriteError::not_stored)?;
                let sequence = current.as_ref().map_or(0, |current| current.sequence);
                if current.as_ref().is_none_or(|current| id_of(Some(&current.headers)) != id) {
                    // If the sequence is still the expected one, another message is being stored.
                    // That may fail, so this swap is tried again.
                    return if sequence == expected {
                        Err(WriteError::Conflict)
                    } else {
                        Ok(Swap::Conflict(current.map(versioned)))
                    };
                }
                core.stored(epoch, stream, MessageId { sequence, id: id.clone() });
                sequence
            }
            Err(error) => return Err(error),
        };
        // Before a login is sent, both other streams must show that the count has changed.
        if is_login_count(cell)
            && let Some(known) = core.current_record()
        {
            core.report(&known).await.map_err(WriteError::unknown)?;
            core.write_copy(&known).await.map_err(WriteError::unknown)?;
        }
        Ok(Swap::Swapped(Version(sequence)))
    })
    .await
}

/// Returns the message of a cell. Waits until the store can be used.
async fn current(core: &Core, cell: &CellName) -> Result<Option<StreamMessage>, StoreError> {
    core.usable().await?;
    // If a read fails, the stream may be gone.
    let check = |_: &StoreError| core.check_now.notify_one();
    let is_permanent = cell.life == CellLife::Permanent;
    let (stream, subject) = core.names.cell(cell);
    if let Some(current) = fetch(core, cell).await.inspect_err(check)? {
        if is_permanent {
            core.add_to_record(&subject).await?;
        }
        return Ok(Some(current));
    }
    let mark = match cell.life {
        CellLife::Permanent => Some(record::cells_mark()),
        CellLife::Retained => core.facts().key_mark.clone(),
    };
    if let Some(mark) = mark
        && fetch(core, &mark).await.inspect_err(check)?.is_none()
    {
        let why = core.suspect(&format!("stream {stream} was purged"));
        return Err(StoreError::Unavailable(why));
    }
    if !is_permanent || !core.is_recorded(&subject).await? {
        return Ok(None);
    }
    // Another gateway may have created it after the first fetch.
    let current = fetch(core, cell).await.inspect_err(check)?;
    if current.is_none() {
        let what = format!("stream {stream} {}", record::no_longer_holds(&[&subject]));
        return Err(StoreError::Unavailable(core.suspect(&what)));
    }
    Ok(current)
}

/// Returns the message of a cell, even if the store cannot be used. `None`: there is no cell or no
/// stream.
pub(super) async fn fetch(
    core: &Core,
    cell: &CellName,
) -> Result<Option<StreamMessage>, StoreError> {
    let (stream, subject) = core.names.cell(cell);
    core.newest_message(stream, &subject).await
}

/// Replaces the value of a cell in one attempt, even if the store cannot be used. `None`: another
/// gateway was first.
pub(super) async fn replace(
    core: &Core,
    cell: &CellName,
    expected: Option<Version>,
    value: Bytes,
) -> Result<Option<Version>, StoreError> {
    let expected = expected.map_or(0, |expected| expected.0);
    let (_, subject) = core.names.cell(cell);
    let sequence = publish_next(core, subject, expected, value, PublishMessage::build()).await?;
    Ok(sequence.map(Version))
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

impl Core {
    /// Adds a permanent cell to the record. Must be called before any caller learns that the cell
    /// exists.
    async fn add_to_record(&self, subject: &str) -> Result<(), StoreError> {
        if self.facts().cell_subjects.contains(subject) {
            return Ok(());
        }
        // Finds the cell and writes the record.
        Box::pin(self.refresh(false)).await?;
        if self.facts().cell_subjects.contains(subject) {
            return Ok(());
        }
        self.check_cell_limit()?;
        let what = format!("stream {} may have lost {subject}", self.names.cells);
        Err(StoreError::Unavailable(self.suspect(&what)))
    }

    /// Returns whether this process or the stored record knows that a permanent cell was created.
    async fn is_recorded(&self, subject: &str) -> Result<bool, StoreError> {
        if self.facts().cell_subjects.contains(subject) {
            return Ok(true);
        }
        let stored = self.load_record(&record::cell()).await?;
        Ok(stored.is_some_and(|(_, record)| record.cell_subjects.iter().any(|one| one == subject)))
    }

    /// Fails if the record can list no further permanent cell.
    fn check_cell_limit(&self) -> Result<(), StoreError> {
        if self.facts().cell_subjects.len() < MAX_CELLS {
            return Ok(());
        }
        let stream = &self.names.cells;
        Err(StoreError::Unavailable(format!(
            "stream {stream} holds {MAX_CELLS} cells and takes no more: see docs/nats.md"
        )))
    }
}
