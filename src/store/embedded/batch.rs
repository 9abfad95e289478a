//! The jobs of the committer, and how they are done within a write transaction.

use bytes::Bytes;
use jiff::Timestamp;
use redb::ReadableTable as _;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use uuid::Uuid;

use super::tables::{Tables, Tail, cell_key, versioned};
use crate::store::{CellLife, CellName, Loss, Position, StoreError, Swap, Version};

pub(super) enum Job {
    Append {
        /// The encoded name.
        log: String,
        id: Uuid,
        event: Bytes,
        answer: PendingAnswer<Position>,
        room: OwnedSemaphorePermit,
    },
    Swap {
        cell: CellName,
        expected: Option<Version>,
        value: Bytes,
        answer: PendingAnswer<Swap>,
        room: OwnedSemaphorePermit,
    },
    /// A read failed with an I/O error: check whether the file must be reopened.
    Check,
    /// See [`Store::accept_loss`](crate::store::Store::accept_loss).
    Accept { restored: bool, answer: oneshot::Sender<Result<Option<Loss>, StoreError>> },
}

/// The outcome of a job for its caller. It is sent if the transaction is committed, otherwise an
/// error is sent.
pub(super) struct PendingAnswer<T> {
    to: oneshot::Sender<Result<T, StoreError>>,
    outcome: Option<T>,
}

impl<T> PendingAnswer<T> {
    pub(super) fn new(to: oneshot::Sender<Result<T, StoreError>>) -> Self {
        Self { to, outcome: None }
    }

    fn send(self, committed: Result<(), StoreError>) {
        let not_executed = || StoreError::Unavailable("the write was not executed".into());
        let answer = committed.and_then(|()| self.outcome.ok_or_else(not_executed));
        // The caller may be gone.
        let _ = self.to.send(answer);
    }
}

impl Job {
    /// Does the job in a transaction. Returns whether it changed anything.
    pub(super) fn apply(
        &mut self,
        tables: &mut Tables<'_>,
        tail: &mut Tail,
        epoch: u64,
    ) -> Result<bool, redb::Error> {
        match self {
            Self::Append { log, id, event, answer, .. } => {
                let (sequence, new) = append(tables, tail, log, *id, event)?;
                answer.outcome = Some(Position { epoch, sequence });
                Ok(new)
            }
            Self::Swap { cell, expected, value, answer, .. } => {
                let swap = swap(tables, tail, cell, *expected, value)?;
                let swapped = matches!(swap, Swap::Swapped(_));
                answer.outcome = Some(swap);
                Ok(swapped)
            }
            Self::Check | Self::Accept { .. } => Ok(false),
        }
    }

    /// Returns the bytes that the job occupies in the queue.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Append { room, .. } | Self::Swap { room, .. } => room.num_permits() as u64,
            Self::Check | Self::Accept { .. } => 0,
        }
    }

    pub(super) fn answer(self, committed: Result<(), StoreError>) {
        match self {
            Self::Append { answer, .. } => answer.send(committed),
            Self::Swap { answer, .. } => answer.send(committed),
            Self::Check | Self::Accept { .. } => {}
        }
    }
}

/// Returns the sequence of the event, and whether it is new.
fn append(
    tables: &mut Tables<'_>,
    tail: &mut Tail,
    log: &str,
    id: Uuid,
    event: &[u8],
) -> Result<(u64, bool), redb::Error> {
    let id = id.as_u128();
    if let Some(first) = tables.by_id.get(id)? {
        return Ok((first.value(), false));
    }
    tail.time = stamp(tail.time);
    tail.sequence += 1;
    tail.bytes += event.len() as u64;
    tables.events.insert(tail.sequence, (tail.time.as_microsecond(), id, log, event))?;
    tables.by_log.insert((log, tail.sequence), ())?;
    tables.by_id.insert(id, tail.sequence)?;
    Ok((tail.sequence, true))
}

fn swap(
    tables: &mut Tables<'_>,
    tail: &mut Tail,
    cell: &CellName,
    expected: Option<Version>,
    value: &[u8],
) -> Result<Swap, redb::Error> {
    let key = cell_key(cell);
    let current = versioned(&tables.cells, &key)?;
    if current.as_ref().map(|current| current.version) != expected {
        return Ok(Swap::Conflict(current));
    }
    tail.time = stamp(tail.time);
    tail.version += 1;
    tables.cells.insert(key.as_str(), (tail.version, value))?;
    if cell.life == CellLife::Retained {
        if let Some(Version(old)) = expected {
            tables.by_age.remove(old)?;
        }
        tables.by_age.insert(tail.version, (tail.time.as_microsecond(), key.as_str()))?;
    }
    Ok(Swap::Swapped(Version(tail.version)))
}

/// Returns the current time, or the last time stamp if that is later.
fn stamp(last: Timestamp) -> Timestamp {
    Timestamp::now().max(last)
}
