//! The one thread that writes. It takes what is waiting, commits it as one transaction, tells the followers, answers.
//!
//! When the file fails, it is closed and reopened until that works. Whether the commit that failed took place is then
//! read from the file, so that its callers get a definite answer; they wait for it [`SETTLE_WITHIN`] at most.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use redb::WriteTransaction;
use tokio::sync::watch;

use super::{
    Shared,
    batch::Command,
    caught, file, retention, store_error,
    tables::{self, Tables, Tail},
};
use crate::store::StoreError;

/// The most commands that share a commit.
const MAX_BATCH: usize = 512;

/// Between the first two attempts to reopen the file; doubles with each.
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// The longest time between two attempts to reopen the file.
const LAST_RETRY: Duration = Duration::from_secs(5);

/// How long the callers of a commit that failed wait for the file to be reopened. After that their answer is
/// ambiguous, and what comes is refused at once.
const SETTLE_WITHIN: Duration = Duration::from_secs(2);

struct Committer {
    shared: Arc<Shared>,
    queue: Receiver<Command>,
    publish: watch::Sender<u64>,
    opener: file::Opener,
    tail: Tail,
    retention: Duration,
    /// Set while the file cannot be reopened.
    down: Option<Down>,
}

struct Down {
    error: StoreError,
    retry_at: Instant,
    delay: Duration,
}

pub(super) fn start(
    shared: Arc<Shared>,
    queue: Receiver<Command>,
    publish: watch::Sender<u64>,
    opener: file::Opener,
    tail: Tail,
    retention: Duration,
) -> io::Result<()> {
    let mut committer = Committer { shared, queue, publish, opener, tail, retention, down: None };
    thread::Builder::new().name("store".into()).spawn(move || committer.run())?;
    Ok(())
}

impl Drop for Committer {
    /// Runs before `publish` is dropped, which tells that the file is released.
    fn drop(&mut self) {
        self.shared.drop_database();
    }
}

impl Committer {
    fn run(&mut self) {
        let mut sweep_at = Instant::now();
        loop {
            let wake_at = self.down.as_ref().map_or(sweep_at, |down| down.retry_at);
            let wait = wake_at.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                if let Some(down) = self.down.take() {
                    self.reopen(Instant::now(), down.delay);
                } else {
                    sweep_at =
                        Instant::now() + if self.sweep() { Duration::ZERO } else { retention::SWEEP_EVERY };
                }
            }
            match self.queue.recv_timeout(wait) {
                Ok(first) => self.serve(first),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Carries out a command and those that wait behind it.
    fn serve(&mut self, first: Command) {
        let mut batch = vec![first];
        batch.extend(self.queue.try_iter().take(MAX_BATCH - 1));
        let committed = if let Some(down) = &self.down {
            Err(down.error.clone())
        } else {
            let epoch = self.shared.epoch;
            self.write(|tables, tail| {
                let mut changed = false;
                for command in &mut batch {
                    changed |= command.apply(tables, tail, epoch)?;
                }
                Ok(changed)
            })
        };
        for command in batch {
            command.settle(committed.clone());
        }
    }

    /// Removes some of what is too old; true if there may be more.
    fn sweep(&mut self) -> bool {
        let retention = self.retention;
        let mut more = false;
        let committed = self.write(|tables, tail| {
            let swept = retention::sweep(tables, tail, retention)?;
            more = swept.more;
            Ok(swept.rows > 0)
        });
        more && committed.is_ok()
    }

    /// One write transaction, committed if it changed anything. `Ok` means that it is on disk.
    fn write(
        &mut self,
        change: impl FnOnce(&mut Tables<'_>, &mut Tail) -> Result<bool, redb::Error>,
    ) -> Result<(), StoreError> {
        let (txn, tail) = match caught(|| self.prepare(change)) {
            Ok(Some(prepared)) => prepared,
            Ok(None) => return Ok(()),
            Err(error) => {
                self.fail(&error);
                self.reopen(Instant::now(), FIRST_RETRY);
                return Err(store_error(&error));
            }
        };
        let Err(error) = caught(|| Ok(txn.commit()?)) else {
            self.tail = tail;
            self.publish.send_replace(tail.sequence);
            if self.shared.wrote(None).is_some() {
                tracing::info!("the store writes again");
            }
            return Ok(());
        };
        self.fail(&error);
        self.reopen(Instant::now() + SETTLE_WITHIN, FIRST_RETRY);
        if self.down.is_some() {
            Err(StoreError::Ambiguous(error.to_string()))
        } else if self.tail.commit == tail.commit {
            Ok(())
        } else {
            Err(store_error(&error))
        }
    }

    /// A transaction that waits to be committed, and where the file will end then.
    fn prepare(
        &self,
        change: impl FnOnce(&mut Tables<'_>, &mut Tail) -> Result<bool, redb::Error>,
    ) -> Result<Option<(WriteTransaction, Tail)>, redb::Error> {
        let txn = self.shared.begin_write()?;
        let mut tail = self.tail;
        let changed = change(&mut Tables::open(&txn)?, &mut tail)?;
        if !changed {
            txn.abort()?;
            return Ok(None);
        }
        tail.commit += 1;
        tail.save(&txn)?;
        Ok(Some((txn, tail)))
    }

    fn fail(&mut self, error: &redb::Error) {
        // From a failure to the next commit it is logged once.
        if self.shared.wrote(Some(error.to_string())).is_none() {
            tracing::error!(%error, "the store failed; its file is reopened until it works");
        }
        self.shared.drop_database();
    }

    /// Reopens the file, as often as it takes until a moment (once at least). Afterwards the store is down or not.
    fn reopen(&mut self, until: Instant, mut delay: Duration) {
        loop {
            match caught(|| self.try_reopen()) {
                Ok(tail) => {
                    self.tail = tail;
                    self.publish.send_replace(tail.sequence);
                    return;
                }
                Err(error) => {
                    let retry_at = Instant::now() + delay;
                    let next = (delay * 2).min(LAST_RETRY);
                    if retry_at > until {
                        self.down = Some(Down { error: store_error(&error), retry_at, delay: next });
                        return;
                    }
                    thread::sleep(delay);
                    delay = next;
                }
            }
        }
    }

    fn try_reopen(&self) -> Result<Tail, redb::Error> {
        let database = (self.opener)()?;
        let (epoch, tail) = tables::enter(&database)?;
        if epoch != self.shared.epoch || tail.commit < self.tail.commit {
            return Err(tables::corrupt("its file was replaced while in use"));
        }
        self.shared.put_database(Some(database));
        Ok(tail)
    }
}
