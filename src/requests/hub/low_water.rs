//! The low-water mark: the position from which a replica follows the store at its start.
//!
//! No open log begins before the mark. The mark only rises. If it is too low, a start takes longer.

use prost::Message;

use crate::{
    proto::storage,
    store::{CELL_FORMAT, CellName, Position, Store, StoreError, Version, swap_cell},
};

/// The content of the cell, and its version.
#[derive(Debug, Clone)]
pub struct LowWater {
    version: Version,
    value: storage::LowWater,
}

fn cell() -> CellName {
    CellName::permanent("low-water")
}

impl LowWater {
    pub async fn load(store: &dyn Store) -> Result<Option<Self>, StoreError> {
        let Some(held) = store.load(&cell()).await? else { return Ok(None) };
        let value = storage::LowWater::decode(held.value)
            .map_err(|error| StoreError::Corrupt(error.to_string()))?;
        Ok(Some(Self { version: held.version, value }))
    }

    /// Returns the position before the mark, after which the store is followed. `None`: the mark is
    /// the first event.
    pub fn position(self) -> Option<Position> {
        let sequence = self.value.sequence.checked_sub(1).filter(|&s| s > 0)?;
        Some(Position { epoch: self.value.epoch, sequence })
    }

    /// Raises the mark. A higher mark, or one in a newer format, stays.
    pub async fn raise(store: &dyn Store, mark: Position) -> Result<(), StoreError> {
        let held = Self::load(store).await?;
        let stays = held.as_ref().is_some_and(|held| {
            held.value.version > CELL_FORMAT
                || (held.value.epoch == mark.epoch && held.value.sequence >= mark.sequence)
        });
        if stays {
            return Ok(());
        }
        let (epoch, sequence) = (mark.epoch, mark.sequence);
        let mut value = storage::LowWater { epoch, sequence, ..storage::LowWater::default() };
        // On a conflict another replica has raised the mark.
        swap_cell(store, &cell(), held.map(|held| held.version), &mut value).await.map(drop)
    }
}
