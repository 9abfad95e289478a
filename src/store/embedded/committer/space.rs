//! Watches the free space of the disk. If it is scarce, new orders are refused, so that events
//! about the known orders still fit. A job that does not fit is refused before redb writes: after a
//! failed write, redb refuses reads too, and the file must be repaired.

use std::time::{Duration, Instant};

use super::Committer;
use crate::{
    backoff::doubled,
    store::{StoreError, embedded::batch::Job},
};

/// The least number of bytes that are kept free for outcomes, polls and callbacks.
const RESERVE: u64 = 32 * 1024 * 1024;

/// The reserve in percent of the size of the store, if that is more than [`RESERVE`].
const RESERVE_PERCENT: u64 = 15;

/// Orders are accepted again when the free space is this percentage of the reserve.
const RESUME_PERCENT: u64 = 125;

/// The bytes that a commit may write per byte in the queue: pages are copied, and several tables
/// change.
const WRITE_AMPLIFICATION: u64 = 4;

/// The pause after the second write in a row that failed for lack of space, although the disk
/// reported enough (because of a quota, for example). It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// Returns the bytes of the disk that are kept free beside a store of this size.
pub(in crate::store::embedded) fn reserve(size: u64) -> u64 {
    RESERVE.max(size / 100 * RESERVE_PERCENT)
}

/// What is known about the disk.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// The last job was refused for lack of space, before it was written.
    refusing: bool,
    /// The writes in a row that failed for lack of space.
    failures: u32,
    /// No write is tried before this.
    pause_until: Option<Instant>,
}

impl Space {
    pub(super) fn wrote(&mut self) {
        *self = Self::default();
    }

    pub(super) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        let doublings = self.failures.checked_sub(2);
        self.pause_until = doublings
            .map(|doublings| Instant::now() + doubled(FIRST_PAUSE, doublings, LONGEST_PAUSE));
    }
}

impl Committer {
    /// Refuses the jobs of a batch for which there is no space, and removes them from the batch.
    pub(super) fn refuse_beyond_space(&mut self, batch: &mut Vec<Job>) {
        let free = self.check_space().unwrap_or(u64::MAX);
        let free = if self.is_paused() { 0 } else { free };
        let mut needed: u64 = 0;
        let refused: Vec<Job> = batch
            .extract_if(.., |job| {
                let total = needed.saturating_add(job.bytes() * WRITE_AMPLIFICATION);
                let fits = total <= free;
                needed = if fits { total } else { needed };
                !fits
            })
            .collect();
        if refused.is_empty() {
            return;
        }
        let full = format!("{free} bytes of the disk are free for it");
        self.space.refusing = true;
        let failure =
            format!("the disk of the store is full ({full}); free space on it or enlarge it");
        if self.shared.set_failure(Some(failure)).is_none() {
            tracing::error!(
                free,
                "the disk of the store is full: writes are refused and reads go on; free space on \
                 it or enlarge it"
            );
        }
        for job in refused {
            job.answer(Err(StoreError::Full(full.clone())));
        }
    }

    fn is_paused(&self) -> bool {
        self.space.pause_until.is_some_and(|until| Instant::now() < until)
    }

    /// Returns the free bytes of the disk, and sets or clears the shortage. `None`: the disk does
    /// not report them.
    pub(super) fn check_space(&mut self) -> Option<u64> {
        let free = (self.file.medium.free)().ok()?;
        let size = self.file.handle.metadata().map_or(0, |file| file.len());
        let reserve = reserve(size);
        let was_short = self.shared.state().shortage.is_some();
        let enough = if was_short { reserve / 100 * RESUME_PERCENT } else { reserve };
        let mib = |bytes| bytes / (1024 * 1024);
        let shortage = if self.is_paused() {
            Some("the disk of the store has just refused writes for lack of space".to_owned())
        } else if free < enough {
            let (free, enough) = (mib(free), mib(enough));
            Some(format!(
                "{free} MiB of the disk of the store are free, and {enough} MiB are kept for the \
                 known orders"
            ))
        } else {
            None
        };
        match (&shortage, was_short) {
            (Some(shortage), false) => tracing::error!(
                shortage,
                "the store is full: new orders are refused, and the rest of its room is kept for \
                 known orders; free space on its disk or enlarge it"
            ),
            (None, true) => tracing::info!("the store has space for new orders again"),
            _ => {}
        }
        self.shared.state().shortage = shortage;
        if self.space.refusing && free >= enough {
            self.space.refusing = false;
            if self.shared.set_failure(None).is_some() {
                tracing::info!("the disk of the store has space again");
            }
        }
        Some(free)
    }
}
