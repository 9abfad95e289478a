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

    /// Reads the guard of an identity. If the store has lost a part of it, restores that first.
    pub(super) async fn observe(
        &self,
        identity: &HalfIdentity,
    ) -> Result<(Option<Version>, Observation), StoreError> {
        let cell = &identity.cell;
        let exclusive = self.store.exclusive();
        loop {
            let held = self.store.load(cell).await?;
            let version = held.as_ref().map(|held| held.version);
            if held.is_none()
                && let Some(guard) = self.earlier_guard(identity).await?
            {
                self.swap(cell, None, guard).await?;
                continue;
            }
            let guard = match held {
                Some(held) => decode(held.value)?,
                None => None,
            };
            let guard = guard.map(|guard| identity.renamed(guard));
            // An exclusive store cannot lose what this process has read from it.
            let remembered = match &*lock(&self.seen) {
                Some(seen) if seen.cell == *cell && !exclusive => seen.guard.clone(),
                _ => None,
            };
            let restored =
                remembered.and_then(|known| guard::merged(guard.as_ref(), &known, &self.settings));
            let Some(next) = restored else {
                let damaged = version.is_some() && guard.is_none();
                let lost = self.store.has_lost_cells() || damaged;
                let unchanged = self.remember(cell, version, guard.clone());
                return Ok((version, Observation { guard, lost, unchanged, exclusive }));
            };
            // On a conflict, the cell has changed since it was read, so it is read again.
            if self.swap(cell, version, next).await? {
                warn!(
                    cell = cell.name,
                    "the store had lost attempts to get a token, and this replica wrote back what \
                     it remembers. Find out whether an older copy of the store was put back"
                );
            }
        }
    }

    /// Returns the guard that earlier builds kept for a user, if there is one. Its count is at the
    /// limit if a part of it may be lost.
    async fn earlier_guard(&self, identity: &HalfIdentity) -> Result<Option<Guard>, StoreError> {
        let mut guards = Vec::new();
        for cell in &identity.earlier_cells {
            if let Some(held) = self.store.load(cell).await? {
                guards.push(decode(held.value)?.map(|guard| identity.renamed(guard)));
            }
        }
        Ok(guard::strictest(guards, self.store.has_lost_cells()))
    }

    /// Stores a guard. Returns false if another process changed the cell first.
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
            warn!(
                cell = cell.name,
                "the login guard in this cell is damaged and counts as lost; `status` says whether \
                 logins are stopped and what to do"
            );
        }
        *seen = Some(SeenGuard { cell: cell.clone(), version, guard, since: Instant::now() });
        Duration::ZERO
    }
}

/// Decodes a guard. Returns `None` if it is damaged; it counts as lost then. A guard of a newer
/// release is an error, because it must not be replaced.
fn decode(value: Bytes) -> Result<Option<Guard>, StoreError> {
    match Guard::decode(value.clone()) {
        Ok(guard) if guard.version > 0 => decode_cell(value).map(Some),
        Ok(_) | Err(_) => Ok(None),
    }
}
