//! Compares the streams with everything that is known of them.

use futures_util::future::try_join_all;
use tokio::time::Instant;

use super::{MonitorState, peers};
use crate::{
    proto::storage::StoreRecord,
    store::{
        StoreError, Version,
        nats::{
            Core, cells,
            record::{self, CELLS, EVENTS, KEYS, Marks, StreamLoss, Streams, Unrecorded, marks},
            streams::{self, StreamInfo, StreamsError},
        },
    },
};

/// What a check found.
pub(super) struct Examination {
    pub(super) found: Streams,
    pub(super) losses: Vec<StreamLoss>,
    /// What the streams must hold from now on; `None` if they have losses and no record.
    pub(super) known: Option<StoreRecord>,
    /// For streams without a record: whether they are new or of an older gateway. It is logged once
    /// the record is written.
    pub(super) first: Option<Unrecorded>,
    /// The highest epoch in anything stored.
    pub(super) latest: u64,
}

/// Returns the streams if all of them exist.
pub(super) fn all(found: Streams) -> Option<[StreamInfo; 3]> {
    let [events, cells, keys] = found;
    Some([events?, cells?, keys?])
}

impl Core {
    pub(super) async fn examine(
        &self,
        state: &mut MonitorState,
    ) -> Result<Examination, StreamsError> {
        // Positions are read before the streams are inspected: meanwhile the streams can only grow.
        let seen = self.facts().seen;
        let is_first = !self.facts().has_checked();
        let newest = if is_first {
            try_join_all([EVENTS, CELLS, KEYS].map(|stream| self.seen_by_newest(stream))).await?
        } else {
            Vec::new()
        };
        // Read before the record, because a gateway that accepts a loss writes the record first.
        let (_, report) = self.newest_report().await?;
        let latest = newest.iter().fold(report.epoch, |latest, seen| latest.max(seen.epoch()));
        let stored = self.load_record(&record::cell()).await?;
        let version = |stored: &Option<(Version, _)>| stored.as_ref().map(|(version, _)| *version);
        if state.stored.is_some() && version(&state.stored) != version(&stored) {
            state.refreshed = Instant::now();
        }
        state.stored.clone_from(&stored);
        let (known, unclear) = match state.known.clone() {
            Some(known) => (Some(known), None),
            None => self.recall(state).await?,
        };
        let found = streams::inspect(&self.link, &self.configs).await?;
        self.facts().check_clocks(&self.names, &found).map_err(StreamsError::Wrong)?;
        let (mut known, is_older) = match (known, stored.map(|(_, record)| record)) {
            (None, None) => match unclear {
                None => return self.examine_unrecorded(found, latest).await,
                Some(why) => return Err(peers::unclear(&why)),
            },
            (None, Some(stored)) => (stored, false),
            (Some(known), Some(stored)) => choose(known, stored, &found),
            (Some(known), None) => (known, false),
        };
        let marks = self.find_marks(&known, &found).await?;
        for seen in newest {
            let seen = seen.in_epoch(known.epoch);
            record::saw(&mut known, seen);
        }
        if report.epoch == known.epoch {
            record::merge(&mut known, &report);
        }
        let seen = seen.in_epoch(known.epoch);
        let mut losses = record::losses(&self.names, &known, seen, &found, marks);
        for loss in self.find_replaced(&mut known, &found).await? {
            if !losses.iter().any(|other| other.stream == loss.stream) {
                losses.push(loss);
            }
        }
        let is_older = is_older || latest > known.epoch;
        if is_older && !losses.iter().any(|loss| loss.stream == CELLS) {
            losses.push(StreamLoss::older(&self.names, CELLS, "was put back to an older copy"));
        }
        Ok(Examination { found, losses, known: Some(known), first: None, latest })
    }

    /// Examines streams without a record, for a process that knows nothing of them. Makes the
    /// streams of a new store.
    async fn examine_unrecorded(
        &self,
        mut found: Streams,
        latest: u64,
    ) -> Result<Examination, StreamsError> {
        let what = record::unrecorded(&self.names, &found);
        match &what {
            Unrecorded::Lost(losses) => {
                let losses = losses.clone();
                return Ok(Examination { found, losses, known: None, first: None, latest });
            }
            Unrecorded::New => {
                streams::make_missing(&self.link, &self.configs, &found).await?;
                found = streams::inspect(&self.link, &self.configs).await?;
                let is_empty = |found: &Option<StreamInfo>| {
                    found.as_ref().is_some_and(|found| found.state.last_seq == 0)
                };
                if !found.iter().all(is_empty) {
                    return Err(StreamsError::away("another gateway makes the streams"));
                }
            }
            Unrecorded::Older => {}
        }
        let Some(present) = all(found.clone()) else {
            return Err(StreamsError::away("the streams are being made"));
        };
        let [events, cells, keys] = &present;
        let since = events.created.max(cells.created).max(keys.created);
        let known = Some(record::first(&present, since));
        Ok(Examination { found, losses: Vec::new(), known, first: Some(what), latest })
    }

    /// Returns whether the marks that must exist do exist. Those of a missing stream count as
    /// existing, because the stream itself is the loss.
    async fn find_marks(&self, known: &StoreRecord, found: &Streams) -> Result<Marks, StoreError> {
        let mut marks = Marks { cells: true, keys: true };
        if known.cells_marked && found[CELLS].is_some() {
            marks.cells = cells::fetch(self, &record::cells_mark()).await?.is_some();
        }
        if let Some(keys) = &found[KEYS]
            && let Some(mark) = marks::oldest_key(known, keys.now)
        {
            marks.keys = cells::fetch(self, &mark).await?.is_some();
        }
        Ok(marks)
    }
}

/// Chooses between the record in memory and the stored one. Also returns whether the stored one was
/// put back to an older copy.
fn choose(mut known: StoreRecord, stored: StoreRecord, found: &Streams) -> (StoreRecord, bool) {
    if stored.epoch > known.epoch {
        // With an accepted loss, another replica began the newer epoch. Without one, a gateway that
        // knew nothing of the store made the streams anew, and the record in memory is right.
        let is_accepted = !stored.losses.is_empty();
        return (if is_accepted { stored } else { known }, false);
    }
    if stored.epoch < known.epoch {
        // If this process made the streams anew and another one knows the earlier store, the stored
        // record is right. Otherwise it was put back.
        let is_contradicted = known.losses.is_empty() && !record::describes_cells(&stored, found);
        return if is_contradicted { (stored, false) } else { (known, true) };
    }
    record::merge(&mut known, &stored);
    (known, false)
}
