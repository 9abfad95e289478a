//! The cells that hold guards, with a memory: a guard that the store forgets is written back.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use prost::Message;
use tokio::time::Instant;
use tracing::warn;

use super::guard::{self, Look, Terms};
use super::{lock, secrets::Identity};
use crate::{
    proto::storage::Guard,
    store::{CellName, Store, StoreError, Swap, Version, decode_cell, swap_cell},
};

#[derive(Debug)]
pub(super) struct GuardCells {
    store: Arc<dyn Store>,
    terms: Terms,
    seen: Mutex<Option<Seen>>,
}

/// What a cell held when this process looked last, and since when.
#[derive(Debug)]
struct Seen {
    cell: CellName,
    version: Option<Version>,
    guard: Option<Guard>,
    since: Instant,
}

/// What a cell holds.
pub(super) struct Looked {
    pub(super) version: Option<Version>,
    pub(super) guard: Option<Guard>,
    /// For how long it has been seen so.
    unchanged: Duration,
}

impl Looked {
    /// The cell holds something that is no guard.
    fn is_damaged(&self) -> bool {
        self.version.is_some() && self.guard.is_none()
    }
}

impl GuardCells {
    pub(super) fn new(store: Arc<dyn Store>, terms: Terms) -> Self {
        Self { store, terms, seen: Mutex::default() }
    }

    /// No other process can use the store.
    pub(super) fn are_exclusive(&self) -> bool {
        self.store.exclusive()
    }

    /// What the cell of a name holds. If the store has forgotten something, it is written back
    /// first.
    pub(super) async fn look(&self, identity: &Identity) -> Result<Looked, StoreError> {
        let cell = &identity.cell;
        loop {
            let held = self.store.load(cell).await?;
            let version = held.as_ref().map(|held| held.version);
            let guard = match held {
                Some(held) => readable(held.value)?,
                None => None,
            };
            let guard = guard.map(|guard| identity.renamed(guard));
            let known = self.remembered(cell);
            let forgotten =
                known.and_then(|known| guard::merged(guard.as_ref(), &known, &self.terms));
            let Some(next) = forgotten else {
                let unchanged = self.see(cell, version, guard.clone());
                return Ok(Looked { version, guard, unchanged });
            };
            // If it fails, the cell was changed after it was read, and nothing was forgotten.
            if self.swap(cell, version, next).await? {
                warn!(
                    cell = cell.name,
                    "the store had forgotten attempts to get a token; what this gateway remembers of them is written back"
                );
            }
        }
    }

    pub(super) fn as_look<'a>(&self, looked: &'a Looked) -> Look<'a> {
        Look {
            guard: looked.guard.as_ref(),
            lost: self.store.has_lost_cells() || looked.is_damaged(),
            unchanged: looked.unchanged,
            exclusive: self.store.exclusive(),
        }
    }

    /// False: another process was first.
    pub(super) async fn swap(
        &self,
        cell: &CellName,
        expected: Option<Version>,
        mut next: Guard,
    ) -> Result<bool, StoreError> {
        match swap_cell(&*self.store, cell, expected, &mut next).await? {
            Swap::Swapped(version) => {
                self.see(cell, Some(version), Some(next));
                Ok(true)
            }
            Swap::Conflict(_) => Ok(false),
        }
    }

    /// What this process knows of a guard. Nothing of a store that no other process uses: it was
    /// read from that very store, which may have been a backup.
    fn remembered(&self, cell: &CellName) -> Option<Guard> {
        if self.are_exclusive() {
            return None;
        }
        let seen = lock(&self.seen);
        seen.as_ref().filter(|seen| seen.cell == *cell).and_then(|seen| seen.guard.clone())
    }

    fn see(&self, cell: &CellName, version: Option<Version>, guard: Option<Guard>) -> Duration {
        let mut seen = lock(&self.seen);
        match &*seen {
            Some(Seen { cell: of, version: at, since, .. }) if of == cell && *at == version => {
                since.elapsed()
            }
            _ => {
                if version.is_some() && guard.is_none() {
                    warn!(
                        cell = cell.name,
                        "the store holds something in this cell that is no guard"
                    );
                }
                let since = Instant::now();
                *seen = Some(Seen { cell: cell.clone(), version, guard, since });
                Duration::ZERO
            }
        }
    }
}

/// The guard in a cell. `None`: it is damaged, which is as good as lost. A guard of a newer release
/// is an error, because it must not be replaced.
fn readable(value: Bytes) -> Result<Option<Guard>, StoreError> {
    match Guard::decode(value.clone()) {
        Ok(guard) if guard.version > 0 => decode_cell(value).map(Some),
        Ok(_) | Err(_) => Ok(None),
    }
}
