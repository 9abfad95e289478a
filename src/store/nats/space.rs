//! Decides whether there is space for new orders. They are refused while the servers refuse to
//! store messages, and before the stream of events reaches its size limit, so that the outcomes,
//! polls and callbacks of known orders still fit.

use std::sync::{Mutex, MutexGuard};

use tokio::time::{Duration, Instant};

use super::streams::StreamInfo;
use crate::lock::lock;

/// New orders are refused when this much of the limit is used, in percent.
pub(crate) const FULL_PERCENT: u64 = 85;

/// New orders are accepted again when less than this much of the limit is used, in percent.
const FREE_PERCENT: u64 = 80;

/// What the server stores besides a payload, in bytes: subject, headers, and its own metadata.
const MESSAGE_OVERHEAD_BYTES: u64 = 256;

/// How long new orders are refused after the servers refused a message for lack of storage. The
/// refusal ends earlier if a message of at least the same size is stored.
const REFUSAL_LASTS: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(super) struct StorageSpace {
    /// The size limit of the stream of events.
    max_bytes: u64,
    state: Mutex<StorageState>,
}

#[derive(Debug, Default)]
struct StorageState {
    /// The size of the stream when it was last inspected.
    used_bytes: u64,
    /// What this process has stored since then.
    stored_bytes: u64,
    /// The last write was not acknowledged in time.
    awaits_acknowledgement: bool,
    refusal: Option<StorageRefusal>,
    /// Why there is no space, as last logged.
    shortage: Option<String>,
}

/// The servers refused to store a message for lack of storage.
#[derive(Debug)]
struct StorageRefusal {
    bytes: usize,
    until: Instant,
    why: String,
}

impl StorageSpace {
    pub(super) fn new(max_bytes: u64) -> Self {
        Self { max_bytes, state: Mutex::default() }
    }

    /// Returns why there is no space for new orders; `None`: there is enough.
    pub(super) fn shortage(&self) -> Option<String> {
        self.lock().shortage.clone()
    }

    /// Returns the size of the stream of events and the bytes that still fit into it.
    pub(super) fn size_and_room(&self) -> (u64, u64) {
        let state = self.lock();
        let used = state.used_bytes + state.stored_bytes;
        (used, self.max_bytes.saturating_sub(used))
    }

    /// Updates the size of the stream of events after an inspection.
    pub(super) fn inspected(&self, events: &StreamInfo) {
        self.update(|state| {
            (state.used_bytes, state.stored_bytes) = (events.state.bytes, 0);
            state.refusal.take_if(|refusal| refusal.until <= Instant::now());
        });
    }

    pub(super) fn awaits_acknowledgement(&self) -> bool {
        self.lock().awaits_acknowledgement
    }

    pub(super) fn unacknowledged(&self) {
        self.lock().awaits_acknowledgement = true;
    }

    pub(super) fn stored(&self, bytes: usize, is_event: bool) {
        self.update(|state| {
            state.awaits_acknowledgement = false;
            if is_event {
                state.stored_bytes += bytes as u64 + MESSAGE_OVERHEAD_BYTES;
            }
            state.refusal.take_if(|refusal| refusal.bytes <= bytes);
        });
    }

    /// Notes that the servers refused to store a message for lack of storage. 0 bytes: they store
    /// no message of any size.
    pub(super) fn refused(&self, bytes: usize, why: String) {
        self.update(|state| {
            let bytes = state.refusal.as_ref().map_or(bytes, |before| before.bytes.min(bytes));
            state.refusal =
                Some(StorageRefusal { bytes, until: Instant::now() + REFUSAL_LASTS, why });
        });
    }

    fn lock(&self) -> MutexGuard<'_, StorageState> {
        lock(&self.state)
    }

    /// Changes the state, and logs when space runs out or is free again.
    fn update(&self, change: impl FnOnce(&mut StorageState)) {
        let mut state = self.lock();
        change(&mut state);
        let used = state.used_bytes + state.stored_bytes;
        let percent = if state.shortage.is_some() { FREE_PERCENT } else { FULL_PERCENT };
        let shortage = if let Some(StorageRefusal { why, .. }) = &state.refusal {
            Some(format!("the servers have no room: {why}"))
        } else if used >= self.max_bytes / 100 * percent {
            let (used, max) = (used >> 20, self.max_bytes >> 20);
            Some(format!("the stream of events holds {used} of {max} MiB"))
        } else {
            None
        };
        match (&state.shortage, &shortage) {
            (None, Some(why)) => tracing::error!(
                why,
                "the store is full: new orders are refused, and the rest of its room is kept for \
                 known orders. Raise store.nats.max_bytes, or give the servers more storage"
            ),
            (Some(_), None) => tracing::info!("the store has room again"),
            _ => {}
        }
        state.shortage = shortage;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_refusal_counts_until_as_much_was_stored_or_time_has_passed() {
        let space = StorageSpace::new(100 << 20);
        space.refused(1_000, "no space".to_owned());
        assert_eq!(space.shortage().unwrap(), "the servers have no room: no space");
        space.stored(999, true);
        assert!(space.shortage().is_some());
        space.stored(1_000, false);
        assert_eq!(space.shortage(), None);
    }

    #[test]
    fn there_is_room_again_only_well_below_the_limit() {
        let space = StorageSpace::new(100_000_000);
        let hold = |bytes| {
            space.update(|state| (state.used_bytes, state.stored_bytes) = (bytes, 0));
        };
        hold(84_000_000);
        assert_eq!(space.shortage(), None);
        space.stored(1_000_000, true);
        assert!(space.shortage().is_some());
        hold(81_000_000);
        assert!(space.shortage().is_some());
        hold(79_000_000);
        assert_eq!(space.shortage(), None);
    }
}
