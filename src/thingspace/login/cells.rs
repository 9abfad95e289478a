//! Reads and swaps the cells of the guards. If the store loses a guard, this process restores it
//! from memory.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use prost::Message;
use tokio::time::Instant;
use tracing::warn;

use super::{
    guard::{self, GuardSettings, Observation},
    secrets::HalfIdentity,
};
use crate::{
    lock::lock,
    proto::storage::Guard,
    store::{CellName, Store, StoreError, Swap, Version, decode_cell, swap_cell},
};

#[derive(Debug)]
pub(super) struct GuardCells {
    store: Arc<dyn Store>,
    settings: GuardSettings,
    seen: Mutex<Option<SeenGuard>>,
}

/// What a cell held when this process read it last, and since when.
#[derive(Debug)]
struct SeenGuard {
    cell: CellName,
    version: Option<Version>,
    guard: Option<Guard>,
    since: Instant,
}

impl GuardCells {
    pub(super) fn new(store: Arc<dyn Store>, settings: GuardSettings) -> Self {
        Self { store, settings, seen: Mutex::default() }
    }

    /// Reads the guard of an identity. First restores what the store has lost of it.
    pub(super) async fn observe(
        &self,
        identity: &HalfIdentity,
    ) -> Result<(Option<Version>, Observation), StoreError> {
        let cell = &identity.cell;
        let exclusive = self.store.exclusive();
        loop {
            let held = self.store.load(cell).await?;
            let version = held.as_ref().map(|held| held.version);
            let guard = match held {
                Some(held) => decode(held.value)?,
                None => None,
            };
            let guard = guard.map(|guard| identity.renamed(guard));
            // An exclusive store cannot lose what this process remembers: it has read it from
            // there.
            let remembered = match &*lock(&self.seen) {
                Some(seen) if seen.cell == *cell && !exclusive => seen.guard.clone(),
                _ => None,
            };
            let lost =
                remembered.and_then(|known| guard::merged(guard.as_ref(), &known, &self.settings));
            let Some(next) = lost else {
                let damaged = version.is_some() && guard.is_none();
                let lost = self.store.has_lost_cells() || damaged;
                let unchanged = self.remember(cell, version, guard.clone());
                return Ok((version, Observation { guard, lost, unchanged, exclusive }));
            };
            // If it fails, the cell was changed after it was read, and nothing was lost.
            if self.swap(cell, version, next).await? {
                warn!(
                    cell = cell.name,
                    "the store had lost attempts to get a token; this replica wrote back what it \
                     remembers"
                );
            }
        }
    }

    /// Stores a guard. Returns false if another process was first.
    pub(super) async fn swap(
        &self,
        cell: &CellName,
        expected: Option<Version>,
        mut next: Guard,
    ) -> Result<bool, StoreError> {
        match swap_cell(&*self.store, cell, expected, &mut next).await? {
            Swap::Swapped(version) => {
                self.remember(cell, Some(version), Some(next));
                Ok(true)
            }
            Swap::Conflict(_) => Ok(false),
        }
    }

    /// Notes what the cell holds. Returns how long this process has seen this version.
    fn remember(
        &self,
        cell: &CellName,
        version: Option<Version>,
        guard: Option<Guard>,
    ) -> Duration {
        let mut seen = lock(&self.seen);
        if let Some(seen) = &*seen
            && (&seen.cell, seen.version) == (cell, version)
        {
            return seen.since.elapsed();
        }
        if version.is_some() && guard.is_none() {
            warn!(cell = cell.name, "the store holds something in this cell that is no guard");
        }
        *seen = Some(SeenGuard { cell: cell.clone(), version, guard, since: Instant::now() });
        Duration::ZERO
    }
}

/// Decodes a guard. `None`: it is damaged, which is treated as lost. A guard of a newer release is
/// an error, because it must not be replaced.
fn decode(value: Bytes) -> Result<Option<Guard>, StoreError> {
    match Guard::decode(value.clone()) {
        Ok(guard) if guard.version > 0 => decode_cell(value).map(Some),
        Ok(_) | Err(_) => Ok(None),
    }
}
