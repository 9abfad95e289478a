//! The one thread that writes. It takes what is waiting, commits it as one transaction, tells the
//! followers, answers.
//!
//! When the file fails, it is closed and reopened until that works. Whether the commit that failed
//! took place is then read from the file, so that its callers get a definite answer; they wait for
//! it [`SETTLE_WITHIN`] at most.

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
    Shared, StoreFile, ages,
    batch::Command,
    caught,
    clock::Clocks,
    loss::Kind,
    record::Record,
    retention, store_error,
    tables::{self, Entered, Incarnation, Tables, Tail},
};
use crate::store::StoreError;
use space::Space;

/// The most commands that share a commit.
const MAX_BATCH: usize = 512;

/// Between the first two attempts to reopen the file; doubles with each.
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// The longest time between two attempts to reopen the file.
const LAST_RETRY: Duration = Duration::from_secs(5);

/// How often the committer looks at the world outside the file.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long the callers of a commit that failed wait for the file to be reopened. After that their
/// answer is ambiguous, and what comes is refused at once.
const SETTLE_WITHIN: Duration = Duration::from_secs(2);

struct Committer {
    shared: Arc<Shared>,
    queue: Receiver<Command>,
    publish: watch::Sender<u64>,
    file: StoreFile,
    tail: Tail,
    retention: Duration,
    /// Set while the file cannot be reopened.
    down: Option<Down>,
    due: Due,
    clocks: Clocks,
    /// The last record that was written.
    recorded: Option<Record>,
    space: Space,
}

/// When the regular work is to be done next.
struct Due {
    look: Instant,
    record: Instant,
    rung: Instant,
    sweep: Instant,
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
    file: StoreFile,
    tail: Tail,
    retention: Duration,
) -> io::Result<()> {
    let clocks = Clocks::now();
    if let Some(behind) = clocks.behind(tail.time) {
        tracing::warn!(
            ?behind,
            "the host's clock is behind the last time stamp in the store: it is wrong now, or it was \
             wrong then; shown times are wrong, and nothing is deleted or given up because of it"
        );
    }
    if let Some(ago) = clocks.ahead(tail.time).filter(|_| tail.commit > 0) {
        tracing::warn!(
            ?ago,
            "by the host's clock, nothing was stored for a long time: the gateway was stopped or idle, or the clock \
             is ahead; if it is, shown times are wrong, and nothing is deleted or given up because of it"
        );
    }
    let now = Instant::now();
    let due = Due { look: now, record: now, rung: now + ages::RUNG_EVERY, sweep: now };
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
    committer.look();
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
        loop {
            let wait = self.wake_at().saturating_duration_since(Instant::now());
            if wait.is_zero() {
                self.work();
            }
            match self.queue.recv_timeout(wait) {
                Ok(first) => self.serve(first),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return self.finish();
                }
            }
        }
    }

    /// The last work, when the store is closed.
    fn finish(&mut self) {
        if self.down.is_none() && self.loss().is_none() {
            self.store_rung();
        }
        self.look();
        self.record();
        if self.loss() == Some(Kind::Removed)
            && let Err(error) = self.put_back()
        {
            tracing::error!(%error, "the store was removed and cannot be put back");
        }
    }

    fn wake_at(&self) -> Instant {
        let Due { look, rung, sweep, .. } = self.due;
        let next = self.down.as_ref().map_or(rung.min(sweep), |down| down.retry_at);
        next.min(look)
    }

    /// Does what is due.
    fn work(&mut self) {
        let now = Instant::now();
        if now >= self.due.look {
            self.due.look = now + LOOK_EVERY;
            self.look();
        }
        if let Some(down) = self.down.take_if(|down| now >= down.retry_at) {
            return self.reopen(now, down.delay);
        }
        if self.down.is_some() {
            return;
        }
        // What is lost may come back, so nothing is changed meanwhile.
        if self.loss().is_some() {
            self.due.rung = self.due.rung.max(now + LOOK_EVERY);
            self.due.sweep = self.due.sweep.max(now + LOOK_EVERY);
            return;
        }
        if now >= self.due.rung {
            self.due.rung = now + ages::RUNG_EVERY;
            self.store_rung();
        }
        if now >= self.due.sweep {
            let more = self.sweep();
            self.due.sweep =
                Instant::now() + if more { Duration::ZERO } else { retention::SWEEP_EVERY };
        }
    }

    /// Carries out a command and those that wait behind it.
    fn serve(&mut self, first: Command) {
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
                for command in &mut batch {
                    changed |= command.apply(tables, tail, epoch)?;
                }
                Ok(changed)
            })
        });
        for command in batch {
            match command {
                Command::Accept { restored, answer } => {
                    // The operator may be gone.
                    let _ = answer.send(self.accept(restored));
                }
                command => command.settle(committed.clone()),
            }
        }
    }

    /// Removes some of what is too old; true if there may be more.
    fn sweep(&mut self) -> bool {
        let Some(to) = self.shared.ages().older_than(self.retention) else { return false };
        let mut more = false;
        let committed = self.change(|tables, tail| {
            let swept = retention::sweep(tables, tail, to)?;
            more = swept.more;
            Ok(swept.rows > 0)
        });
        more && committed.is_ok()
    }

    /// Stores how long the store has been running. It changes nothing else, so it does not count as
    /// a commit, and there is nobody to answer when it fails.
    fn store_rung(&mut self) {
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

    /// Changes logs and cells.
    fn change(
        &mut self,
        change: impl FnOnce(&mut Tables<'_>, &mut Tail) -> Result<bool, redb::Error>,
    ) -> Result<(), StoreError> {
        self.write(|txn, tail| change(&mut Tables::open(txn)?, tail))
    }

    /// One write transaction, committed if it changed anything. `Ok` means that it is on disk.
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
            self.shared.state().incarnation.recorded |= self.recorded.is_some();
            self.space.wrote();
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
        if self.recorded.is_some() && !self.shared.state().incarnation.recorded {
            Incarnation::note_record(&txn)?;
        }
        Ok(Some((txn, tail)))
    }

    fn fail(&mut self, error: &redb::Error) {
        // From a failure to the next commit it is logged once.
        if self.shared.wrote(Some(error.to_string())).is_none() {
            tracing::error!(%error, "the store failed; its file is reopened until it works");
        }
        if matches!(store_error(error), StoreError::Full(_)) {
            self.space.failed();
        }
        self.shared.drop_database();
    }

    /// Reopens the file, as often as it takes until a moment (once at least). Afterwards the store
    /// is down or not.
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
                            Some(Down { error: store_error(&error), retry_at, delay: next });
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
        let Entered { incarnation, tail, .. } = tables::enter(&database)?;
        if incarnation.epoch != self.shared.epoch() || tail.commit < self.tail.commit {
            return Err(tables::corrupt("its file was replaced while in use"));
        }
        self.file.handle = handle;
        self.shared.put_database(Some(database));
        Ok(tail)
    }
}
