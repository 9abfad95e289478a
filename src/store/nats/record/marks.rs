//! Marks: events and retained cells that exist until they may have expired.

use std::time::Duration;

use jiff::Timestamp;

use crate::{
    proto::storage::{StoreMark, StoreRecord},
    store::{CellName, nats::streams::StreamInfo},
};

/// The most marks of one kind that are kept.
const MAX_MARKS: usize = 256;

/// The number of parts of the retention. A mark is set once in each part, and must exist until the
/// last part of its retention begins.
const PER_RETENTION: u32 = 64;

pub(in crate::store::nats) fn new(number: u64, time: Timestamp, retention: Duration) -> StoreMark {
    StoreMark { number, time_ms: time.as_millisecond(), keep_ms: millis(retention) }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the cell of a key mark. It is never swapped.
pub(in crate::store::nats) fn key(number: u64) -> CellName {
    CellName::retained(format!("store-mark/{number}"))
}

/// Returns the oldest key mark that cannot have expired.
pub(in crate::store::nats) fn oldest_key(known: &StoreRecord, now: Timestamp) -> Option<CellName> {
    required(&known.key_marks, now).next().map(|mark| key(mark.number))
}

/// Returns the marks that cannot have expired.
pub(super) fn required(marks: &[StoreMark], now: Timestamp) -> impl Iterator<Item = &StoreMark> {
    let now = now.as_millisecond();
    marks.iter().filter(move |mark| {
        let slack = mark.keep_ms / u64::from(PER_RETENTION);
        let until = mark.time_ms.saturating_add_unsigned(mark.keep_ms.saturating_sub(slack));
        now < until
    })
}

/// Drops the marks that may have expired, and the oldest ones beyond [`MAX_MARKS`].
pub(super) fn drop_expired(marks: &mut Vec<StoreMark>, now: Timestamp) {
    let required: Vec<_> = required(marks, now).copied().collect();
    let surplus = required.len().saturating_sub(MAX_MARKS);
    *marks = required[surplus..].to_vec();
}

pub(in crate::store::nats) fn is_due(
    marks: &[StoreMark],
    now: Timestamp,
    retention: Duration,
) -> bool {
    let every = millis(retention / PER_RETENTION);
    let is_due =
        |last: &StoreMark| last.time_ms.saturating_add_unsigned(every) <= now.as_millisecond();
    marks.last().is_none_or(is_due)
}

/// Marks the newest event, or the next one if the stream is empty. If there is no mark yet, it
/// marks the oldest event instead, unless that expires soon.
pub(super) fn add_event(marks: &mut Vec<StoreMark>, events: &StreamInfo, retention: Duration) {
    let first = new(events.state.first_seq, events.state.first_time, retention);
    let first_counts = required(&[first], events.now).next().is_some();
    let next = if events.state.messages == 0 {
        new(events.state.last_seq + 1, events.now, retention)
    } else if marks.is_empty() && first_counts {
        first
    } else {
        new(events.state.last_seq, events.state.last_time, retention)
    };
    if marks.last().is_none_or(|newest| newest.number < next.number) {
        marks.push(next);
    }
}
