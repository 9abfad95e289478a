//! What the streams must hold, and what they lost. No I/O.
//!
//! The record is a permanent cell that all replicas share, with a copy among the retained cells.
//! Both are written within a second after something was stored, and each minute otherwise.
//! Each replica also has a record in memory, with everything that it has seen since. So it notices
//! a stream that was put back to an older copy, even if the record was put back with it.
//!
//! A stream that lost nothing obeys three rules. Its last sequence never falls. A permanent cell is
//! never deleted. A *mark* exists until it may have expired: an event mark is the sequence of an
//! event, and a key mark is a retained cell that is never swapped. If a mark is missing, the stream
//! was purged.
//!
//! The record is written before the marks, so a mark without a record means that the record was
//! purged. Reports and the headers of events and cells (see `reports`) contain the last sequences
//! of the streams at the time when they were sent. So events show that cells were put back together
//! with the record and its copy.

pub(super) mod marks;

use std::{collections::BTreeSet, mem, time::Duration};

use jiff::Timestamp;

use super::{facts::MessageId, names::NatsNames, streams::StreamInfo};
use crate::{
    proto::storage::{StoreLoss, StoreRecord, StoreStream},
    store::{CELL_FORMAT, CellName},
};

/// The number of accepted losses that are kept.
const MAX_LOSSES: usize = 16;

/// The number of permanent cells that the record lists. Further ones are refused. A store has two
/// for each set of credentials, one for each account and up to a thousand for quarantined
/// callbacks.
pub(super) const MAX_CELLS: usize = 4_096;

/// The number of missing cells that a sentence names.
const NAMED_CELLS: usize = 3;

/// The index of each stream in the arrays of three.
pub(super) const EVENTS: usize = 0;
pub(super) const CELLS: usize = 1;
pub(super) const KEYS: usize = 2;

/// The streams that one check found; `None`: there is no such stream.
pub(super) type Streams = [Option<StreamInfo>; 3];

pub(super) fn cell() -> CellName {
    CellName::permanent("store")
}

/// The cell of the copy of the record. It shows when the record itself was lost or put back.
pub(super) fn copy() -> CellName {
    CellName::retained("store-record")
}

/// A permanent cell that is never swapped.
pub(super) fn cells_mark() -> CellName {
    CellName::permanent("store-mark")
}

/// A loss of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StreamLoss {
    pub(super) stream: usize,
    /// A sentence without its full stop.
    pub(super) what: String,
    /// The stream may now hold older content than before.
    pub(super) is_older: bool,
}

impl StreamLoss {
    fn new(names: &NatsNames, stream: usize, what: &str) -> Self {
        Self { stream, what: format!("stream {} {what}", names.streams()[stream]), is_older: false }
    }

    pub(super) fn older(names: &NatsNames, stream: usize, what: &str) -> Self {
        Self { is_older: true, ..Self::new(names, stream, what) }
    }
}

pub(super) fn sentence(losses: &[StreamLoss]) -> String {
    losses.iter().map(|loss| loss.what.as_str()).collect::<Vec<_>>().join("; ")
}

/// Why streams have no record, for a process that has not seen them before.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unrecorded {
    /// Nothing was ever stored.
    New,
    /// The streams come from an older version of the gateway, which wrote no record.
    Older,
    Lost(Vec<StreamLoss>),
}

pub(super) fn unrecorded(names: &NatsNames, found: &Streams) -> Unrecorded {
    if found.iter().flatten().all(|stream| stream.state.last_seq == 0) {
        return Unrecorded::New;
    }
    let deleted = deleted(names, found);
    if !deleted.is_empty() {
        return Unrecorded::Lost(deleted);
    }
    match &found[CELLS] {
        // Only gateways that write a record set the mark.
        Some(cells) if cells.state.subjects.contains_key(&names.cell(&cells_mark()).1) => {
            Unrecorded::Lost(vec![
                StreamLoss::new(names, CELLS, &no_longer_holds(&[&names.cell(&cell()).1])),
                StreamLoss::new(names, KEYS, &no_longer_holds(&[&names.cell(&copy()).1])),
            ])
        }
        // A gateway that has been ready has written at least one permanent cell.
        Some(cells) if cells.state.messages > 0 => Unrecorded::Older,
        _ => Unrecorded::Lost(vec![StreamLoss::new(names, CELLS, "was purged")]),
    }
}

fn deleted(names: &NatsNames, found: &Streams) -> Vec<StreamLoss> {
    let missing = (0..found.len()).filter(|stream| found[*stream].is_none());
    missing.map(|stream| StreamLoss::new(names, stream, "was deleted")).collect()
}

/// Whether the marks that must exist do exist.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    /// The permanent cell that is never swapped.
    pub(super) cells: bool,
    /// The oldest key mark that cannot have expired.
    pub(super) keys: bool,
}

/// Compares the streams with what is known of them, and returns what they lost. `seen`: the last
/// sequences that this process knew before it inspected the streams.
pub(super) fn losses(
    names: &NatsNames,
    known: &StoreRecord,
    seen: [u64; 3],
    found: &Streams,
    marks: Marks,
) -> Vec<StreamLoss> {
    let mut losses = deleted(names, found);
    let missing_cells = missing_cells(known, found[CELLS].as_ref());
    for (stream, found) in found.iter().enumerate() {
        let (Some(found), Some(known)) = (found, streams(known)[stream]) else { continue };
        let last = known.last_sequence.max(seen[stream]);
        losses.push(if found.created_ns() != known.created_ns {
            StreamLoss::older(names, stream, "was deleted and made anew")
        } else if found.state.last_seq < last {
            let now = found.state.last_seq;
            let what =
                format!("ended at {last} and now ends at {now}: it was put back to an older copy");
            StreamLoss::older(names, stream, &what)
        } else if stream == CELLS && !missing_cells.is_empty() {
            StreamLoss::new(names, stream, &no_longer_holds(&missing_cells))
        } else if stream == CELLS && found.state.messages < known.messages {
            let (before, now) = (known.messages, found.state.messages);
            let what = format!("held {before} cells and now holds {now}: it was purged");
            StreamLoss::new(names, stream, &what)
        } else {
            continue;
        });
    }
    let mut purged = |stream: usize, what: &str| {
        if !losses.iter().any(|loss| loss.stream == stream) {
            losses.push(StreamLoss::new(names, stream, what));
        }
    };
    if let Some(events) = &found[EVENTS]
        && marks::required(&known.event_marks, events.now)
            .any(|mark| mark.number < events.state.first_seq)
    {
        purged(EVENTS, &format!("was purged up to {}", events.state.first_seq - 1));
    }
    if !marks.cells {
        purged(CELLS, "was purged");
    }
    if !marks.keys {
        purged(KEYS, "was purged");
    }
    losses
}

/// Returns the subjects of the recorded cells that are not in their stream.
fn missing_cells<'a>(known: &'a StoreRecord, found: Option<&StreamInfo>) -> Vec<&'a str> {
    let Some(found) = found else { return Vec::new() };
    let subjects = known.cell_subjects.iter().map(String::as_str);
    subjects.filter(|subject| !found.state.subjects.contains_key(*subject)).collect()
}

/// Returns what follows a stream's name in a sentence: it lost the cells with these subjects.
pub(super) fn no_longer_holds(subjects: &[&str]) -> String {
    let named = &subjects[..subjects.len().min(NAMED_CELLS)];
    let more = match subjects.len() - named.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("no longer holds {}{more}: it was purged", named.join(", "))
}

pub(super) fn streams(record: &StoreRecord) -> [Option<&StoreStream>; 3] {
    [record.events.as_ref(), record.cells.as_ref(), record.keys.as_ref()]
}

fn streams_mut(record: &mut StoreRecord) -> [&mut StoreStream; 3] {
    [&mut record.events, &mut record.cells, &mut record.keys].map(Option::get_or_insert_default)
}

/// Returns whether the stream of cells is the one that the record describes.
pub(super) fn describes_cells(record: &StoreRecord, found: &Streams) -> bool {
    match (&record.cells, &found[CELLS]) {
        (Some(known), Some(found)) => known.created_ns == found.created_ns(),
        _ => false,
    }
}

/// Returns the first record of streams that have lost nothing so far.
pub(super) fn first(found: &[StreamInfo; 3], remembers_since: Timestamp) -> StoreRecord {
    let stream = |found: &StreamInfo| {
        Some(StoreStream { created_ns: found.created_ns(), ..StoreStream::default() })
    };
    let [events, cells, keys] = found;
    StoreRecord {
        version: CELL_FORMAT,
        epoch: events.created_ns(),
        made_time_ms: remembers_since.as_millisecond(),
        remembers_since_ms: remembers_since.as_millisecond(),
        events: stream(events),
        cells: stream(cells),
        keys: stream(keys),
        ..StoreRecord::default()
    }
}

/// What an accepted loss means for the permanent cells.
#[derive(Debug, Clone, Copy)]
pub(super) struct CellsAfter {
    /// Some may be lost.
    pub(super) lost: bool,
    /// Those that exist may come from a backup.
    pub(super) older: bool,
}

/// Returns the record after an operator accepted a loss. It describes what the streams hold now.
/// `latest` is the highest epoch in anything stored.
pub(super) fn accepted(
    before: Option<&StoreRecord>,
    latest: u64,
    found: &[StreamInfo; 3],
    what: String,
    after: CellsAfter,
) -> StoreRecord {
    let now = found[EVENTS].now;
    let mut record = first(found, now);
    let now_ns = u64::try_from(now.as_nanosecond()).unwrap_or_default();
    record.epoch = record.epoch.max(now_ns).max(latest + 1);
    record.cells_lost = after.lost;
    if after.older {
        record.void_to = found[CELLS].state.last_seq;
    }
    if let Some(before) = before {
        let created = |record: &StoreRecord| record.cells.as_ref().map(|cells| cells.created_ns);
        if created(before) == created(&record) {
            record.void_to = record.void_to.max(before.void_to);
        }
        record.epoch = record.epoch.max(before.epoch + 1);
        record.made_time_ms = before.made_time_ms;
        record.cells_lost |= before.cells_lost;
        record.losses.clone_from(&before.losses);
    }
    record.losses.push(StoreLoss { time_ms: now.as_millisecond(), what });
    let surplus = record.losses.len().saturating_sub(MAX_LOSSES);
    record.losses.drain(..surplus);
    record
}

/// Adds what another record of the same epoch contains.
pub(super) fn merge(known: &mut StoreRecord, other: &StoreRecord) {
    for (known, other) in streams_mut(known).into_iter().zip(streams(other)) {
        let Some(other) = other else { continue };
        known.last_sequence = known.last_sequence.max(other.last_sequence);
        known.messages = known.messages.max(other.messages);
        if other.replaced_sequence > 0 {
            known.replaced_sequence = other.replaced_sequence;
            known.replaced_id.clone_from(&other.replaced_id);
        }
    }
    for (known, other) in
        [(&mut known.event_marks, &other.event_marks), (&mut known.key_marks, &other.key_marks)]
    {
        known.extend(other.iter().copied());
        known.sort_by_key(|mark| (mark.number, mark.time_ms));
        known.dedup_by_key(|mark| mark.number);
    }
    known.cells_marked |= other.cells_marked;
    add_cells(known, other.cell_subjects.iter());
}

/// Adds subjects of cells, up to [`MAX_CELLS`].
fn add_cells<'a>(known: &mut StoreRecord, subjects: impl Iterator<Item = &'a String>) {
    let mut cells: BTreeSet<String> = mem::take(&mut known.cell_subjects).into_iter().collect();
    for subject in subjects {
        if cells.len() < MAX_CELLS {
            cells.insert(subject.clone());
        }
    }
    known.cell_subjects = cells.into_iter().collect();
}

/// Returns the messages that were replaced, as the record lists them.
pub(super) fn replaced(record: &StoreRecord) -> [Option<MessageId>; 3] {
    streams(record).map(|stream| {
        let StoreStream { replaced_sequence: sequence, replaced_id: id, .. } = stream?;
        (*sequence > 0).then(|| MessageId { sequence: *sequence, id: id.clone() })
    })
}

/// Notes a replaced message: the stream holds another one at its sequence.
pub(super) fn note_replaced(known: &mut StoreRecord, stream: usize, message: MessageId) {
    let known = streams_mut(known).into_iter().nth(stream).expect("there are three");
    (known.replaced_sequence, known.replaced_id) = (message.sequence, message.id);
}

/// Returns which streams end before their known last sequence. Nothing is written to them, because
/// they would grow to that sequence, and the loss would no longer show.
pub(super) fn shorter(known: &StoreRecord, found: &Streams) -> [bool; 3] {
    let known = streams(known);
    [EVENTS, CELLS, KEYS].map(|stream| match (known[stream], &found[stream]) {
        (Some(known), Some(found)) => {
            known.created_ns == found.created_ns() && found.state.last_seq < known.last_sequence
        }
        _ => false,
    })
}

/// Returns the part of a record that a report contains: last sequences and replaced messages.
pub(super) fn positions(record: &StoreRecord) -> StoreRecord {
    let StoreRecord { version, epoch, events, cells, keys, .. } = record.clone();
    StoreRecord { version, epoch, events, cells, keys, ..StoreRecord::default() }
}

/// Returns a record without its marks, because some of them may have expired.
pub(super) fn without_marks(record: StoreRecord) -> StoreRecord {
    StoreRecord { event_marks: Vec::new(), key_marks: Vec::new(), ..record }
}

/// Raises the last sequences to those that were seen.
pub(super) fn saw(known: &mut StoreRecord, seen: [u64; 3]) {
    for (known, seen) in streams_mut(known).into_iter().zip(seen) {
        known.last_sequence = known.last_sequence.max(seen);
    }
}

/// Adds what the streams hold. Must be called only if they have lost nothing.
pub(super) fn observe(
    names: &NatsNames,
    known: &mut StoreRecord,
    found: &[StreamInfo; 3],
    retention: Duration,
) {
    let now = found[EVENTS].now;
    marks::drop_expired(&mut known.event_marks, now);
    marks::drop_expired(&mut known.key_marks, now);
    saw(known, found.each_ref().map(|stream| stream.state.last_seq));
    let cells = known.cells.get_or_insert_default();
    cells.messages = cells.messages.max(found[CELLS].state.messages);
    let own = [cell(), cells_mark()].map(|cell| names.cell(&cell).1);
    add_cells(known, found[CELLS].state.subjects.keys().filter(|subject| !own.contains(subject)));
    if marks::is_due(&known.event_marks, now, retention) {
        marks::add_event(&mut known.event_marks, &found[EVENTS], retention);
    }
}

#[cfg(test)]
mod tests;
