//! Replaces the store by a backup while no gateway runs.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{
    StoreError, caught,
    error::{explain, is_locked},
    file,
    record::Record,
    tables::{self, StoreIdentity},
};

/// The suffix of the file that a backup replaces.
const REPLACED: &str = ".replaced";

/// The outcome of [`restore`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The sequence of the backup's last event.
    pub sequence: u64,
    /// The path of the file that the backup replaced.
    pub replaced: Option<PathBuf>,
}

/// Replaces a store by a copy of a backup, as a new epoch. The former file is kept beside it. Fails
/// while another process has the store open.
pub fn restore(backup: &Path, store: &Path) -> Result<Restored, StoreError> {
    if is_same(backup, store) {
        return Err(StoreError::Unavailable("the backup is the store itself".to_owned()));
    }
    // The store stays locked until this function returns. A file that is missing or damaged is not
    // locked, and is replaced.
    let _locked = match caught(|| file::open(store)) {
        Err(error) if is_locked(&error) => return Err(explain(store, &error)),
        opened => opened.ok(),
    };
    let backup_error = |error: redb::Error| explain(backup, &error);
    let store_error = |error: io::Error| explain(store, &error.into());
    let copy = File::open(backup).and_then(|backup| file::copy_beside(&backup, ".restore-", store));
    let copy = copy.map_err(|error| backup_error(error.into()))?;
    let (record, sequence) = caught(|| begin(copy.path())).map_err(backup_error)?;
    let replaced = put_in_place(copy, store).map_err(store_error)?;
    record.write(store).map_err(store_error)?;
    Ok(Restored { sequence, replaced })
}

fn is_same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// Begins a new epoch in the copy of a backup, because its counts and keys may be out of date.
fn begin(copy: &Path) -> Result<(Record, u64), redb::Error> {
    let database = file::open(copy)?;
    let mut tail = tables::load_state(&database)?.tail;
    let txn = database.begin_write()?;
    let identity = StoreIdentity::begin(&txn)?;
    tail.commit += 1;
    tail.save(&txn)?;
    txn.commit()?;
    database.close()?;
    Ok((Record::of(identity.epoch, &tail), tail.sequence))
}

/// Returns an unused name for the replaced file.
fn unused(store: &Path) -> PathBuf {
    let numbered = |n: u32| {
        let number = if n == 1 { String::new() } else { format!(".{n}") };
        let mut name = store.to_owned().into_os_string();
        name.push(format!("{REPLACED}{number}"));
        PathBuf::from(name)
    };
    let is_free = |path: &PathBuf| path.symlink_metadata().is_err();
    (1..=u32::MAX).map(numbered).find(is_free).expect("there is a number that no file has")
}

fn put_in_place(copy: tempfile::NamedTempFile, store: &Path) -> io::Result<Option<PathBuf>> {
    let replaced = unused(store);
    let replaced = match fs::rename(store, &replaced) {
        Ok(()) => Some(replaced),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    copy.persist_noclobber(store).map_err(|error| error.error)?;
    file::sync_folder(store)?;
    Ok(replaced)
}
