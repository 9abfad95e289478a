//! The record: a small file beside the store that says which store it was and how far it went.
//!
//! A store that vanished, that is another one, or that was put back to an older copy can be
//! recognised by it at the next start. It is written after the commits that it speaks of, so it is
//! never ahead of the store that it belongs to.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::tables::Tail;
use crate::config::record_path;

/// Counts up with every change that an older gateway could not read.
const VERSION: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    pub(super) epoch: u64,
    pub(super) commit: u64,
    pub(super) sequence: u64,
}

/// What is found beside a store.
#[derive(Debug)]
pub(super) enum Found {
    None,
    Record(Record),
    /// There is one, and it cannot be used for this reason.
    Unreadable(String),
}

impl Record {
    pub(super) fn of(epoch: u64, tail: &Tail) -> Self {
        Self { version: VERSION, epoch, commit: tail.commit, sequence: tail.sequence }
    }

    pub(super) fn find(store: &Path) -> Found {
        match fs::read(record_path(store)) {
            Ok(bytes) => match serde_json::from_slice::<Self>(&bytes) {
                Ok(record) if record.version == VERSION => Found::Record(record),
                Ok(newer) => Found::Unreadable(format!("its version is {}", newer.version)),
                Err(error) => Found::Unreadable(error.to_string()),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Found::None,
            Err(error) => Found::Unreadable(error.to_string()),
        }
    }

    /// Replaces the record in one step. Only this user can read it.
    pub(super) fn write(&self, store: &Path) -> io::Result<()> {
        let folder = super::file::folder(store);
        let mut new =
            tempfile::Builder::new().prefix(".record-").suffix(".new").tempfile_in(folder)?;
        new.write_all(&serde_json::to_vec(self)?)?;
        new.as_file().sync_all()?;
        new.persist(record_path(store)).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    }
}
