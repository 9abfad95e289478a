//! The tables of the file. A read returns at most [`MAX_READ`] entries, and at most [`READ_BYTES`]
//! unless its first entry alone is larger.

use std::ops::Bound::{Excluded, Included};

use bytes::Bytes;
use jiff::Timestamp;
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition, TableError,
    WriteTransaction,
};
use uuid::Uuid;

use super::{ages::Ages, error::corrupt};
use crate::store::{
    CellLife, CellName, Entry, LogName, MAX_READ, Position, Version, Versioned, must_be_current,
};

/// The format of the tables. Increased by each change that an older gateway cannot read.
const FORMAT: u64 = 1;

/// The most bytes of events that one read returns.
pub(super) const READ_BYTES: usize = 8 * 1024 * 1024;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// The key in [`META`] that says that the store has a record.
const RECORDED: &str = "recorded";
/// One row: a [`Tail`].
const TAIL: TableDefinition<(), (u64, u64, i64, u64, u64, u64)> = TableDefinition::new("tail");
/// Sequence to time (µs), event id, log, event.
pub(super) const EVENTS: TableDefinition<u64, (i64, u128, &str, &[u8])> =
    TableDefinition::new("events");
/// Log and sequence.
const BY_LOG: TableDefinition<(&str, u64), ()> = TableDefinition::new("by_log");
/// Event id to sequence.
const BY_ID: TableDefinition<u128, u64> = TableDefinition::new("by_id");
/// Cell to version and value.
pub(super) const CELLS: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("cells");
/// Version to time (µs) and cell, for cells that expire. Versions grow in the order of the swaps.
const BY_AGE: TableDefinition<u64, (i64, &str)> = TableDefinition::new("by_age");

/// The counters of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tail {
    /// The number of the last commit. Shows after an error whether a commit took place.
    pub(super) commit: u64,
    /// The sequence of the last event, even if it has expired.
    pub(super) sequence: u64,
    /// The time stamp of the last event or swap. Never goes back.
    pub(super) time: Timestamp,
    /// The version of the last swap of any cell, so that a cell that expired and comes back gets a
    /// new version.
    pub(super) version: u64,
    /// The sequence of the last event that expired.
    pub(super) swept: u64,
    /// The bytes of the kept events.
    pub(super) bytes: u64,
}

impl Tail {
    const START: Self = Self {
        commit: 0,
        sequence: 0,
        time: Timestamp::UNIX_EPOCH,
        version: 0,
        swept: 0,
        bytes: 0,
    };

    pub(super) fn load(txn: &ReadTransaction) -> Result<Self, redb::Error> {
        let row = txn.open_table(TAIL)?.get(())?.ok_or_else(|| corrupt("it has no tail"))?;
        let (commit, sequence, time, version, swept, bytes) = row.value();
        Ok(Self { commit, sequence, time: timestamp(time)?, version, swept, bytes })
    }

    pub(super) fn save(&self, txn: &WriteTransaction) -> Result<(), redb::Error> {
        let &Self { commit, sequence, time, version, swept, bytes } = self;
        txn.open_table(TAIL)?
            .insert((), (commit, sequence, time.as_microsecond(), version, swept, bytes))?;
        Ok(())
    }
}

/// The tables in a write transaction.
pub(super) struct Tables<'t> {
    pub(super) events: Table<'t, u64, (i64, u128, &'static str, &'static [u8])>,
    pub(super) by_log: Table<'t, (&'static str, u64), ()>,
    pub(super) by_id: Table<'t, u128, u64>,
    pub(super) cells: Table<'t, &'static str, (u64, &'static [u8])>,
    pub(super) by_age: Table<'t, u64, (i64, &'static str)>,
}

impl<'t> Tables<'t> {
    pub(super) fn open(txn: &'t WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            events: txn.open_table(EVENTS)?,
            by_log: txn.open_table(BY_LOG)?,
            by_id: txn.open_table(BY_ID)?,
            cells: txn.open_table(CELLS)?,
            by_age: txn.open_table(BY_AGE)?,
        })
    }
}

/// Creates the tables in a new file, with a new epoch.
pub(super) fn initialise(database: &Database) -> Result<(), redb::Error> {
    let txn = database.begin_write()?;
    drop(Tables::open(&txn)?);
    {
        let mut meta = txn.open_table(META)?;
        meta.insert("format", FORMAT)?;
        meta.insert("epoch", new_epoch())?;
        meta.insert("remembers_since", to_stored(Timestamp::now()))?;
    }
    Tail::START.save(&txn)?;
    Ok(txn.commit()?)
}

/// The identity of the store. An accepted loss changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StoreIdentity {
    pub(super) epoch: u64,
    /// See [`Store::remembers_since`](crate::store::Store::remembers_since). Absent in files of
    /// earlier gateways.
    pub(super) since: Option<Timestamp>,
    /// Permanent cells may be lost, and an operator accepted that.
    pub(super) lost_cells: bool,
    /// The store has a record. Earlier gateways wrote none.
    pub(super) recorded: bool,
}

impl StoreIdentity {
    fn load(meta: &impl ReadableTable<&'static str, u64>) -> Result<Self, redb::Error> {
        let epoch = meta.get("epoch")?.ok_or_else(|| corrupt("it has no epoch"))?.value();
        let since =
            meta.get("remembers_since")?.map(|since| timestamp(since.value().cast_signed()));
        let lost_cells = meta.get("lost_cells")?.is_some_and(|lost| lost.value() != 0);
        let recorded = meta.get(RECORDED)?.is_some();
        Ok(Self { epoch, since: since.transpose()?, lost_cells, recorded })
    }

    /// Notes that the store has a record, so that a missing record is noticed.
    pub(super) fn note_record(txn: &WriteTransaction) -> Result<(), redb::Error> {
        txn.open_table(META)?.insert(RECORDED, 1)?;
        Ok(())
    }

    /// Begins a new epoch after a loss or a restore. Removes the cells that must be current.
    pub(super) fn begin(txn: &WriteTransaction) -> Result<Self, redb::Error> {
        let mut meta = txn.open_table(META)?;
        let recorded = meta.get(RECORDED)?.is_some();
        let new =
            Self { epoch: new_epoch(), since: Some(Timestamp::now()), lost_cells: true, recorded };
        meta.insert("epoch", new.epoch)?;
        meta.insert("remembers_since", to_stored(Timestamp::now()))?;
        meta.insert("lost_cells", 1)?;
        drop(meta);
        let mut cells = txn.open_table(CELLS)?;
        cells.retain(|cell, _| !cell.strip_prefix("p.").is_some_and(must_be_current))?;
        Ok(new)
    }
}

fn new_epoch() -> u64 {
    // The lower half of a random UUID is never 0: it holds the variant.
    Uuid::new_v4().as_u64_pair().1
}

fn to_stored(time: Timestamp) -> u64 {
    time.as_microsecond().cast_unsigned()
}

/// What [`load_state`] reads.
pub(super) struct StoredState {
    pub(super) identity: StoreIdentity,
    pub(super) tail: Tail,
    pub(super) ages: Ages,
}

/// Reads a file's identity, counters and ages. Fails if this version cannot read the file.
pub(super) fn load_state(database: &Database) -> Result<StoredState, redb::Error> {
    let txn = database.begin_read()?;
    let meta = txn.open_table(META).map_err(|error| match error {
        TableError::TableDoesNotExist(_) => corrupt("it was not written by a gateway"),
        other => other.into(),
    })?;
    match meta.get("format")?.map(|format| format.value()) {
        Some(FORMAT) => {}
        Some(other) => {
            return Err(corrupt(format!(
                "its format is {other}, this version knows {FORMAT} only"
            )));
        }
        None => return Err(corrupt("it names no format")),
    }
    let tail = Tail::load(&txn)?;
    let identity = StoreIdentity::load(&meta)?;
    Ok(StoredState { identity, tail, ages: Ages::load(&txn, &tail)? })
}

/// Returns the entries of a log after a sequence.
pub(super) fn read_log(
    txn: &ReadTransaction,
    epoch: u64,
    log: &str,
    after: u64,
    limit: usize,
) -> Result<Vec<Entry>, redb::Error> {
    let (by_log, events) = (txn.open_table(BY_LOG)?, txn.open_table(EVENTS)?);
    let mut entries = Vec::new();
    let mut room = READ_BYTES;
    let rows = by_log.range::<(&str, u64)>((Excluded((log, after)), Included((log, u64::MAX))))?;
    for row in rows.take(limit.min(MAX_READ)) {
        let (_, sequence) = row?.0.value();
        let event =
            events.get(sequence)?.ok_or_else(|| corrupt(format!("event {sequence} is missing")))?;
        let (time, _, _, event) = event.value();
        if event.len() > room && !entries.is_empty() {
            break;
        }
        room = room.saturating_sub(event.len());
        entries.push(entry(epoch, sequence, time, event)?);
    }
    Ok(entries)
}

/// Returns the events of all logs after one sequence and up to another, oldest first. `None`: some
/// of them have expired.
pub(super) fn read_all(
    txn: &ReadTransaction,
    epoch: u64,
    after: u64,
    to: u64,
) -> Result<Option<Vec<(LogName, Entry)>>, redb::Error> {
    if after != 0 && after < Tail::load(txn)?.swept {
        return Ok(None);
    }
    let events = txn.open_table(EVENTS)?;
    let mut entries = Vec::new();
    let mut room = READ_BYTES;
    for row in events.range((Excluded(after), Included(to)))?.take(MAX_READ) {
        let (sequence, event) = row?;
        let (time, _, log, event) = event.value();
        if event.len() > room && !entries.is_empty() {
            break;
        }
        room = room.saturating_sub(event.len());
        let name = LogName::decode(log).ok_or_else(|| corrupt(format!("{log:?} is no log")))?;
        entries.push((name, entry(epoch, sequence.value(), time, event)?));
    }
    Ok(Some(entries))
}

pub(super) fn load_cell(
    txn: &ReadTransaction,
    cell: &CellName,
) -> Result<Option<Versioned>, redb::Error> {
    versioned(&txn.open_table(CELLS)?, &cell_key(cell))
}

pub(super) fn versioned(
    cells: &impl ReadableTable<&'static str, (u64, &'static [u8])>,
    key: &str,
) -> Result<Option<Versioned>, redb::Error> {
    Ok(cells.get(key)?.map(|row| {
        let (version, value) = row.value();
        Versioned { version: Version(version), value: Bytes::copy_from_slice(value) }
    }))
}

/// Returns `p.NAME` for a permanent cell and `r.NAME` for a retained one.
pub(super) fn cell_key(cell: &CellName) -> String {
    let life = match cell.life {
        CellLife::Permanent => 'p',
        CellLife::Retained => 'r',
    };
    format!("{life}.{}", cell.name)
}

fn entry(epoch: u64, sequence: u64, time: i64, event: &[u8]) -> Result<Entry, redb::Error> {
    let position = Position { epoch, sequence };
    Ok(Entry { position, time: timestamp(time)?, event: Bytes::copy_from_slice(event) })
}

fn timestamp(microsecond: i64) -> Result<Timestamp, redb::Error> {
    Timestamp::from_microsecond(microsecond).map_err(|error| corrupt(error.to_string()))
}
