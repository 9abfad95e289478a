//! When which request is due. Knows nothing of why, of ThingSpace or of the store.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use tokio::time::Instant;

use crate::{config, identity::RequestId};

/// A poll is never sooner than this many times what the last answer took.
const REST: u32 = 10;

/// The turns of all requests that are polled.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    due: BTreeSet<(Instant, RequestId)>,
    turns: HashMap<RequestId, Turn>,
}

/// Where one request stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    /// `None`: being polled right now.
    pub(super) due: Option<Instant>,
    /// When it was polled last, by whomever and as far as this replica saw, or first heard of.
    pub(super) last: Instant,
    /// What makes the intervals grow: polls, and failures to claim one.
    pub(super) count: u32,
    /// What the request's cell said when this replica looked last.
    pub(super) seen: Option<u32>,
    /// The rest that the last replica to poll leaves ThingSpace.
    pub(super) rest: Duration,
    /// Asked for again while it was being polled.
    pub(super) soon: bool,
}

/// A poll that was counted in the request's cell: how many there were with it, and the rest that follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) count: u32,
    pub(super) rest: Duration,
}

impl Turn {
    pub(super) fn new(now: Instant) -> Self {
        Self { due: Some(now), last: now, count: 0, seen: None, rest: Duration::ZERO, soon: false }
    }

    /// After a poll, this replica's or another's.
    pub(super) fn polled(self, now: Instant, counted: Counted) -> Self {
        let Counted { count, rest } = counted;
        Self { last: now, count, seen: Some(count), rest, ..self }
    }

    /// After a poll that could not be claimed.
    pub(super) fn failed(self, now: Instant) -> Self {
        Self { last: now, count: self.count.saturating_add(1), ..self }
    }

    /// How long after `last` it is due, for a request whose interval grows to `longest` and whose last answer `took` so long here.
    pub(super) fn interval(&self, config: &config::Polling, longest: Duration, took: Duration) -> Duration {
        let grown = config.first.as_secs_f64() * config.factor.powf(f64::from(self.count.min(1_000)));
        let grown = if grown < longest.as_secs_f64() { Duration::from_secs_f64(grown) } else { longest };
        grown.max(rest_after(took)).max(self.rest)
    }
}

/// How long ThingSpace is left alone after an answer that took so long.
pub(super) fn rest_after(took: Duration) -> Duration {
    took * REST
}

/// Whether a request whose cell says `held` was polled by another replica since this one looked, when it said `seen`. A replica
/// that has never looked takes up the others' rhythm, unless the store says that there are no others.
pub(super) fn polled_elsewhere(seen: Option<u32>, held: Option<u32>, exclusive: bool) -> bool {
    !exclusive && held.is_some() && held != seen
}

impl Schedule {
    pub(super) fn get(&self, id: &RequestId) -> Option<Turn> {
        self.turns.get(id).copied()
    }

    pub(super) fn set(&mut self, id: &RequestId, turn: Turn) {
        self.remove(id);
        if let Some(due) = turn.due {
            self.due.insert((due, id.clone()));
        }
        self.turns.insert(id.clone(), turn);
    }

    pub(super) fn remove(&mut self, id: &RequestId) {
        if let Some(Turn { due: Some(due), .. }) = self.turns.remove(id) {
            self.due.remove(&(due, id.clone()));
        }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Takes the first request that is due.
    pub(super) fn take(&mut self, now: Instant) -> Option<(RequestId, Turn)> {
        let (due, id) = self.due.first().cloned()?;
        if due > now {
            return None;
        }
        self.due.pop_first();
        let turn = self.turns.get_mut(&id)?;
        (turn.due, turn.soon) = (None, false);
        Some((id, *turn))
    }
}

#[cfg(test)]
mod tests;
