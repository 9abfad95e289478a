//! The record: a small file beside the store with its epoch and its last commit.
//!
//! At the next start it shows whether the store is missing, is another store, or is an older copy.
//! It is written after the commit, so that it is never ahead of its store.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{file, tables::Tail};
use crate::config::record_path;

/// The format of the record. Increased by each change that an older gateway cannot read.
const VERSION: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    pub(super) epoch: u64,
    pub(super) commit: u64,
    pub(super) sequence: u64,
}

/// The result of looking for a record.
#[derive(Debug)]
pub(super) enum FoundRecord {
    None,
    Record(Record),
    /// The record cannot be used, for this reason.
    Unreadable(String),
}

impl Record {
    pub(super) fn of(epoch: u64, tail: &Tail) -> Self {
        Self { version: VERSION, epoch, commit: tail.commit, sequence: tail.sequence }
    }

    pub(super) fn find(store: &Path) -> FoundRecord {
        match fs::read(record_path(store)) {
            Ok(bytes) => match serde_json::from_slice::<Self>(&bytes) {
                Ok(record) if record.version == VERSION => FoundRecord::Record(record),
                Ok(newer) => FoundRecord::Unreadable(format!("its version is {}", newer.version)),
                Err(error) => FoundRecord::Unreadable(error.to_string()),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => FoundRecord::None,
            Err(error) => FoundRecord::Unreadable(error.to_string()),
        }
    }

    /// Replaces the record in one step.
    pub(super) fn write(&self, store: &Path) -> io::Result<()> {
        let mut new = file::temporary(".record-", store)?;
        new.write_all(&serde_json::to_vec(self)?)?;
        new.as_file().sync_all()?;
        new.persist(record_path(store)).map_err(|error| error.error)?;
        file::sync_folder(store)
    }
}
