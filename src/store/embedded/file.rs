//! The file itself: who may read it, how it comes into being, how it is opened.
//!
//! A file appears under its name only when it is complete, so that a crash in the middle leaves
//! nothing that cannot be opened; opening never creates one, so that a store that vanished while in
//! use is not taken for an empty one.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek as _},
    path::Path,
};

use redb::{Database, ReadableDatabase as _, ReadableTableMetadata as _, backends::FileBackend};

use super::{caught, store_error, tables};
use crate::store::StoreError;

/// How redb gets at an existing file.
pub(super) type Opener = Box<dyn Fn() -> Result<Database, redb::Error> + Send>;

/// How many bytes of the disk are free for this user.
pub(super) type Free = Box<dyn Fn() -> io::Result<u64> + Send>;

/// What the store is kept on.
pub(super) struct Medium {
    pub(super) open: Opener,
    pub(super) free: Free,
}

impl Medium {
    pub(super) fn at(path: &Path) -> Self {
        let (file, folder) = (path.to_owned(), folder(path).to_owned());
        Self { open: Box::new(move || open(&file)), free: Box::new(move || free(&folder)) }
    }
}

pub(super) fn free(folder: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// What redb may keep of the file in memory, in bytes.
const CACHE_BYTES: usize = 32 * 1024 * 1024;

/// A file smaller than this, in bytes, is not worth compacting.
const COMPACT_FROM: u64 = 16 * 1024 * 1024;

/// What a row takes beside its value, in bytes; an upper bound for small events.
const ROW_BYTES: u64 = 512;

/// Creates the file, if there is none yet.
pub(super) fn create(path: &Path) -> Result<(), redb::Error> {
    if path.try_exists()? {
        return Ok(());
    }
    let folder = folder(path);
    // Temporary files are made 0600.
    let new = tempfile::Builder::new().prefix(".store-").suffix(".new").tempfile_in(folder)?;
    caught(|| tables::initialise(&with(new.reopen()?)?))?;
    match new.persist_noclobber(path) {
        Ok(_) => Ok(File::open(folder)?.sync_all()?),
        // Another process was faster; its file it is.
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error.error.into()),
    }
}

/// Puts a copy of a file that is open, and was removed, in its old place.
pub(super) fn put_back(mut file: &File, path: &Path) -> io::Result<()> {
    let folder = folder(path);
    let mut copy = tempfile::Builder::new().prefix(".store-").suffix(".new").tempfile_in(folder)?;
    file.rewind()?;
    io::copy(&mut file, copy.as_file_mut())?;
    copy.as_file().sync_all()?;
    copy.persist_noclobber(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

/// The folder that a file is in.
pub(super) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Opens an existing file and locks it. Repairs it if it was not closed.
pub(super) fn open(path: &Path) -> Result<Database, redb::Error> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    // What a failed sync did not bring to disk may still be in the page cache, looking stored: read
    // the disk.
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).map_err(io::Error::from)?;
    with(file)
}

fn with(file: File) -> Result<Database, redb::Error> {
    Ok(Database::builder()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(FileBackend::new(file)?)?)
}

/// Gives the space back to the disk when less than about half of the file is in use.
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
            let tail = tables::enter(&database)?.tail;
            let txn = database.begin_read()?;
            let rows = txn.open_table(tables::EVENTS)?.len()?
                + 2 * txn.open_table(tables::CELLS)?.len()?;
            tail.bytes + rows * ROW_BYTES
        };
        if used < length / 2 {
            // It is only about space: a failure shows again, if it matters, when the file is opened
            // for use.
            if let Err(error) = database.compact() {
                tracing::warn!(%error, "could not compact the store");
            }
        }
        Ok(())
    })
}

/// An error of opening, in words for the operator.
pub(super) fn explain(path: &Path, error: redb::Error) -> StoreError {
    let path = path.display();
    match error {
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => {
            StoreError::Unavailable(format!("{path} is locked; is another gateway using it?"))
        }
        redb::Error::Io(io) if io.kind() == io::ErrorKind::InvalidData => {
            StoreError::Corrupt(format!("{path}: {io}"))
        }
        error => match store_error(&error) {
            StoreError::Unavailable(text) => StoreError::Unavailable(format!("{path}: {text}")),
            StoreError::Full(text) => StoreError::Full(format!("{path}: {text}")),
            StoreError::Corrupt(text) => StoreError::Corrupt(format!("{path}: {text}")),
            other => other,
        },
    }
}
