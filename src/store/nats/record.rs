//! What the streams have to hold, and what they forgot. No I/O.
//!
//! The record is a permanent cell, shared by all replicas, with a copy among the retained cells.
//! Each replica also keeps one in memory, with everything it has seen since: a stream that goes
//! back while gateways run is noticed even if the record went back with it.
//!
//! Sequences never fall, no permanent cell goes away, and a *mark* is there until it may expire by
//! age. An event mark is the sequence of an event. A key mark is a retained cell that nobody swaps.
//! Where a mark is missing, somebody purged.
//!
//! The record is written before the marks, so a mark without a record is what a purge left. Events
//! and reports (see `reports`) tell how far the cells were when they were sent, so cells that were
//! put back are noticed even if the record and its copy went back with them.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;

use super::{facts::Message, names::Names, streams::Found};
use crate::{
    proto::storage::{StoreLoss, StoreMark, StoreRecord, StoreStream},
    store::CellName,
};

/// Format of the cell.
pub(super) const FORMAT: u32 = 1;

/// Accepted losses that are kept.
const KEPT_LOSSES: usize = 16;

/// Marks that are kept of a kind.
const KEPT_MARKS: usize = 256;

/// A mark is set each time that this part of the retention has passed, and is expected until this
/// part is left of it.
const MARKS_PER_RETENTION: u32 = 64;

/// Permanent cells that are kept at most, and that the record lists. A store has two for each set
/// of credentials, one for each account and up to a thousand for the quarantine of callbacks.
/// Further ones are refused.
pub(super) const MOST_CELLS: usize = 4_096;

/// Missing cells that a sentence names.
const NAMED_CELLS: usize = 3;

/// The streams, in the order of every array of three.
pub(super) const EVENTS: usize = 0;
pub(super) const CELLS: usize = 1;
pub(super) const KEYS: usize = 2;

/// What one look at the streams found, in the order of [`EVENTS`], [`CELLS`], [`KEYS`]; `None`:
/// there is none.
pub(super) type Streams = [Option<Found>; 3];

/// The record's own cell.
pub(super) fn cell() -> CellName {
    CellName::permanent("store")
}

/// A copy of the record among the retained cells: it tells when the record itself was lost or put
/// back.
pub(super) fn copy() -> CellName {
    CellName::retained("store-record")
}

/// The permanent cell that nobody swaps.
pub(super) fn cells_mark() -> CellName {
    CellName::permanent("store-mark")
}

/// A retained cell that nobody swaps.
pub(super) fn key_mark(number: u64) -> CellName {
    CellName::retained(format!("store-mark/{number}"))
}

/// Something that a stream forgot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Forgotten {
    /// Which stream.
    pub(super) stream: usize,
    /// In a sentence, without an end point.
    pub(super) what: String,
    /// What the stream holds now may be older than what it held before.
    pub(super) is_older: bool,
}

impl Forgotten {
    fn new(names: &Names, stream: usize, what: &str) -> Self {
        Self { stream, what: format!("stream {} {what}", names.streams()[stream]), is_older: false }
    }

    pub(super) fn older(names: &Names, stream: usize, what: &str) -> Self {
        Self { is_older: true, ..Self::new(names, stream, what) }
    }
}

/// All of it in one sentence.
pub(super) fn sentence(forgotten: &[Forgotten]) -> String {
    forgotten.iter().map(|one| one.what.as_str()).collect::<Vec<_>>().join("; ")
}

/// What streams without a record, seen by a process that remembers nothing, are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unrecorded {
    /// Nothing was ever stored.
    New,
    /// An older gateway, which writes no record, has used them.
    Older,
    Forgotten(Vec<Forgotten>),
}

pub(super) fn unrecorded(names: &Names, found: &Streams) -> Unrecorded {
    if found.iter().flatten().all(|stream| stream.last_sequence == 0) {
        return Unrecorded::New;
    }
    let deleted = missing(names, found);
    if !deleted.is_empty() {
        return Unrecorded::Forgotten(deleted);
    }
    // A gateway that has been ready has written at least one permanent cell.
    match &found[CELLS] {
        // Only gateways that write a record set the mark.
        Some(cells) if cells.subjects.contains(&names.cell(&cells_mark()).1) => {
            Unrecorded::Forgotten(vec![
                no_record(names, CELLS, &cell()),
                no_record(names, KEYS, &copy()),
            ])
        }
        Some(cells) if cells.messages > 0 => Unrecorded::Older,
        _ => Unrecorded::Forgotten(vec![Forgotten::new(names, CELLS, "was purged")]),
    }
}

fn no_record(names: &Names, stream: usize, cell: &CellName) -> Forgotten {
    Forgotten::new(names, stream, &no_longer_holds(&[&names.cell(cell).1]))
}

fn missing(names: &Names, found: &Streams) -> Vec<Forgotten> {
    let missing = found.iter().enumerate().filter(|(_, found)| found.is_none());
    missing.map(|(stream, _)| Forgotten::new(names, stream, "was deleted")).collect()
}

/// What the streams forgot of what is known. `seen` are the last sequences that this process knew
/// of before it looked, `marks` says whether the cells that must be there are: the permanent one,
/// and the oldest retained one.
pub(super) fn forgotten(
    names: &Names,
    known: &StoreRecord,
    seen: [u64; 3],
    found: &Streams,
    marks: Marks,
) -> Vec<Forgotten> {
    let mut forgotten = missing(names, found);
    let missing_cells = missing_cells(known, found[CELLS].as_ref());
    for (stream, found) in found.iter().enumerate() {
        let (Some(found), Some(known)) = (found, streams(known)[stream]) else { continue };
        let last = known.last_sequence.max(seen[stream]);
        forgotten.push(if found.created_ns != known.created_ns {
            Forgotten::older(names, stream, "was deleted and made anew")
        } else if found.last_sequence < last {
            let now = found.last_sequence;
            let what =
                format!("ended at {last} and now ends at {now}: it was put back to an older copy");
            Forgotten::older(names, stream, &what)
        } else if stream == CELLS && !missing_cells.is_empty() {
            Forgotten::new(names, stream, &no_longer_holds(&missing_cells))
        } else if stream == CELLS && found.messages < known.messages {
            let (before, now) = (known.messages, found.messages);
            Forgotten::new(
                names,
                stream,
                &format!("held {before} cells and now holds {now}: it was purged"),
            )
        } else {
            continue;
        });
    }
    let mut purged = |stream: usize, what: &str| {
        if !forgotten.iter().any(|one| one.stream == stream) {
            forgotten.push(Forgotten::new(names, stream, what));
        }
    };
    if let Some(events) = &found[EVENTS]
        && required(&known.event_marks, events.now).any(|mark| mark.number < events.first_sequence)
    {
        let end = events.first_sequence - 1;
        purged(EVENTS, &format!("was purged up to {end}"));
    }
    if !marks.cells {
        purged(CELLS, "was purged");
    }
    if !marks.keys {
        purged(KEYS, "was purged");
    }
    forgotten
}

/// The recorded cells that are not in their stream.
fn missing_cells<'a>(known: &'a StoreRecord, found: Option<&Found>) -> Vec<&'a str> {
    let Some(found) = found else { return Vec::new() };
    let subjects = known.cell_subjects.iter().map(String::as_str);
    subjects.filter(|subject| !found.subjects.contains(*subject)).collect()
}

/// What a stream is said to have forgotten that lost these cells.
pub(super) fn no_longer_holds(subjects: &[&str]) -> String {
    let named = &subjects[..subjects.len().min(NAMED_CELLS)];
    let more = match subjects.len() - named.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("no longer holds {}{more}: it was purged", named.join(", "))
}

/// Whether the marks that must be there are; true also where there is none yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    pub(super) cells: bool,
    pub(super) keys: bool,
}

pub(super) fn streams(record: &StoreRecord) -> [Option<&StoreStream>; 3] {
    [record.events.as_ref(), record.cells.as_ref(), record.keys.as_ref()]
}

/// Whether the cells are still in the stream that the record tells of.
pub(super) fn describes_cells(record: &StoreRecord, found: &Streams) -> bool {
    match (&record.cells, &found[CELLS]) {
        (Some(known), Some(found)) => known.created_ns == found.created_ns,
        _ => false,
    }
}

/// The marks that cannot have expired yet.
fn required(marks: &[StoreMark], now: Timestamp) -> impl Iterator<Item = &StoreMark> {
    let now = now.as_millisecond();
    marks.iter().filter(move |mark| {
        let slack = mark.keep_ms / u64::from(MARKS_PER_RETENTION);
        let until = mark.time_ms.saturating_add_unsigned(mark.keep_ms.saturating_sub(slack));
        now < until
    })
}

/// The oldest key mark that cannot have expired yet.
pub(super) fn oldest_key_mark(known: &StoreRecord, now: Timestamp) -> Option<CellName> {
    required(&known.key_marks, now).next().map(|mark| key_mark(mark.number))
}

/// Whether it is time for another mark.
pub(super) fn mark_is_due(marks: &[StoreMark], now: Timestamp, keep: Duration) -> bool {
    let every = millis(keep / MARKS_PER_RETENTION);
    marks
        .last()
        .is_none_or(|last| last.time_ms.saturating_add_unsigned(every) <= now.as_millisecond())
}

pub(super) fn mark(number: u64, time: Timestamp, keep: Duration) -> StoreMark {
    StoreMark { number, time_ms: time.as_millisecond(), keep_ms: millis(keep) }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A record of streams that nothing was lost of so far.
pub(super) fn first(found: &[Found; 3], remembers_since: Timestamp) -> StoreRecord {
    let stream = |found: &Found| {
        Some(StoreStream { created_ns: found.created_ns, ..StoreStream::default() })
    };
    let [events, cells, keys] = found;
    StoreRecord {
        version: FORMAT,
        epoch: events.created_ns,
        made_time_ms: remembers_since.as_millisecond(),
        remembers_since_ms: remembers_since.as_millisecond(),
        events: stream(events),
        cells: stream(cells),
        keys: stream(keys),
        ..StoreRecord::default()
    }
}

/// What becomes of the permanent cells when an operator accepts a loss.
#[derive(Debug, Clone, Copy)]
pub(super) struct CellsAfter {
    /// Some may be gone.
    pub(super) lost: bool,
    /// Those that are there may come from a backup.
    pub(super) older: bool,
}

/// The record after an operator accepted a loss: it begins anew with what the streams hold now.
/// `latest`: the last epoch that anything stored tells of.
pub(super) fn accepted(
    before: Option<&StoreRecord>,
    latest: u64,
    found: &[Found; 3],
    what: String,
    after: CellsAfter,
) -> StoreRecord {
    let now = found[EVENTS].now;
    let mut record = first(found, now);
    let now_ns = u64::try_from(now.as_nanosecond()).unwrap_or_default();
    record.epoch = record.epoch.max(now_ns).max(latest + 1);
    record.cells_lost = after.lost;
    if after.older {
        record.void_to = found[CELLS].last_sequence;
    }
    if let Some(before) = before {
        let same_stream =
            before.cells.as_ref().is_some_and(|cells| cells.created_ns == found[CELLS].created_ns);
        if same_stream {
            record.void_to = record.void_to.max(before.void_to);
        }
        record.epoch = record.epoch.max(before.epoch + 1);
        record.made_time_ms = before.made_time_ms;
        record.cells_lost |= before.cells_lost;
        record.losses.clone_from(&before.losses);
    }
    record.losses.push(StoreLoss { time_ms: now.as_millisecond(), what });
    let surplus = record.losses.len().saturating_sub(KEPT_LOSSES);
    record.losses.drain(..surplus);
    record
}

/// Adds what another copy of the same epoch knows.
pub(super) fn merge(known: &mut StoreRecord, other: &StoreRecord) {
    let pairs = [
        (&mut known.events, &other.events),
        (&mut known.cells, &other.cells),
        (&mut known.keys, &other.keys),
    ];
    for (known, other) in pairs {
        if let (Some(known), Some(other)) = (known, other) {
            known.last_sequence = known.last_sequence.max(other.last_sequence);
            known.messages = known.messages.max(other.messages);
            if other.replaced_sequence > 0 {
                known.replaced_sequence = other.replaced_sequence;
                known.replaced_id.clone_from(&other.replaced_id);
            }
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

/// The subjects that nobody can add are left out: see [`MOST_CELLS`].
fn add_cells<'a>(known: &mut StoreRecord, subjects: impl Iterator<Item = &'a String>) {
    let mut cells: BTreeSet<String> =
        std::mem::take(&mut known.cell_subjects).into_iter().collect();
    for subject in subjects {
        if cells.len() < MOST_CELLS {
            cells.insert(subject.clone());
        }
    }
    known.cell_subjects = cells.into_iter().collect();
}

/// The messages in whose places the streams hold others.
pub(super) fn replaced(record: &StoreRecord) -> [Option<Message>; 3] {
    streams(record).map(|stream| {
        let StoreStream { replaced_sequence: sequence, replaced_id: id, .. } = stream?;
        (*sequence > 0).then(|| Message { sequence: *sequence, id: id.clone() })
    })
}

/// Adds that a stream holds another message in the place of this one.
pub(super) fn note_replaced(known: &mut StoreRecord, stream: usize, message: Message) {
    let streams = [&mut known.events, &mut known.cells, &mut known.keys];
    let stream = streams.into_iter().nth(stream).expect("there are three").get_or_insert_default();
    (stream.replaced_sequence, stream.replaced_id) = (message.sequence, message.id);
}

/// Which streams end before what is known. Nothing is written to them: they would grow until they
/// ended where they had ended before.
pub(super) fn shorter(known: &StoreRecord, found: &Streams) -> [bool; 3] {
    let known = streams(known);
    [EVENTS, CELLS, KEYS].map(|stream| match (known[stream], &found[stream]) {
        (Some(known), Some(found)) => {
            known.created_ns == found.created_ns && found.last_sequence < known.last_sequence
        }
        _ => false,
    })
}

/// The part of a record that a report holds: how far the streams were, and what was replaced.
pub(super) fn positions(record: &StoreRecord) -> StoreRecord {
    let StoreRecord { version, epoch, events, cells, keys, .. } = record.clone();
    StoreRecord { version, epoch, events, cells, keys, ..StoreRecord::default() }
}

/// Adds the last sequences that were seen.
pub(super) fn saw(known: &mut StoreRecord, seen: [u64; 3]) {
    let streams = [&mut known.events, &mut known.cells, &mut known.keys];
    for (known, seen) in streams.into_iter().zip(seen) {
        let known = known.get_or_insert_default();
        known.last_sequence = known.last_sequence.max(seen);
    }
}

/// Adds what was found, which has forgotten nothing.
pub(super) fn observe(names: &Names, known: &mut StoreRecord, found: &[Found; 3], keep: Duration) {
    let now = found[EVENTS].now;
    for marks in [&mut known.event_marks, &mut known.key_marks] {
        let required: Vec<_> = required(marks, now).copied().collect();
        let surplus = required.len().saturating_sub(KEPT_MARKS);
        *marks = required[surplus..].to_vec();
    }
    let streams = [&mut known.events, &mut known.cells, &mut known.keys];
    for (stream, (known, found)) in streams.into_iter().zip(found).enumerate() {
        let known = known.get_or_insert_default();
        known.last_sequence = known.last_sequence.max(found.last_sequence);
        if stream == CELLS {
            known.messages = known.messages.max(found.messages);
        }
    }
    let own = [cell(), cells_mark()].map(|cell| names.cell(&cell).1);
    add_cells(known, found[CELLS].subjects.iter().filter(|subject| !own.contains(subject)));
    if mark_is_due(&known.event_marks, now, keep)
        && let Some(next) = next_event_mark(known, &found[EVENTS], keep)
    {
        known.event_marks.push(next);
    }
}

/// The oldest event where there is no mark yet and it does not expire soon, otherwise the newest
/// one. In an empty stream it is the one to come.
fn next_event_mark(known: &StoreRecord, events: &Found, keep: Duration) -> Option<StoreMark> {
    let first = mark(events.first_sequence, events.first_time, keep);
    let first_counts = required(&[first], events.now).next().is_some();
    let next = if events.messages == 0 {
        mark(events.last_sequence + 1, events.now, keep)
    } else if known.event_marks.is_empty() && first_counts {
        first
    } else {
        mark(events.last_sequence, events.last_time, keep)
    };
    known.event_marks.last().is_none_or(|newest| newest.number < next.number).then_some(next)
}

#[cfg(test)]
mod tests;
