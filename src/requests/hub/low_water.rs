//! The low-water cell: where a replica starts to follow.
//!
//! No open log begins before it, so that a start reads what happened since the oldest open request
//! and not the whole history. It only rises; one that is too low costs time and nothing else.

use bytes::Bytes;
use prost::Message;

use crate::{
    proto::storage,
    store::{CellName, Position, Store, StoreError, Swap, Version},
};

const FORMAT: u32 = 1;

/// What the cell holds, and its version.
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

    /// To follow *after*: the position before the mark. `None` where the mark is the very first
    /// event.
    pub fn position(self) -> Option<Position> {
        let sequence = self.value.sequence.checked_sub(1).filter(|&s| s > 0)?;
        Some(Position { epoch: self.value.epoch, sequence })
    }

    /// Raises the mark; one that is higher, or of a newer format, stays.
    pub async fn raise(store: &dyn Store, mark: Position) -> Result<(), StoreError> {
        let held = Self::load(store).await?;
        let stays = held.as_ref().is_some_and(|held| {
            held.value.version > FORMAT
                || (held.value.epoch == mark.epoch && held.value.sequence >= mark.sequence)
        });
        if stays {
            return Ok(());
        }
        let value =
            storage::LowWater { version: FORMAT, epoch: mark.epoch, sequence: mark.sequence };
        let value = Bytes::from(value.encode_to_vec());
        match store.swap(&cell(), held.map(|held| held.version), value).await? {
            // Another replica was first; its mark is as good.
            Swap::Swapped(_) | Swap::Conflict(_) => Ok(()),
        }
    }
}
