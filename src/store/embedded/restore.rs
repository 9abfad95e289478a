//! Puts a backup in the place of the store while no gateway runs.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{
    StoreError, caught,
    file::{self, explain, folder},
    record::Record,
    tables::{self, Incarnation},
};

/// What is appended to the name of the file that a backup replaces.
const REPLACED: &str = ".replaced";

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The last event that the backup knows.
    pub sequence: u64,
    /// Where the file is that the backup replaced.
    pub replaced: Option<PathBuf>,
}

/// Copies a backup into the place of a store, as a new epoch of it. The former file is kept beside
/// it. Refuses while another process has the store open.
pub fn restore(backup: &Path, store: &Path) -> Result<Restored, StoreError> {
    if is_same(backup, store) {
        return Err(StoreError::Unavailable("the backup is the store itself".to_owned()));
    }
    // Locked until the backup is in its place. A store that is damaged may be replaced.
    let _locked = match caught(|| file::open(store)) {
        Ok(database) => Some(database),
        Err(error @ (redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch)) => {
            return Err(explain(store, error));
        }
        Err(_) => None,
    };
    let copy = copied(backup, store).map_err(|error| explain(backup, error))?;
    let (record, sequence) =
        caught(|| begin(copy.path())).map_err(|error| explain(backup, error))?;
    let replaced = put_in_place(copy, store).map_err(|error| explain(store, error.into()))?;
    record.write(store).map_err(|error| explain(store, error.into()))?;
    Ok(Restored { sequence, replaced })
}

fn is_same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

fn copied(backup: &Path, store: &Path) -> Result<tempfile::NamedTempFile, redb::Error> {
    let mut from = File::open(backup)?;
    // Temporary files are made 0600.
    let mut copy =
        tempfile::Builder::new().prefix(".restore-").suffix(".new").tempfile_in(folder(store))?;
    io::copy(&mut from, copy.as_file_mut())?;
    copy.as_file().sync_all()?;
    Ok(copy)
}

/// Begins a new epoch in the copy of a backup, whose counts and keys may be out of date.
fn begin(copy: &Path) -> Result<(Record, u64), redb::Error> {
    let database = file::open(copy)?;
    let mut tail = tables::enter(&database)?.tail;
    let txn = database.begin_write()?;
    let incarnation = Incarnation::begin(&txn)?;
    tail.commit += 1;
    tail.save(&txn)?;
    txn.commit()?;
    database.close()?;
    Ok((Record::of(incarnation.epoch, &tail), tail.sequence))
}

/// A name for the file that is replaced. What an earlier command kept stays.
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
    File::open(folder(store))?.sync_all()?;
    Ok(replaced)
}
