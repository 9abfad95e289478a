//! Everything durable is a log or a cell.
//!
//! A **log** is append-only; its reader folds it. A **cell** is a small value changed only by
//! compare-and-swap. The store knows neither what an event means nor which log is open: retention
//! is its own business, and nothing depends on it for safety.
//!
//! [`Store`] is the one hand-written trait of this crate. What a backend owes, beyond the
//! signatures, is written as executable contract in `store/contract.rs`, run against every backend.

mod cell;
pub mod embedded;
pub mod nats;

#[cfg(test)]
mod contract;

pub use cell::{
    CELL_FORMAT, CellMessage, SWAP_TRIES, change_cell, contended, decode_cell, load_cell,
    load_or_create, must_be_current, swap_cell,
};

use std::{fmt, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use uuid::Uuid;

/// The largest event a backend must take, in bytes. An order for 10,000 devices is about 760 kB.
pub const MAX_EVENT_BYTES: usize = 900_000;

/// The largest number of entries one `read` returns.
pub const MAX_READ: usize = 1_000;

/// A read that returns fewer entries than it may, and fewer bytes of events than this, has reached
/// the end of the log.
pub const WHOLE_READ_BYTES: usize = 1024 * 1024;

/// Logs and cells; see the module's documentation.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Appends an event. It is durable when this returns. The same `id` again is the same event: it
    /// returns the first position and stores nothing.
    async fn append(&self, log: &LogName, id: Uuid, event: Bytes) -> Result<Position, StoreError>;

    /// The entries of a log after a sequence (0: from its beginning), oldest first, at most `limit`
    /// and [`MAX_READ`], and fewer where their events have [`WHOLE_READ_BYTES`] or more: then only
    /// an empty answer says that there are no more. Sees every acknowledged append.
    async fn read(&self, log: &LogName, after: u64, limit: usize)
    -> Result<Vec<Entry>, StoreError>;

    /// All logs, in order, without end, beginning after a position (`None`: from the first that is
    /// kept). Hides hiccups and reconnects; ends only after `Lost`.
    fn follow(&self, after: Option<Position>) -> BoxStream<'static, Followed>;

    /// What a cell holds. Never a cache, never a stale replica.
    async fn load(&self, cell: &CellName) -> Result<Option<Versioned>, StoreError>;

    /// Replaces what a cell holds if its version is still `expected` (`None`: absent). Each swap
    /// makes a new version, also with an equal value. If its answer is lost, the store finds out
    /// itself whether this very swap took place. A value has at most [`MAX_EVENT_BYTES`].
    async fn swap(
        &self,
        cell: &CellName,
        expected: Option<Version>,
        value: Bytes,
    ) -> Result<Swap, StoreError>;

    /// True when no other process can use this store while this one does, so that whatever another
    /// incarnation left behind is dead.
    fn exclusive(&self) -> bool;

    /// Why the store cannot be used now, or could not be written to last time, for people; `None`
    /// while it can.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// What the store has forgotten, as far as it can tell; `None`: nothing. While something is
    /// lost, every call is refused with [`StoreError::Unavailable`], until an operator accepts the
    /// loss.
    fn loss(&self) -> Option<Loss> {
        None
    }

    /// An operator accepts that something is lost. The store begins a new epoch and can be used
    /// again. Returns what was accepted; without a loss it begins a new epoch only if `restored`
    /// says that a backup was restored.
    async fn accept_loss(&self, restored: bool) -> Result<Option<Loss>, StoreError> {
        let _ = restored;
        Ok(None)
    }

    /// True once permanent cells were lost and an operator accepted it. From then on a missing cell
    /// proves nothing: it may have been there.
    fn has_lost_cells(&self) -> bool {
        false
    }

    /// Since when the store remembers everything: it was made then, or a loss was accepted then.
    /// `None`: not known yet.
    fn remembers_since(&self) -> Option<Timestamp> {
        None
    }

    /// How old an event is at least, by the store's own clock, which no wrong clock of a host can
    /// move ahead. `time` is the event's time stamp.
    fn age(&self, position: Position, time: Timestamp) -> Duration {
        let _ = position;
        Timestamp::now().duration_since(time).try_into().unwrap_or_default()
    }

    /// Why there is no room for new orders, for people; `None`: there is. Outcomes, polls and
    /// callbacks of the orders that are known still fit.
    fn shortage(&self) -> Option<String> {
        None
    }

    /// Where the store ends, as far as it knows without a look; `None`: it does not know. A
    /// follower that stays behind stands still.
    fn end(&self) -> Option<Position> {
        None
    }

    /// Why the next start would not notice that the store was lost or put back to an older copy,
    /// and what to do, for people. `None`: it would notice.
    fn unprotected(&self) -> Option<String> {
        None
    }

    /// Waits until the store can be used.
    async fn usable(&self) {}

    /// Stops writing and releases the store's files. Appends under way finish first.
    async fn close(&self);
}

/// The name of a log, `[0-9A-Za-z-]` after a one-letter class: `r` for a request, `o` for an order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogName {
    pub class: LogClass,
    pub id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LogClass {
    Request,
    Order,
}

impl LogName {
    pub fn request(id: impl Into<String>) -> Self {
        Self { class: LogClass::Request, id: id.into() }
    }

    pub fn order(id: impl Into<String>) -> Self {
        Self { class: LogClass::Order, id: id.into() }
    }

    /// `r.ID` or `o.ID`.
    pub fn encode(&self) -> String {
        let class = match self.class {
            LogClass::Request => 'r',
            LogClass::Order => 'o',
        };
        format!("{class}.{}", self.id)
    }

    pub fn decode(text: &str) -> Option<Self> {
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
    pub life: CellLife,
    pub name: String,
}

/// How long a cell is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CellLife {
    /// For ever.
    Permanent,
    /// As long as an event that was written when the cell was last swapped.
    Retained,
}

impl CellName {
    pub fn permanent(name: impl Into<String>) -> Self {
        Self { life: CellLife::Permanent, name: name.into() }
    }

    pub fn retained(name: impl Into<String>) -> Self {
        Self { life: CellLife::Retained, name: name.into() }
    }
}

/// Where an event lies: in which incarnation of the store, and where there. Sequences grow, with
/// gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    pub epoch: u64,
    pub sequence: u64,
}

/// One event of a log. `time` is stamped by the store and never goes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub position: Position,
    pub time: Timestamp,
    pub event: Bytes,
}

/// What a follower sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Followed {
    Event(LogName, Entry),
    /// Everything that was stored when the follower asked has been delivered; once, before the
    /// first newer event.
    CaughtUp(Position),
    /// The store holds no event here, only a message of its own.
    Skipped(Position),
    Lost(Lost),
}

/// Why a follower cannot go on from its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The store is another one: its epoch changed, or it ends before the position.
    Replaced,
    /// Events after the position have expired.
    TooOld,
}

/// What a store has forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// In a sentence for operators, without an end point: which store or stream forgot what.
    pub what: String,
    /// When this process noticed, by the host's clock.
    pub noticed: Timestamp,
}

/// Grows with each swap of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u64);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<V = Bytes> {
    pub version: Version,
    pub value: V,
}

/// The outcome of a swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    Swapped(Version),
    /// The version was another one; what the cell holds now.
    Conflict(Option<Versioned>),
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Certainly not stored.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// May be stored. Repeat with the same event id.
    #[error("the store did not say whether it stored: {0}")]
    Ambiguous(String),
    /// Certainly not stored: no space.
    #[error("the store is full: {0}")]
    Full(String),
    #[error("{0} bytes are more than the {MAX_EVENT_BYTES} that the store takes at once")]
    TooLarge(usize),
    /// What is stored cannot be read.
    #[error("the store is corrupt: {0}")]
    Corrupt(String),
}
