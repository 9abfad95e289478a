//! The store of a single gateway: one [redb] file, written by one thread.
//!
//! Acknowledged events are on disk, and concurrent appends share one sync. The file is locked, so
//! no other process uses it. After an I/O error the file is reopened until that works (see
//! `committer`). When the disk is full, writes are refused and reads work (see `committer::space`).
//! While the file is missing, replaced or an older copy (see `loss`), every call is refused until
//! the file is back or an operator accepts the loss. Events and cells expire by running time (see
//! `ages`), so a wrong wall clock removes nothing. No position is used twice.

mod ages;
mod batch;
mod clock;
mod committer;
mod error;
mod file;
mod follower;
mod loss;
mod probe;
mod record;
mod restore;
mod retention;
mod tables;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    fs::{self, File},
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

pub(crate) use self::probe::probe;
pub use self::restore::{Restored, restore};
use self::{
    ages::Ages,
    batch::{Job, PendingAnswer},
    error::{caught, explain, store_error},
    file::Medium,
    loss::{LossKind, find_loss},
    tables::{StoreIdentity, StoredState},
};
use super::{
    CellName, Entry, Followed, IN_FLIGHT_BYTES, LogName, Loss, Position, Store, StoreError,
    StoreMeasures, Swap, Version, Versioned, reserve,
};
use crate::{
    config::folder_of,
    lock::{self, lock},
};

/// The store in one file.
pub struct Embedded {
    path: PathBuf,
    shared: Arc<EmbeddedShared>,
}

/// What the handle, readers, followers and the committer share.
struct EmbeddedShared {
    /// `None` after the store was closed. The committer then ends when the queue is empty.
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    /// Bounds the jobs that wait for the committer, and so the size of a commit.
    room: Arc<Semaphore>,
    /// Absent while the file is reopened, and after the store was closed.
    database: RwLock<Option<Database>>,
    state: Mutex<EmbeddedState>,
    ages: Mutex<Ages>,
    /// The sequence of the last event. The channel closes when the committer ends.
    end: watch::Receiver<u64>,
}

struct EmbeddedState {
    /// Why the last write failed, until one succeeds.
    failure: Option<String>,
    loss: Option<(LossKind, Loss)>,
    shortage: Option<String>,
    /// Why the record cannot be written.
    unprotected: Option<String>,
    identity: StoreIdentity,
}

/// The store's file.
struct StoreFile {
    path: PathBuf,
    medium: Medium,
    /// Can read the file even after it was deleted or renamed.
    handle: File,
}

impl Embedded {
    /// Opens the file, or creates it with mode 0600. Events and retained cells are removed after
    /// `retention` of running time ([`ages`]).
    ///
    /// Blocks while the file is repaired after a crash (about a second per GB), and while it is
    /// compacted if most of it is free.
    pub fn open(path: &Path, retention: Duration) -> Result<Self, StoreError> {
        let medium = Medium::at(path);
        let opened = file::create(path).and_then(|()| file::compact(path, &medium.open));
        opened.map_err(|error| explain(path, &error))?;
        Self::open_with(path, retention, medium)
    }

    fn open_with(path: &Path, retention: Duration, medium: Medium) -> Result<Self, StoreError> {
        let (database, handle, stored) = caught(|| {
            let (database, handle) = ((medium.open)()?, File::open(path)?);
            let stored = tables::load_state(&database)?;
            Ok((database, handle, stored))
        })
        .map_err(|error| explain(path, &error))?;
        let StoredState { identity, tail, ages } = stored;
        let loss = find_loss(path, &identity, &tail);
        let (queue, jobs) = mpsc::channel();
        let (publish, end) = watch::channel(tail.sequence);
        let shared = Arc::new(EmbeddedShared {
            queue: Mutex::new(Some(queue)),
            room: Arc::new(Semaphore::new(IN_FLIGHT_BYTES)),
            database: RwLock::new(Some(database)),
            state: Mutex::new(EmbeddedState {
                failure: None,
                loss,
                shortage: None,
                unprotected: None,
                identity,
            }),
            ages: Mutex::new(ages),
            end,
        });
        let file = StoreFile { path: path.to_owned(), medium, handle };
        committer::start(Arc::clone(&shared), jobs, publish, file, tail, retention)
            .map_err(|error| StoreError::Unavailable(format!("cannot start a thread: {error}")))?;
        Ok(Self { path: path.to_owned(), shared })
    }

    /// Queues a job and waits for its answer.
    async fn execute<T>(
        &self,
        bytes: usize,
        job: impl FnOnce(PendingAnswer<T>, OwnedSemaphorePermit) -> Job,
    ) -> Result<T, StoreError> {
        let room = reserve(&self.shared.room, bytes).await?;
        self.shared.check_loss()?;
        let (answer, answered) = oneshot::channel();
        self.shared.send(job(PendingAnswer::new(answer), room))?;
        answered.await.unwrap_or_else(|_| Err(committer_ended()))
    }
}

#[async_trait]
impl Store for Embedded {
    async fn append(&self, log: &LogName, id: Uuid, event: Bytes) -> Result<Position, StoreError> {
        let log = log.encode();
        self.execute(event.len(), |answer, room| Job::Append { log, id, event, answer, room }).await
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
        self.execute(value.len(), |answer, room| Job::Swap { cell, expected, value, answer, room })
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
        self.shared.send(Job::Accept { restored, answer })?;
        answered.await.unwrap_or_else(|_| Err(committer_ended()))
    }

    fn has_lost_cells(&self) -> bool {
        self.shared.state().identity.lost_cells
    }

    fn remembers_since(&self) -> Option<Timestamp> {
        self.shared.state().identity.since
    }

    fn shortage(&self) -> Option<String> {
        self.shared.state().shortage.clone()
    }

    fn unprotected(&self) -> Option<String> {
        self.shared.state().unprotected.clone()
    }

    fn measures(&self) -> StoreMeasures {
        let end = Position { epoch: self.shared.epoch(), sequence: *self.shared.end.borrow() };
        StoreMeasures {
            end: Some(end),
            size: fs::metadata(&self.path).ok().map(|file| file.len()),
            room: file::free(folder_of(&self.path)).ok(),
            connections: Vec::new(),
        }
    }

    fn age(&self, position: Position, _: Timestamp) -> Duration {
        // Sequences of different epochs cannot be compared.
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
    /// Lets the committer finish the queued jobs and release the file, as [`Store::close`] does.
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

impl EmbeddedShared {
    fn send(&self, job: Job) -> Result<(), StoreError> {
        let queue = lock(&self.queue);
        queue.as_ref().and_then(|queue| queue.send(job).ok()).ok_or_else(StoreError::closed)
    }

    fn end_queue(&self) {
        lock(&self.queue).take();
    }

    /// Reads committed rows, on a thread that may block.
    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.check_loss()?;
        let shared = Arc::clone(self);
        let reading = task::spawn_blocking(move || {
            let txn = {
                let database = lock::read(&shared.database);
                let Some(database) = database.as_ref() else {
                    return Err(StoreError::Unavailable("its file is not open".into()));
                };
                caught(|| Ok(database.begin_read()?))
            };
            txn.and_then(|txn| caught(|| read(&txn))).map_err(|error| {
                if matches!(error, redb::Error::Io(_) | redb::Error::PreviousIo) {
                    // Otherwise the committer would notice the error only at the next append.
                    let _ = shared.send(Job::Check);
                }
                store_error(&error)
            })
        });
        reading.await.unwrap_or_else(|error| Err(StoreError::unavailable(error)))
    }

    fn begin_write(&self) -> Result<WriteTransaction, redb::Error> {
        let database = lock::read(&self.database);
        Ok(database.as_ref().ok_or(redb::Error::DatabaseClosed)?.begin_write()?)
    }

    fn state(&self) -> MutexGuard<'_, EmbeddedState> {
        lock(&self.state)
    }

    fn epoch(&self) -> u64 {
        self.state().identity.epoch
    }

    /// Fails while the store lacks something.
    fn check_loss(&self) -> Result<(), StoreError> {
        match &self.state().loss {
            Some((_, loss)) => Err(StoreError::Unavailable(loss.what.clone())),
            None => Ok(()),
        }
    }

    fn ages(&self) -> MutexGuard<'_, Ages> {
        lock(&self.ages)
    }

    /// Sets why the last write failed (`None`: it did not), and returns the previous value.
    fn set_failure(&self, failure: Option<String>) -> Option<String> {
        std::mem::replace(&mut self.state().failure, failure)
    }

    fn put_database(&self, database: Option<Database>) -> Option<Database> {
        let mut slot = lock::write(&self.database);
        std::mem::replace(&mut *slot, database)
    }

    /// Closes the file and releases its lock. Transactions that still read it fail from now on.
    fn drop_database(&self) {
        if let Some(database) = self.put_database(None) {
            // The lock is released even if this fails.
            let _ = caught(|| Ok(database.close()?));
        }
    }
}

fn committer_ended() -> StoreError {
    StoreError::UnknownOutcome("the thread that writes the file has ended".into())
}
