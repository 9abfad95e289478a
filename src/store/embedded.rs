//! The store of a single replica: one [redb] file, written by one thread.
//!
//! Guarantees: what was acknowledged is on disk; concurrent appends share one sync; the file is
//! locked, so no other process uses it; after an I/O error the file is reopened until it works
//! again, and what was under way is looked up in it, so that an answer is ambiguous only if that
//! takes longer than `SETTLE_WITHIN` (2 s). Never keeps a read transaction while waiting, never
//! re-uses a position, never panics because redb did.
//!
//! On a full disk, writes are refused before they touch the disk, and reads go on. A file that is
//! removed or replaced under the store, that is missing at the start, or that was put back to an
//! older copy is noticed with the help of the record beside it. Then everything is refused until
//! the file is back or an operator accepts the loss. No wall clock decides what is removed: age is
//! running time.

mod ages;
mod batch;
mod clock;
mod committer;
mod file;
mod follower;
mod loss;
mod record;
mod restore;
mod retention;
mod tables;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    fs::File,
    panic,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, RwLock, mpsc},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use redb::{Database, ReadTransaction, ReadableDatabase, WriteTransaction};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch},
    task,
};
use uuid::Uuid;

pub use self::restore::{Restored, restore};
use self::{
    ages::Ages,
    batch::{Answer, Command},
    file::Medium,
    loss::Kind,
    record::{Found, Record},
    tables::{Entered, Incarnation, Tail},
};
use super::{
    CellName, Entry, Followed, LogName, Loss, MAX_EVENT_BYTES, Position, Store, StoreError, Swap,
    Version, Versioned,
};
use crate::{
    config::record_path,
    lock::{self, lock},
};

/// How much may wait for the committer, in bytes; callers beyond it wait for room. It bounds a
/// commit, too.
const QUEUE_BYTES: usize = 16 * 1024 * 1024;

/// What a command costs of [`QUEUE_BYTES`] beside its value: at most 4,096 wait.
const COMMAND_BYTES: usize = 4 * 1024;

/// See the module's documentation.
pub struct Embedded {
    path: PathBuf,
    shared: Arc<Shared>,
}

/// What the handle, its readers and followers, and the committer have in common.
struct Shared {
    /// Taken when the store is closed; the committer ends when it has emptied what was sent.
    queue: Mutex<Option<mpsc::Sender<Command>>>,
    room: Arc<Semaphore>,
    /// Absent while it is being reopened, and after the end.
    database: RwLock<Option<Database>>,
    state: Mutex<State>,
    ages: Mutex<Ages>,
    /// The sequence of the last event. Closed when the store is.
    end: watch::Receiver<u64>,
}

/// How the store is doing.
struct State {
    /// Why the last write failed, until one succeeds.
    failure: Option<String>,
    loss: Option<(Kind, Loss)>,
    shortage: Option<String>,
    /// Why the record cannot be written.
    unprotected: Option<String>,
    incarnation: Incarnation,
}

/// The store's file.
struct StoreFile {
    path: PathBuf,
    medium: Medium,
    /// Leads to the file's contents also when its name is gone.
    handle: File,
}

/// Compares a store that has just been opened with what its record says, and reports what is lost.
fn find_loss(path: &Path, incarnation: &Incarnation, tail: &Tail) -> Option<(Kind, Loss)> {
    let found = Record::find(path);
    let record = record_path(path);
    if let Found::Unreadable(reason) = &found {
        tracing::warn!(path = %record.display(), reason, "the record of the store cannot be read");
    }
    let Some(kind) = Kind::at_start(&found, incarnation.epoch, tail, incarnation.recorded) else {
        if tail.commit == 0 && matches!(found, Found::None) {
            tracing::warn!(
                path = %path.display(),
                "this is a new store: idempotency keys of earlier orders, if there were any, are unknown"
            );
        }
        return None;
    };
    Some((kind, report(kind, path)))
}

/// Reports a loss, once.
fn report(kind: Kind, path: &Path) -> Loss {
    let what = kind.sentence(path);
    tracing::error!(
        loss = what,
        "the store has forgotten something; every call is refused until the file is put back, or until \
         an operator runs `thingspace-gateway store accept-loss`"
    );
    Loss { what, noticed: Timestamp::now() }
}

impl Embedded {
    /// Opens the file, or creates it for this user only. Events, and cells that are
    /// [`Retained`](super::CellLife::Retained), are removed after `retention`, in running time
    /// ([`ages`]).
    ///
    /// Blocks: on the repair after a crash (about a second per GB), and on compaction where most of
    /// the file is free.
    pub fn open(path: &Path, retention: Duration) -> Result<Self, StoreError> {
        let medium = Medium::at(path);
        let opened = file::create(path).and_then(|()| file::compact(path, &medium.open));
        opened.map_err(|error| file::explain(path, error))?;
        Self::open_with(path, retention, medium)
    }

    fn open_with(path: &Path, retention: Duration, medium: Medium) -> Result<Self, StoreError> {
        let (database, handle, entered) = caught(|| {
            let database = (medium.open)()?;
            let handle = File::open(path)?;
            let entered = tables::enter(&database)?;
            Ok((database, handle, entered))
        })
        .map_err(|error| file::explain(path, error))?;

        let Entered { incarnation, tail, ages } = entered;
        let loss = find_loss(path, &incarnation, &tail);
        let (queue, commands) = mpsc::channel();
        let (publish, end) = watch::channel(tail.sequence);
        let shared = Arc::new(Shared {
            queue: Mutex::new(Some(queue)),
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
            database: RwLock::new(Some(database)),
            state: Mutex::new(State {
                failure: None,
                loss,
                shortage: None,
                unprotected: None,
                incarnation,
            }),
            ages: Mutex::new(ages),
            end,
        });
        let file = StoreFile { path: path.to_owned(), medium, handle };
        committer::start(Arc::clone(&shared), commands, publish, file, tail, retention)
            .map_err(|error| StoreError::Unavailable(format!("cannot start a thread: {error}")))?;
        Ok(Self { path: path.to_owned(), shared })
    }

    /// Hands a command to the committer and waits for its answer.
    async fn ask<T>(
        &self,
        bytes: usize,
        command: impl FnOnce(Answer<T>, OwnedSemaphorePermit) -> Command,
    ) -> Result<T, StoreError> {
        if bytes > MAX_EVENT_BYTES {
            return Err(StoreError::TooLarge(bytes));
        }
        self.shared.check_loss()?;
        let permits = u32::try_from(bytes + COMMAND_BYTES).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.shared.room)
            .acquire_many_owned(permits)
            .await
            .map_err(|_| closed())?;
        let (answer, answered) = oneshot::channel();
        self.shared.send(command(Answer::new(answer), room))?;
        answered.await.unwrap_or_else(|_| Err(StoreError::Ambiguous("the committer ended".into())))
    }
}

#[async_trait]
impl Store for Embedded {
    async fn append(&self, log: &LogName, id: Uuid, event: Bytes) -> Result<Position, StoreError> {
        let log = log.encode();
        self.ask(event.len(), |answer, room| Command::Append { log, id, event, answer, room }).await
    }

    async fn read(
        &self,
        log: &LogName,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let (log, epoch) = (log.encode(), self.shared.epoch());
        self.shared.read(move |txn| tables::read_log(txn, epoch, &log, after, limit)).await
    }

    fn follow(&self, after: Option<Position>) -> BoxStream<'static, Followed> {
        follower::follow(Arc::clone(&self.shared), after)
    }

    async fn load(&self, cell: &CellName) -> Result<Option<Versioned>, StoreError> {
        let cell = cell.clone();
        self.shared.read(move |txn| tables::load_cell(txn, &cell)).await
    }

    async fn swap(
        &self,
        cell: &CellName,
        expected: Option<Version>,
        value: Bytes,
    ) -> Result<Swap, StoreError> {
        let cell = cell.clone();
        self.ask(value.len(), |answer, room| Command::Swap { cell, expected, value, answer, room })
            .await
    }

    fn exclusive(&self) -> bool {
        true
    }

    fn trouble(&self) -> Option<String> {
        let state = self.shared.state();
        state.failure.as_ref().map(|failure| format!("the last write failed: {failure}"))
    }

    fn loss(&self) -> Option<Loss> {
        self.shared.state().loss.as_ref().map(|(_, loss)| loss.clone())
    }

    async fn accept_loss(&self, restored: bool) -> Result<Option<Loss>, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.shared.send(Command::Accept { restored, answer })?;
        answered.await.unwrap_or_else(|_| Err(StoreError::Ambiguous("the committer ended".into())))
    }

    fn has_lost_cells(&self) -> bool {
        self.shared.state().incarnation.lost_cells
    }

    fn remembers_since(&self) -> Option<Timestamp> {
        self.shared.state().incarnation.since
    }

    fn shortage(&self) -> Option<String> {
        self.shared.state().shortage.clone()
    }

    fn unprotected(&self) -> Option<String> {
        self.shared.state().unprotected.clone()
    }

    fn age(&self, position: Position, _: Timestamp) -> Duration {
        // A position of another epoch says nothing about this store's time.
        if position.epoch == self.shared.epoch() {
            self.shared.ages().age(position.sequence)
        } else {
            Duration::ZERO
        }
    }

    async fn close(&self) {
        self.shared.end_queue();
        let mut end = self.shared.end.clone();
        while end.changed().await.is_ok() {}
    }
}

impl Drop for Embedded {
    /// Without [`Store::close`], the committer finishes what is queued and releases the file soon
    /// afterwards.
    fn drop(&mut self) {
        self.shared.end_queue();
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, shared } = self;
        f.debug_struct("Embedded")
            .field("path", path)
            .field("epoch", &shared.epoch())
            .field("end", &*shared.end.borrow())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn send(&self, command: Command) -> Result<(), StoreError> {
        let queue = lock(&self.queue);
        queue.as_ref().and_then(|queue| queue.send(command).ok()).ok_or_else(closed)
    }

    fn end_queue(&self) {
        lock(&self.queue).take();
    }

    /// Reads what is committed, on a thread that may block.
    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.check_loss()?;
        let shared = Arc::clone(self);
        let done = task::spawn_blocking(move || {
            let txn = {
                let database = lock::read(&shared.database);
                let Some(database) = database.as_ref() else {
                    return Err(StoreError::Unavailable("its file is not open".into()));
                };
                caught(|| Ok(database.begin_read()?))
            };
            txn.and_then(|txn| caught(|| read(&txn))).map_err(|error| {
                if matches!(error, redb::Error::Io(_) | redb::Error::PreviousIo) {
                    // The committer would find out with the next append only.
                    let _ = shared.send(Command::Check);
                }
                store_error(&error)
            })
        });
        done.await.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
    }

    fn begin_write(&self) -> Result<WriteTransaction, redb::Error> {
        let database = lock::read(&self.database);
        Ok(database.as_ref().ok_or(redb::Error::DatabaseClosed)?.begin_write()?)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn epoch(&self) -> u64 {
        self.state().incarnation.epoch
    }

    /// Refuses everything while something is lost.
    fn check_loss(&self) -> Result<(), StoreError> {
        match &self.state().loss {
            Some((_, loss)) => Err(StoreError::Unavailable(loss.what.clone())),
            None => Ok(()),
        }
    }

    fn ages(&self) -> MutexGuard<'_, Ages> {
        lock(&self.ages)
    }

    /// How the last write ended; returns how the one before did.
    fn wrote(&self, failure: Option<String>) -> Option<String> {
        std::mem::replace(&mut self.state().failure, failure)
    }

    fn put_database(&self, database: Option<Database>) -> Option<Database> {
        let mut slot = lock::write(&self.database);
        std::mem::replace(&mut *slot, database)
    }

    /// Closes the file and releases its lock; transactions that still read it fail from here.
    fn drop_database(&self) {
        if let Some(database) = self.put_database(None) {
            // After a failure it says so again; what matters is that the lock is released.
            let _ = caught(|| Ok(database.close()?));
        }
    }
}

fn closed() -> StoreError {
    StoreError::Unavailable("it was closed".into())
}

/// redb asserts what a damaged file can break; a panic of its must not end the thread.
fn caught<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
    panic::catch_unwind(panic::AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(redb::Error::Corrupted("redb panicked".into())))
}

/// What an error that certainly stored nothing means to a caller.
fn store_error(error: &redb::Error) -> StoreError {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match error {
        redb::Error::Io(io) if matches!(io.kind(), StorageFull | QuotaExceeded | FileTooLarge) => {
            StoreError::Full(io.to_string())
        }
        redb::Error::Io(_)
        | redb::Error::PreviousIo
        | redb::Error::DatabaseClosed
        | redb::Error::DatabaseAlreadyOpen => StoreError::Unavailable(error.to_string()),
        _ => StoreError::Corrupt(error.to_string()),
    }
}
