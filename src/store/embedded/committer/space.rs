//! Room on the disk. New orders are refused while it is scarce, so that what becomes of the known
//! ones still fits. Every write is refused while it does not suffice, before redb touches the disk:
//! after a write that failed, redb refuses reads too, and the file must be repaired.

use std::time::{Duration, Instant};

use super::Committer;
use crate::{
    backoff::doubled,
    store::{StoreError, embedded::batch::Command},
};

/// What stays free for outcomes, polls and callbacks, in bytes, whatever the size of the store.
const HEAD_ROOM: u64 = 32 * 1024 * 1024;

/// The same, as a part of the size of the store, in percent.
const HEAD_ROOM_PERCENT: u64 = 15;

/// How far above the head-room the free space must be, in percent of it, before orders are taken
/// again.
const HEAD_ROOM_AGAIN_PERCENT: u64 = 125;

/// How many bytes of the disk a commit may take for each byte in the queue: pages are copied, and
/// several tables change.
const WRITE_AMPLIFICATION: u64 = 4;

/// The pause after a second write in a row that failed for lack of space, although the disk said
/// that there was some (a quota, for example). It doubles with each.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// What is known of the disk.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// The last write was refused for lack of space, without touching the disk.
    refusing: bool,
    /// Writes that failed in a row for lack of space.
    failures: u32,
    /// No write is tried before.
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
    /// Refuses the commands for which there is no space.
    pub(super) fn refuse_beyond_space(&mut self, batch: &mut Vec<Command>) {
        let free = self.look_at_space().unwrap_or(u64::MAX);
        let free = if self.is_paused() { 0 } else { free };
        let mut needed: u64 = 0;
        let (mut fitting, mut refused) = (Vec::with_capacity(batch.len()), Vec::new());
        for command in batch.drain(..) {
            let with_it =
                needed.saturating_add(command.bytes().saturating_mul(WRITE_AMPLIFICATION));
            if with_it <= free {
                needed = with_it;
                fitting.push(command);
            } else {
                refused.push(command);
            }
        }
        *batch = fitting;
        if refused.is_empty() {
            return;
        }
        let full = format!("{free} bytes of the disk are free for it");
        self.space.refusing = true;
        let failure =
            format!("the disk of the store is full ({full}); free space on it or enlarge it");
        if self.shared.wrote(Some(failure)).is_none() {
            tracing::error!(
                free,
                "the disk of the store is full: writes are refused until there is space, reads go on"
            );
        }
        for command in refused {
            command.settle(Err(StoreError::Full(full.clone())));
        }
    }

    fn is_paused(&self) -> bool {
        self.space.pause_until.is_some_and(|until| Instant::now() < until)
    }

    /// Looks how much is free, and tells whether new orders are taken. `None`: the disk does not
    /// say.
    pub(super) fn look_at_space(&mut self) -> Option<u64> {
        let free = (self.file.medium.free)().ok()?;
        let size = self.file.handle.metadata().map_or(0, |file| file.len());
        let head_room = HEAD_ROOM.max(size / 100 * HEAD_ROOM_PERCENT);
        let was_short = self.shared.state().shortage.is_some();
        let enough = if was_short { head_room / 100 * HEAD_ROOM_AGAIN_PERCENT } else { head_room };
        let mib = |bytes| bytes / (1024 * 1024);
        let shortage = if self.is_paused() {
            Some("the disk of the store has just refused writes for lack of space".to_owned())
        } else if free < enough {
            Some(format!(
                "{} MiB of the disk of the store are free, and {} MiB are kept for the known orders",
                mib(free),
                mib(enough)
            ))
        } else {
            None
        };
        match (&shortage, was_short) {
            (Some(shortage), false) => tracing::error!(
                shortage,
                "the store is nearly full: new orders are refused; free space on its disk or enlarge it"
            ),
            (None, true) => tracing::info!("there is room in the store for new orders again"),
            _ => {}
        }
        self.shared.state().shortage = shortage;
        if self.space.refusing && free >= enough {
            self.space.refusing = false;
            if self.shared.wrote(None).is_some() {
                tracing::info!("there is space on the disk of the store again");
            }
        }
        Some(free)
    }
}
