//! Removes old events and retained cells, in small commits. A cell is as old as its last swap.
//!
//! Ages are in running time ([`super::ages`]), so that a wrong wall clock removes nothing.

use std::time::Duration;

use redb::ReadableTable as _;

use super::{
    ages::Sample,
    tables::{Tables, Tail},
};

/// The interval between two sweeps.
pub(super) const SWEEP_EVERY: Duration = Duration::from_hours(1);

/// The most events, and the most cells, that one sweep removes.
pub(super) const SWEEP_ROWS: usize = 1_000;

/// Removes events and retained cells up to a sample. Returns the number of events or of cells,
/// whichever is larger.
pub(super) fn sweep(
    tables: &mut Tables<'_>,
    tail: &mut Tail,
    to: Sample,
) -> Result<usize, redb::Error> {
    Ok(sweep_events(tables, tail, to.sequence)?.max(sweep_cells(tables, to.version)?))
}

fn sweep_events(tables: &mut Tables<'_>, tail: &mut Tail, to: u64) -> Result<usize, redb::Error> {
    for removed in 0..SWEEP_ROWS {
        let Some(first) = tables.events.first()? else { return Ok(removed) };
        let (sequence, (_, id, log, event)) = (first.0.value(), first.1.value());
        if sequence > to {
            return Ok(removed);
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

fn sweep_cells(tables: &mut Tables<'_>, to: u64) -> Result<usize, redb::Error> {
    for removed in 0..SWEEP_ROWS {
        let Some(first) = tables.by_age.first()? else { return Ok(removed) };
        let (version, (_, cell)) = (first.0.value(), first.1.value());
        if version > to {
            return Ok(removed);
        }
        tables.cells.remove(cell)?;
        drop(first);
        tables.by_age.remove(version)?;
    }
    Ok(SWEEP_ROWS)
}
