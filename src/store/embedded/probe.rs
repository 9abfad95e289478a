//! Size and room of the file, and whether it can be read. For `doctor`. Changes nothing.

use std::path::Path;

use redb::{DatabaseError, ReadOnlyDatabase};

use super::{committer::reserve, file};

/// What was found at the path of the store.
#[derive(Debug)]
pub(crate) struct EmbeddedProbe {
    pub(crate) bytes: u64,
    /// The bytes of the disk that are free for this user.
    pub(crate) free: u64,
    /// The bytes of the disk that are kept for known orders.
    pub(crate) reserve: u64,
}

/// Returns `None` if there is no file. `open`: tries to read it, which fails while a gateway uses
/// it.
pub(crate) fn probe(path: &Path, open: bool) -> Result<Option<EmbeddedProbe>, String> {
    let cannot = |error: &dyn std::fmt::Display| format!("it cannot be read: {error}");
    if !path.try_exists().map_err(|error| cannot(&error))? {
        return Ok(None);
    }
    let bytes = path.metadata().map_err(|error| cannot(&error))?.len();
    if open {
        match ReadOnlyDatabase::open(path) {
            // The gateway repairs a file that was not closed when it opens it.
            Ok(_) | Err(DatabaseError::RepairAborted) => {}
            Err(error) => return Err(cannot(&error)),
        }
    }
    let free = (file::Medium::at(path).free)();
    let free = free.map_err(|error| format!("the free space of its disk is not known: {error}"))?;
    Ok(Some(EmbeddedProbe { bytes, free, reserve: reserve(bytes) }))
}
