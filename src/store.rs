//! Durable logs and cells.
//!
//! A **log** is append-only; its readers fold it. A **cell** is a small value that changes only by
//! compare-and-swap. A [`Store`] does not know what an event means or which log is open. It removes
//! events and retained cells after the retention period. Callers never rely on their removal.
//!
//! The tests in `store/contract.rs` define what every backend guarantees.

mod cell;
pub mod embedded;
mod measured;
pub mod nats;

#[cfg(test)]
mod contract;

pub(crate) use cell::{
    CELL_FORMAT, change_cell, decode_cell, load_cell, load_or_create, must_be_current, swap_cell,
};

pub(crate) use measured::measure;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

/// The largest event or value of a cell, in bytes. An order for 10,000 devices has about 760 kB.
pub const MAX_EVENT_BYTES: usize = 900_000;

/// The most entries that one [`Store::read`] returns.
pub const MAX_READ: usize = 1_000;

/// A read that returns fewer entries than its limit, and fewer bytes of events than this, has
/// reached the end of the log.
pub const WHOLE_READ_BYTES: usize = 1024 * 1024;

/// The most bytes of events and cells that one store writes at the same time. Further writes wait.
pub(crate) const IN_FLIGHT_BYTES: usize = 16 * 1024 * 1024;

/// The bytes that each write counts in addition to its own, so that at most 4,096 writes are in
/// flight.
const WRITE_BYTES: usize = 4 * 1024;

/// A store of logs and cells. Texts that it returns are for operators.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Appends an event. It is durable when this returns. A second event with the same `id` is not
    /// stored; the result is the position of the first.
    async fn append(&self, log: &LogName, id: Uuid, event: Bytes) -> Result<Position, StoreError>;

    /// Returns the entries of a log after a sequence (0: from its beginning), oldest first. Every
    /// acknowledged append is included. Returns at most `limit` and at most [`MAX_READ`] entries,
    /// and may return fewer if their events have [`WHOLE_READ_BYTES`] or more. Then only an empty
    /// result means the end.
    async fn read(&self, log: &LogName, after: u64, limit: usize)
    -> Result<Vec<Entry>, StoreError>;

    /// Streams the events of all logs in order, after a position (`None`: from the first event that
    /// is kept), and then new events without end. Reconnects by itself. Ends only after
    /// [`Followed::Lost`].
    fn follow(&self, after: Option<Position>) -> BoxStream<'static, Followed>;

    /// Returns the current value of a cell, never an older one from a cache or a lagging server.
    async fn load(&self, cell: &CellName) -> Result<Option<Versioned>, StoreError>;

    /// Replaces the value of a cell if its version is still `expected` (`None`: absent). Each swap
    /// makes a new version, even if the value is equal. If the answer to a swap is lost, the store
    /// itself finds out whether that swap took place.
    async fn swap(
        &self,
        cell: &CellName,
        expected: Option<Version>,
        value: Bytes,
    ) -> Result<Swap, StoreError>;

    /// Returns whether only this process can use the store, so that claims and leases of other
    /// processes are void.
    fn exclusive(&self) -> bool;

    /// Returns why the store cannot be used now, or why its last write failed.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Returns what the store lacks, as far as it can tell. While it lacks something, every call
    /// fails with [`StoreError::Unavailable`], until an operator accepts the loss.
    fn loss(&self) -> Option<Loss> {
        None
    }

    /// Accepts a loss for an operator. The store begins a new epoch and can be used again. Returns
    /// the loss. If there is none, the store begins a new epoch only if `restored` says that a
    /// backup was restored.
    async fn accept_loss(&self, restored: bool) -> Result<Option<Loss>, StoreError> {
        let _ = restored;
        Ok(None)
    }

    /// Returns whether permanent cells were lost and an operator accepted that. From then on, a
    /// cell that is absent may have existed.
    fn has_lost_cells(&self) -> bool {
        false
    }

    /// Returns when the store was created or the last loss was accepted. Facts from before then may
    /// be missing. `None`: not known yet.
    fn remembers_since(&self) -> Option<Timestamp> {
        None
    }

    /// Returns a lower bound of an event's age, by the store's own clock. A wrong clock of a host
    /// cannot make it too high. `time` is the event's time stamp.
    fn age(&self, position: Position, time: Timestamp) -> Duration {
        let _ = position;
        Timestamp::now().duration_since(time).try_into().unwrap_or_default()
    }

    /// Returns why there is no space for new orders. Events about the known orders still fit.
    fn shortage(&self) -> Option<String> {
        None
    }

    /// Returns the position of the last event, if the store knows it without a call to a server. A
    /// follower that stays behind it has stopped.
    fn end(&self) -> Option<Position> {
        None
    }

    /// Returns why the next start would not notice a lost store or an older copy, and what to do.
    fn unprotected(&self) -> Option<String> {
        None
    }

    /// Returns what operators measure. May read the state of a file, which blocks for a moment.
    fn measures(&self) -> StoreMeasures {
        StoreMeasures::default()
    }

    /// Finishes the appends in progress, refuses others, and releases the store's files.
    async fn close(&self);
}

/// What operators measure of a store. `None`: not known now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreMeasures {
    /// The position of the last event.
    pub end: Option<Position>,
    /// The size of the file, or of the stream of events, in bytes.
    pub size: Option<u64>,
    /// The bytes that still fit: on the disk, or into the stream.
    pub room: Option<u64>,
    /// The connections to servers by name, and whether they are up.
    pub connections: Vec<(&'static str, bool)>,
}

/// The name of a log: of a request or of an order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogName {
    pub(crate) class: LogClass,
    /// Consists of the characters `[0-9A-Za-z-]`.
    pub id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum LogClass {
    Request,
    Order,
}

impl LogName {
    /// Names the log of the request with this id.
    pub fn request(id: impl Into<String>) -> Self {
        Self { class: LogClass::Request, id: id.into() }
    }

    /// Names the log of the order with this id.
    pub fn order(id: impl Into<String>) -> Self {
        Self { class: LogClass::Order, id: id.into() }
    }

    /// Returns `r.ID` for a request and `o.ID` for an order.
    pub(crate) fn encode(&self) -> String {
        let class = match self.class {
            LogClass::Request => 'r',
            LogClass::Order => 'o',
        };
        format!("{class}.{}", self.id)
    }

    pub(crate) fn decode(text: &str) -> Option<Self> {
        let (class, id) = text.split_once('.')?;
        let class = match class {
            "r" => LogClass::Request,
            "o" => LogClass::Order,
            _ => return None,
        };
        Some(Self { class, id: id.to_owned() })
    }
}

/// The name of a cell.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CellName {
    pub(crate) life: CellLife,
    /// Any text. The stores encode it.
    pub name: String,
}

/// How long a cell is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum CellLife {
    /// Without limit.
    Permanent,
    /// As long as an event that was stored when the cell was last swapped.
    Retained,
}

impl CellName {
    /// Names a cell that is kept without limit.
    pub fn permanent(name: impl Into<String>) -> Self {
        Self { life: CellLife::Permanent, name: name.into() }
    }

    /// Names a cell that expires after the retention period.
    pub fn retained(name: impl Into<String>) -> Self {
        Self { life: CellLife::Retained, name: name.into() }
    }
}

/// Where an event is in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    /// An accepted loss or a restore begins a new epoch.
    pub epoch: u64,
    /// Grows over all logs of an epoch, from 1, and may have gaps.
    pub sequence: u64,
}

/// One event of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where the event is.
    pub position: Position,
    /// When the store stored it, by the store's clock. Never goes back.
    pub time: Timestamp,
    /// The event as it was appended.
    pub event: Bytes,
}

/// An item of [`Store::follow`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Followed {
    /// The next event.
    Event(LogName, Entry),
    /// All events that were stored when the follower began have been delivered. Comes once, before
    /// the first newer event.
    CaughtUp(Position),
    /// The store has no event at this position, only a message of its own.
    Skipped(Position),
    /// The follower cannot continue. This is its last item.
    Lost(Lost),
}

/// Why a follower cannot continue from its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The store has another epoch, or ends before the position.
    Replaced,
    /// Events after the position have expired.
    TooOld,
}

/// What a store lacks that it had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// A sentence without a full stop: which store or stream lacks what.
    pub what: String,
    /// When this process noticed it, by the host's clock.
    pub noticed: Timestamp,
}

/// The version of a cell. It grows with each swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u64);

/// The value of a cell, as bytes or decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<V = Bytes> {
    /// What the next swap must expect.
    pub version: Version,
    /// What the cell holds.
    pub value: V,
}

/// The outcome of a swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    /// The new version.
    Swapped(Version),
    /// The cell had another version. This is its current value.
    Conflict(Option<Versioned>),
}

/// Why a call of the store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Certainly not stored.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// Perhaps stored. Safe to repeat with the same event id.
    #[error("it is not known whether the store stored it: {0}")]
    UnknownOutcome(String),
    /// Certainly not stored: no space.
    #[error("the store is full: {0}")]
    Full(String),
    /// Certainly not stored: larger than [`MAX_EVENT_BYTES`].
    #[error("{0} bytes are more than the {MAX_EVENT_BYTES} that the store takes at once")]
    TooLarge(usize),
    /// The stored bytes cannot be read.
    #[error("the store is corrupt: {0}")]
    Corrupt(String),
}

impl StoreError {
    /// Returns the error for a call that failed and certainly stored nothing.
    pub(crate) fn unavailable(error: impl fmt::Display) -> Self {
        Self::Unavailable(error.to_string())
    }

    pub(crate) fn closed() -> Self {
        Self::unavailable("it was closed")
    }
}

/// Waits until a write of this size may begin. Refuses one that is too large.
async fn reserve(
    in_flight: &Arc<Semaphore>,
    bytes: usize,
) -> Result<OwnedSemaphorePermit, StoreError> {
    if bytes > MAX_EVENT_BYTES {
        return Err(StoreError::TooLarge(bytes));
    }
    let permits = u32::try_from(bytes + WRITE_BYTES).unwrap_or(u32::MAX);
    let permit = Arc::clone(in_flight).acquire_many_owned(permits).await;
    permit.map_err(|_| StoreError::closed())
}
