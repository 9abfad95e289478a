//! Creates, opens, compacts and copies the file.
//!
//! A file gets its name only when it is complete, so that a crash leaves no broken file. Opening
//! never creates a file, so that a store that was removed is not replaced by an empty one.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek as _},
    path::Path,
};

use redb::{Database, ReadableDatabase as _, ReadableTableMetadata as _, backends::FileBackend};
use tempfile::NamedTempFile;

use super::{caught, tables};
use crate::config::folder_of;

/// The file and its disk, as functions that tests replace.
pub(super) struct Medium {
    pub(super) open: Box<dyn Fn() -> Result<Database, redb::Error> + Send>,
    /// Returns the bytes of the disk that are free for this user.
    pub(super) free: Box<dyn Fn() -> io::Result<u64> + Send>,
}

impl Medium {
    pub(super) fn at(path: &Path) -> Self {
        let (file, folder) = (path.to_owned(), folder_of(path).to_owned());
        Self { open: Box::new(move || open(&file)), free: Box::new(move || free(&folder)) }
    }
}

/// Returns the bytes of the disk that are free for this user.
pub(super) fn free(folder: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// The size of redb's cache, in bytes.
const CACHE_BYTES: usize = 32 * 1024 * 1024;

/// The size from which a file is compacted, in bytes.
const COMPACT_FROM: u64 = 16 * 1024 * 1024;

/// An upper bound of what a row takes beside its value, in bytes.
const ROW_BYTES: u64 = 512;

/// Creates the file, if there is none yet.
pub(super) fn create(path: &Path) -> Result<(), redb::Error> {
    if path.try_exists()? {
        return Ok(());
    }
    let new = temporary(".store-", path)?;
    caught(|| tables::initialise(&open_database(new.reopen()?)?))?;
    match new.persist_noclobber(path) {
        Ok(_) => Ok(sync_folder(path)?),
        // Another process created the file first. That file is used.
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error.error.into()),
    }
}

/// Copies the open file, which was removed, to its former path.
pub(super) fn put_back(mut file: &File, path: &Path) -> io::Result<()> {
    file.rewind()?;
    let copy = copy_beside(file, ".store-", path)?;
    copy.persist_noclobber(path).map_err(|error| error.error)?;
    sync_folder(path)
}

/// Copies a file into a temporary one beside `path`, and syncs it.
pub(super) fn copy_beside(mut from: &File, prefix: &str, path: &Path) -> io::Result<NamedTempFile> {
    let mut copy = temporary(prefix, path)?;
    io::copy(&mut from, copy.as_file_mut())?;
    copy.as_file().sync_all()?;
    Ok(copy)
}

/// Creates a temporary file beside `path`, with mode 0600.
pub(super) fn temporary(prefix: &str, path: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(prefix).suffix(".new").tempfile_in(folder_of(path))
}

/// Makes the names in the folder of `path` durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// Opens and locks an existing file. Repairs it if it was not closed.
pub(super) fn open(path: &Path) -> Result<Database, redb::Error> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    // After a failed sync, the page cache may hold what is not on disk. This drops the cache.
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).map_err(io::Error::from)?;
    open_database(file)
}

fn open_database(file: File) -> Result<Database, redb::Error> {
    Ok(Database::builder()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(FileBackend::new(file)?)?)
}

/// Compacts the file if less than about half of it is in use.
pub(super) fn compact(
    path: &Path,
    opener: &impl Fn() -> Result<Database, redb::Error>,
) -> Result<(), redb::Error> {
    let length = path.metadata()?.len();
    if length < COMPACT_FROM {
        return Ok(());
    }
    caught(|| {
        let mut database = opener()?;
        let used = {
            let tail = tables::load_state(&database)?.tail;
            let txn = database.begin_read()?;
            let rows = txn.open_table(tables::EVENTS)?.len()?
                + 2 * txn.open_table(tables::CELLS)?.len()?;
            tail.bytes + rows * ROW_BYTES
        };
        if used < length / 2 {
            // The store opens the file next, which shows whether it is still usable.
            if let Err(error) = database.compact() {
                tracing::warn!(%error, "could not compact the store; the next start tries again");
            }
        }
        Ok(())
    })
}
