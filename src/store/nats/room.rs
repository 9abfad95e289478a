//! Whether there is room for new orders: the stream of events has a largest size, and servers have
//! disks.
//!
//! Orders are refused before the stream is full, so that the outcomes, polls and callbacks of known
//! orders still fit.

use std::sync::{Mutex, MutexGuard};

use crate::lock::lock;

use tokio::time::{Duration, Instant};

use super::streams::Found;

/// Of the largest size, in percent: from here on there is no room, and below the other there is
/// room again.
const FULL_PERCENT: u64 = 85;
const ROOM_PERCENT: u64 = 80;

/// What a message takes beside its payload, in bytes: subject, headers, and the server's own record
/// of it.
const AROUND_A_MESSAGE: u64 = 256;

/// After a refusal for lack of storage, this long nothing as large is expected to fit.
const EXHAUSTED_FOR: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(super) struct Room {
    /// The largest size of the stream of events, in bytes.
    most: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// At the last look.
    bytes: u64,
    /// What this process has stored since.
    since: u64,
    /// A write was not acknowledged in time, and none was since.
    awaits_acknowledgement: bool,
    /// The servers refused so many bytes.
    exhausted: Option<Exhausted>,
    /// Why there is no room, as it was last said.
    shortage: Option<String>,
}

#[derive(Debug)]
struct Exhausted {
    bytes: usize,
    until: Instant,
    why: String,
}

impl Room {
    pub(super) fn new(most: u64) -> Self {
        Self { most, state: Mutex::default() }
    }

    /// Why there is no room.
    pub(super) fn shortage(&self) -> Option<String> {
        self.lock().shortage.clone()
    }

    pub(super) fn look(&self, events: &Found) {
        self.change(|state| {
            (state.bytes, state.since) = (events.bytes, 0);
            state.exhausted.take_if(|exhausted| exhausted.until <= Instant::now());
        });
    }

    /// Whether a write was not acknowledged in time, and none was since.
    pub(super) fn awaits_acknowledgement(&self) -> bool {
        self.lock().awaits_acknowledgement
    }

    /// A write was not acknowledged in time.
    pub(super) fn unacknowledged(&self) {
        self.lock().awaits_acknowledgement = true;
    }

    /// Something was stored.
    pub(super) fn stored(&self, bytes: usize, is_event: bool) {
        self.change(|state| {
            state.awaits_acknowledgement = false;
            if is_event {
                state.since += bytes as u64 + AROUND_A_MESSAGE;
            }
            state.exhausted.take_if(|exhausted| exhausted.bytes <= bytes);
        });
    }

    /// The servers refused to store something for lack of storage, or store nothing at all (0
    /// bytes).
    pub(super) fn refused(&self, bytes: usize, why: String) {
        self.change(|state| {
            let bytes = state.exhausted.as_ref().map_or(bytes, |before| before.bytes.min(bytes));
            state.exhausted = Some(Exhausted { bytes, until: Instant::now() + EXHAUSTED_FOR, why });
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Says so, once, when room runs out or comes back.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let used = state.bytes + state.since;
        let percent = if state.shortage.is_some() { ROOM_PERCENT } else { FULL_PERCENT };
        let shortage = if let Some(Exhausted { why, .. }) = &state.exhausted {
            Some(format!("the servers have no room: {why}"))
        } else if used >= self.most / 100 * percent {
            let (used, most) = (used >> 20, self.most >> 20);
            Some(format!("the stream of events holds {used} of {most} MiB"))
        } else {
            None
        };
        match (&state.shortage, &shortage) {
            (None, Some(why)) => tracing::error!(
                why,
                "the store is almost full: new orders are refused; raise store.nats.max_bytes, or \
                 give the servers more storage"
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
        let room = Room::new(100 << 20);
        room.refused(1_000, "no space".to_owned());
        assert_eq!(room.shortage().unwrap(), "the servers have no room: no space");
        room.stored(999, true);
        assert!(room.shortage().is_some());
        room.stored(1_000, false);
        assert_eq!(room.shortage(), None);
    }

    #[test]
    fn there_is_room_again_only_well_below_the_limit() {
        let room = Room::new(100_000_000);
        let hold = |bytes| room.change(|state| (state.bytes, state.since) = (bytes, 0));
        hold(84_000_000);
        assert_eq!(room.shortage(), None);
        room.stored(1_000_000, true);
        assert!(room.shortage().is_some());
        hold(81_000_000);
        assert!(room.shortage().is_some());
        hold(79_000_000);
        assert_eq!(room.shortage(), None);
    }
}
