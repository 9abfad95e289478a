//! The thread that writes the store. It takes the queued jobs, commits them as one transaction,
//! wakes the followers, and answers the callers.
//!
//! After a failure, the file is closed and reopened until that works. Then the file shows whether
//! the failed commit took place. The callers get that answer if it is known within
//! [`SETTLE_WITHIN`], otherwise an unknown outcome.

mod outside;
mod space;

use std::{
    fs::File,
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
    EmbeddedShared, StoreFile, ages,
    batch::Job,
    caught,
    clock::Clocks,
    error::{corrupt, store_error},
    loss::LossKind,
    record::Record,
    retention,
    tables::{self, StoreIdentity, StoredState, Tables, Tail},
};
use crate::store::StoreError;
use space::Space;
pub(super) use space::reserve;

/// The most jobs in one commit.
const MAX_BATCH: usize = 512;

/// The pause after the first attempt to reopen the file. It doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// The longest pause between two attempts to reopen the file.
const LAST_RETRY: Duration = Duration::from_secs(5);

/// The interval of the checks of clock, file, disk and record.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// How long the callers of a failed commit wait for the file to be reopened. Then they get an
/// unknown outcome, and further jobs are refused at once.
const SETTLE_WITHIN: Duration = Duration::from_secs(2);

struct Committer {
    shared: Arc<EmbeddedShared>,
    queue: Receiver<Job>,
    publish: watch::Sender<u64>,
    file: StoreFile,
    tail: Tail,
    retention: Duration,
    /// Set while the file cannot be reopened.
    down: Option<Outage>,
    due: DueTimes,
    clocks: Clocks,
    /// The last record that was written.
    recorded: Option<Record>,
    space: Space,
}

/// When the regular work is due.
struct DueTimes {
    check: Instant,
    record: Instant,
    sample: Instant,
    sweep: Instant,
}

/// Why the file cannot be used, and when to reopen it next.
struct Outage {
    error: StoreError,
    retry_at: Instant,
    delay: Duration,
}

pub(super) fn start(
    shared: Arc<EmbeddedShared>,
    queue: Receiver<Job>,
    publish: watch::Sender<u64>,
    file: StoreFile,
    tail: Tail,
    retention: Duration,
) -> io::Result<()> {
    let clocks = Clocks::now();
    if let Some(behind) = clocks.behind(tail.time) {
        tracing::warn!(
            ?behind,
            "the host's clock is behind the last time stamp in the store: it is wrong now, or was \
             wrong when that was written; check the clock; nothing is deleted or given up because \
             of it"
        );
    }
    if let Some(ago) = clocks.ahead(tail.time).filter(|_| tail.commit > 0) {
        tracing::warn!(
            ?ago,
            "by the host's clock, nothing was stored for a long time: the gateway was stopped or \
             idle, or the clock is ahead; check it; nothing is deleted or given up because of it"
        );
    }
    let now = Instant::now();
    let due = DueTimes { check: now, record: now, sample: now + ages::SAMPLE_EVERY, sweep: now };
    let mut committer = Committer {
        shared,
        queue,
        publish,
        file,
        tail,
        retention,
        down: None,
        due,
        clocks,
        recorded: None,
        space: Space::default(),
    };
    committer.check_outside();
    thread::Builder::new().name("store".into()).spawn(move || committer.run())?;
    Ok(())
}

impl Drop for Committer {
    /// Releases the file. `publish` is dropped afterwards, and the store's `close` waits for that.
    fn drop(&mut self) {
        self.shared.drop_database();
    }
}

impl Committer {
    fn run(&mut self) {
        loop {
            let wait = self.wake_at().saturating_duration_since(Instant::now());
            if wait.is_zero() {
                self.do_due_work();
            }
            match self.queue.recv_timeout(wait) {
                Ok(first) => self.execute(first),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.finish(),
            }
        }
    }

    /// Stores the running time and the record when the store is closed. Puts a removed file back.
    fn finish(&mut self) {
        if self.down.is_none() && self.loss().is_none() {
            self.store_sample();
        }
        self.check_outside();
        self.write_record();
        if self.loss() == Some(LossKind::Removed)
            && let Err(error) = self.put_back()
        {
            tracing::error!(
                %error,
                "the store's file was removed and cannot be written again: restore a backup"
            );
        }
    }

    fn wake_at(&self) -> Instant {
        let DueTimes { check, sample, sweep, .. } = self.due;
        let next = self.down.as_ref().map_or(sample.min(sweep), |down| down.retry_at);
        next.min(check)
    }

    fn do_due_work(&mut self) {
        let now = Instant::now();
        if now >= self.due.check {
            self.due.check = now + CHECK_EVERY;
            self.check_outside();
        }
        if let Some(down) = self.down.take_if(|down| now >= down.retry_at) {
            return self.reopen(now, down.delay);
        }
        if self.down.is_some() {
            return;
        }
        // An operator may put the lost file back, so this one is not changed.
        if self.loss().is_some() {
            self.due.sample = self.due.sample.max(now + CHECK_EVERY);
            self.due.sweep = self.due.sweep.max(now + CHECK_EVERY);
            return;
        }
        if now >= self.due.sample {
            self.due.sample = now + ages::SAMPLE_EVERY;
            self.store_sample();
        }
        if now >= self.due.sweep {
            let more = self.sweep();
            self.due.sweep =
                Instant::now() + if more { Duration::ZERO } else { retention::SWEEP_EVERY };
        }
    }

    /// Executes a job and those that are queued behind it.
    fn execute(&mut self, first: Job) {
        let mut batch = vec![first];
        batch.extend(self.queue.try_iter().take(MAX_BATCH - 1));
        self.check_file();
        let ready = match &self.down {
            Some(down) => Err(down.error.clone()),
            None => self.shared.check_loss(),
        };
        let committed = ready.and_then(|()| {
            self.refuse_beyond_space(&mut batch);
            let epoch = self.shared.epoch();
            self.change(|tables, tail| {
                let mut changed = false;
                for job in &mut batch {
                    changed |= job.apply(tables, tail, epoch)?;
                }
                Ok(changed)
            })
        });
        for job in batch {
            match job {
                Job::Accept { restored, answer } => {
                    // The caller may be gone.
                    let _ = answer.send(self.accept(restored));
                }
                job => job.answer(committed.clone()),
            }
        }
    }

    /// Removes some old rows. Returns whether there may be more.
    fn sweep(&mut self) -> bool {
        let Some(to) = self.shared.ages().older_than(self.retention) else { return false };
        let mut rows = 0;
        let committed = self.change(|tables, tail| {
            rows = retention::sweep(tables, tail, to)?;
            Ok(rows > 0)
        });
        rows == retention::SWEEP_ROWS && committed.is_ok()
    }

    /// Stores the running time. Changes nothing else, so it does not count as a commit.
    fn store_sample(&mut self) {
        let stored = caught(|| {
            let txn = self.shared.begin_write()?;
            let stored = self.shared.ages().store(&txn, &self.tail, self.retention)?;
            txn.commit()?;
            Ok(stored)
        });
        match stored {
            Ok(stored) => self.shared.ages().stored(stored),
            Err(error) => {
                self.fail(&error);
                self.reopen(Instant::now(), FIRST_RETRY);
            }
        }
    }

    /// Changes logs and cells in one transaction.
    fn change(
        &mut self,
        change: impl FnOnce(&mut Tables<'_>, &mut Tail) -> Result<bool, redb::Error>,
    ) -> Result<(), StoreError> {
        self.write(|txn, tail| change(&mut Tables::open(txn)?, tail))
    }

    /// Runs a write transaction, and commits it if it changed anything. `Ok`: the change is on
    /// disk.
    fn write(
        &mut self,
        change: impl FnOnce(&WriteTransaction, &mut Tail) -> Result<bool, redb::Error>,
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
            self.shared.ages().note(&tail);
            self.publish.send_replace(tail.sequence);
            self.shared.state().identity.recorded |= self.recorded.is_some();
            self.space.wrote();
            if self.shared.set_failure(None).is_some() {
                tracing::info!("the store can be written again");
            }
            return Ok(());
        };
        self.fail(&error);
        self.reopen(Instant::now() + SETTLE_WITHIN, FIRST_RETRY);
        if self.down.is_some() {
            Err(StoreError::UnknownOutcome(error.to_string()))
        } else if self.tail.commit == tail.commit {
            Ok(())
        } else {
            Err(store_error(&error))
        }
    }

    /// Returns a transaction to commit, and the counters after it. `None`: nothing changed.
    fn prepare(
        &self,
        change: impl FnOnce(&WriteTransaction, &mut Tail) -> Result<bool, redb::Error>,
    ) -> Result<Option<(WriteTransaction, Tail)>, redb::Error> {
        let txn = self.shared.begin_write()?;
        let mut tail = self.tail;
        let changed = change(&txn, &mut tail)?;
        if !changed {
            txn.abort()?;
            return Ok(None);
        }
        tail.commit += 1;
        tail.save(&txn)?;
        if self.recorded.is_some() && !self.shared.state().identity.recorded {
            StoreIdentity::note_record(&txn)?;
        }
        Ok(Some((txn, tail)))
    }

    fn fail(&mut self, error: &redb::Error) {
        // Logged once, until a commit succeeds.
        if self.shared.set_failure(Some(error.to_string())).is_none() {
            tracing::error!(
                %error,
                "cannot write the store; reopening its file until that works; check the disk"
            );
        }
        if matches!(store_error(error), StoreError::Full(_)) {
            self.space.failed();
        }
        self.shared.drop_database();
    }

    /// Tries to reopen the file, at least once and not after `until`. Sets `down` if that fails.
    fn reopen(&mut self, until: Instant, mut delay: Duration) {
        loop {
            match caught(|| self.try_reopen()) {
                Ok(tail) => {
                    self.tail = tail;
                    self.shared.ages().note(&tail);
                    self.publish.send_replace(tail.sequence);
                    return;
                }
                Err(error) => {
                    let retry_at = Instant::now() + delay;
                    let next = (delay * 2).min(LAST_RETRY);
                    if retry_at > until {
                        self.down =
                            Some(Outage { error: store_error(&error), retry_at, delay: next });
                        return;
                    }
                    thread::sleep(delay);
                    delay = next;
                }
            }
        }
    }

    fn try_reopen(&mut self) -> Result<Tail, redb::Error> {
        let database = (self.file.medium.open)()?;
        let handle = File::open(&self.file.path)?;
        let StoredState { identity, tail, .. } = tables::load_state(&database)?;
        if identity.epoch != self.shared.epoch() || tail.commit < self.tail.commit {
            return Err(corrupt("its file was replaced while in use"));
        }
        self.file.handle = handle;
        self.shared.put_database(Some(database));
        Ok(tail)
    }
}
