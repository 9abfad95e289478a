//! Converts errors of redb to [`StoreError`]s.

use std::{io, panic, path::Path};

use crate::store::StoreError;

pub(super) fn corrupt(what: impl Into<String>) -> redb::Error {
    redb::Error::Corrupted(what.into())
}

/// Turns a panic into an error: redb panics on some damaged files, which must not end the thread.
pub(super) fn caught<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
    panic::catch_unwind(panic::AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(corrupt("redb panicked")))
}

/// Converts an error after which certainly nothing is stored.
pub(super) fn store_error(error: &redb::Error) -> StoreError {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match error {
        redb::Error::Io(io) if matches!(io.kind(), StorageFull | QuotaExceeded | FileTooLarge) => {
            StoreError::Full(io.to_string())
        }
        redb::Error::Io(_)
        | redb::Error::PreviousIo
        | redb::Error::DatabaseClosed
        | redb::Error::DatabaseAlreadyOpen => StoreError::unavailable(error),
        _ => StoreError::Corrupt(error.to_string()),
    }
}

pub(super) fn is_locked(error: &redb::Error) -> bool {
    matches!(error, redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch)
}

/// Converts an error of opening a file, and names the file.
pub(super) fn explain(path: &Path, error: &redb::Error) -> StoreError {
    let path = path.display();
    if is_locked(error) {
        return StoreError::Unavailable(format!("{path} is locked; is another gateway using it?"));
    }
    match error {
        redb::Error::Io(io) if io.kind() == io::ErrorKind::InvalidData => {
            StoreError::Corrupt(format!("{path}: {io}"))
        }
        error => match store_error(error) {
            StoreError::Full(text) => StoreError::Full(format!("{path}: {text}")),
            StoreError::Corrupt(text) => StoreError::Corrupt(format!("{path}: {text}")),
            StoreError::Unavailable(text) => StoreError::Unavailable(format!("{path}: {text}")),
            other => other,
        },
    }
}
