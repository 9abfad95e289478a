//! The record lists the permanent cells that were made. One that goes missing is a loss and never a
//! new cell.

use crate::store::{
    StoreError,
    nats::{
        Shared,
        record::{self, MOST_CELLS},
        streams::Hindrance,
    },
};

impl Shared {
    /// Enters a permanent cell, which the stream holds, into the record. Must be done before
    /// anybody learns that the cell exists.
    pub(in crate::store::nats) async fn enter(&self, subject: &str) -> Result<(), StoreError> {
        if self.facts().cell_subjects.contains(subject) {
            return Ok(());
        }
        // The look finds the cell and writes the record.
        Box::pin(self.refresh(false)).await.map_err(|why| unavailable(&why))?;
        if self.facts().cell_subjects.contains(subject) {
            return Ok(());
        }
        self.has_room_for_a_cell()?;
        let stream = &self.names.cells;
        let why = self.suspect(&format!("stream {stream} may have lost {subject}"));
        Err(StoreError::Unavailable(why))
    }

    /// Whether a permanent cell was ever made, which this process or the stored record knows.
    pub(in crate::store::nats) async fn is_recorded(
        &self,
        subject: &str,
    ) -> Result<bool, StoreError> {
        if self.facts().cell_subjects.contains(subject) {
            return Ok(true);
        }
        let stored = self.load_record(&record::cell()).await.map_err(|why| unavailable(&why))?;
        let Some((_, record)) = stored else { return Ok(false) };
        Ok(record.cell_subjects.iter().any(|known| known == subject))
    }

    /// Refuses another permanent cell where the record can list no more.
    pub(in crate::store::nats) fn has_room_for_a_cell(&self) -> Result<(), StoreError> {
        if self.facts().cell_subjects.len() < MOST_CELLS {
            return Ok(());
        }
        let stream = &self.names.cells;
        Err(StoreError::Unavailable(format!(
            "stream {stream} holds {MOST_CELLS} cells and takes no more: see docs/nats.md"
        )))
    }
}

fn unavailable(why: &Hindrance) -> StoreError {
    StoreError::Unavailable(why.to_string())
}
