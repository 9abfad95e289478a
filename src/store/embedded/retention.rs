//! What is too old goes: events from the front, with what points at them, and cells by their last swap.
//!
//! Nothing depends on it but the size of the file, so it happens now and then, in small commits.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use redb::ReadableTable as _;

use super::{
    batch,
    tables::{Tables, Tail},
};

/// How often it is looked whether something is too old.
pub(super) const SWEEP_EVERY: Duration = Duration::from_hours(1);

/// The most events, and the most cells, that one commit removes.
const SWEEP_ROWS: usize = 1_000;

/// How many rows are gone, and whether there may be more.
pub(super) struct Swept {
    pub(super) rows: usize,
    pub(super) more: bool,
}

pub(super) fn sweep(
    tables: &mut Tables<'_>,
    tail: &mut Tail,
    retention: Duration,
) -> Result<Swept, redb::Error> {
    // A retention beyond the range of time keeps everything.
    let Some(cutoff) = SignedDuration::try_from(retention)
        .ok()
        .and_then(|retention| batch::now().checked_sub(retention).ok())
    else {
        return Ok(Swept { rows: 0, more: false });
    };
    let events = sweep_events(tables, tail, cutoff)?;
    let cells = sweep_cells(tables, cutoff)?;
    Ok(Swept { rows: events + cells, more: events == SWEEP_ROWS || cells == SWEEP_ROWS })
}

fn sweep_events(tables: &mut Tables<'_>, tail: &mut Tail, cutoff: Timestamp) -> Result<usize, redb::Error> {
    for done in 0..SWEEP_ROWS {
        let Some(first) = tables.events.first()? else { return Ok(done) };
        let (sequence, (time, id, log, event)) = (first.0.value(), first.1.value());
        if time >= cutoff.as_microsecond() {
            return Ok(done);
        }
        tables.by_log.remove((log, sequence))?;
        tables.by_id.remove(id)?;
        tail.swept = sequence;
        tail.bytes = tail.bytes.saturating_sub(event.len() as u64);
        drop(first);
        tables.events.remove(sequence)?;
    }
    Ok(SWEEP_ROWS)
}

fn sweep_cells(tables: &mut Tables<'_>, cutoff: Timestamp) -> Result<usize, redb::Error> {
    for done in 0..SWEEP_ROWS {
        let Some(first) = tables.by_age.first()? else { return Ok(done) };
        let (version, (time, cell)) = (first.0.value(), first.1.value());
        if time >= cutoff.as_microsecond() {
            return Ok(done);
        }
        tables.cells.remove(cell)?;
        drop(first);
        tables.by_age.remove(version)?;
    }
    Ok(SWEEP_ROWS)
}
