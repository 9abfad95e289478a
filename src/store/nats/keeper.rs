//! Looks at the streams every few seconds, whenever the connection is made, and when somebody
//! misses them. Decides whether they can be used, and notices when they forgot something.
//!
//! A loss must be seen several times in a row before it counts, because a server that was just
//! elected may lag. Until then the store refuses everything as if NATS were away. A loss that is no
//! longer seen is forgotten: a leader may have lagged for longer, or an operator put back what was
//! missing.

mod accept;
mod made;
mod peers;
mod write;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::{
    Shared, Standing, There, cells,
    facts::Seen,
    link::backoff,
    logs,
    record::{self, CELLS, EVENTS, Forgotten, KEYS, Marks, Streams, Unrecorded},
    streams::{self, Found, Hindrance},
};
use crate::{
    proto::storage::StoreRecord,
    store::{CellName, Loss, Version, decode_cell},
};

/// Between two looks at streams that can be used.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// Between two looks at streams that cannot be used.
const LOOK_LEAST: Duration = Duration::from_millis(100);
const LOOK_MOST: Duration = Duration::from_secs(5);

/// Between two looks at streams that may have forgotten something, and how often in a row that must
/// be seen.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const SIGHTINGS: usize = 5;

/// How often in a row a look may fail before streams that could be used no longer count as such.
/// Each takes up to [`ANSWER`](super::link::ANSWER).
const FAILED_LOOKS: usize = 3;

/// How often the record is refreshed at most.
const REFRESH: Duration = Duration::from_mins(1);

/// What this process knows of the store.
#[derive(Debug)]
pub(super) struct Memory {
    /// What the streams have to hold; unknown until the first look.
    known: Option<StoreRecord>,
    /// The record as it was stored when it was last read.
    stored: Option<(Version, StoreRecord)>,
    /// When the stored record was last seen to have changed.
    refreshed: Instant,
    /// How often in a row a loss was seen.
    sightings: usize,
    /// How often in a row the record was written without an acknowledgement.
    unacknowledged: usize,
}

impl Default for Memory {
    fn default() -> Self {
        // The first look writes the record. A process that is started again and again would
        // otherwise never write what it has stored.
        let refreshed = Instant::now() - REFRESH;
        Self { known: None, stored: None, refreshed, sightings: 0, unacknowledged: 0 }
    }
}

impl Memory {
    /// Whether the stored record does not tell what other gateways cannot notice: that the cells
    /// are in a new stream, or that messages have been replaced.
    fn lacks_witness(&self, known: &StoreRecord, found: &Streams) -> bool {
        let stored = self.stored.as_ref().map(|(_, record)| record);
        match stored.filter(|stored| stored.epoch == known.epoch) {
            Some(stored) => record::replaced(stored) != record::replaced(known),
            None => found[CELLS].is_some() && !record::describes_cells(known, found),
        }
    }
}

/// What a look found.
struct Examined {
    found: Streams,
    forgotten: Vec<Forgotten>,
    /// What the streams have to hold from now on; `None` together with something forgotten by
    /// streams without a record.
    known: Option<StoreRecord>,
    /// What there is to say once the record is written.
    first: Option<Unrecorded>,
    /// The last epoch that anything stored tells of.
    latest: u64,
}

impl Shared {
    /// Looks after the streams until the store is closed.
    pub(super) async fn keep(self: Arc<Self>, servers: String) {
        let mut link = self.link.state.clone();
        let (mut failures, mut said, mut answers) = (0, false, false);
        loop {
            let state = link.borrow_and_update().clone();
            if !state.up {
                if let Some(error) = state.complaint.as_ref().filter(|_| !said) {
                    tracing::warn!(servers, error, "cannot connect to NATS; trying on");
                    said = true;
                }
                let why =
                    state.complaint.map_or_else(String::new, |complaint| format!(": {complaint}"));
                self.stand(Err(Hindrance::Away(format!("not connected to NATS{why}"))));
                if link.changed().await.is_err() {
                    return;
                }
                continue;
            }
            said = false;
            let looked = tokio::select! {
                looked = self.look_at_streams(state.made) => looked,
                changed = link.changed() => if changed.is_err() { return } else { continue },
            };
            if !answers && self.facts().record.is_some() {
                let answering = Arc::clone(&self).answer_peers();
                tokio::spawn(self.end.clone().run_until_cancelled_owned(answering));
                answers = true;
            }
            let loss = self.facts().loss.clone();
            let looked = match (looked, loss) {
                (Err(Hindrance::Away(_)), Some(loss)) => Err(Hindrance::Lost(loss)),
                (looked, _) => looked,
            };
            failures = if looked.is_ok() { 0 } else { failures + 1 };
            let suspected = self.memory.lock().await.sightings > 0;
            let blip = matches!(&looked, Err(Hindrance::Away(_)))
                && !suspected
                && failures < FAILED_LOOKS
                && matches!(&*self.standing.borrow(), Standing::There(_));
            if !blip {
                self.stand(looked);
            }
            let wait = match failures {
                0 => LOOK_EVERY,
                _ if suspected => LOOK_AGAIN,
                _ => backoff(failures, LOOK_LEAST, LOOK_MOST),
            };
            tokio::select! {
                changed = link.changed() => if changed.is_err() { return },
                // Many miss them at once.
                () = self.look.notified() => sleep(LOOK_LEAST).await,
                () = sleep(wait) => {}
            }
        }
    }

    /// `connection`: the one that it is done over.
    async fn look_at_streams(&self, connection: u64) -> Result<There, Hindrance> {
        streams::check_server(&self.link)?;
        let mut memory = self.memory.lock().await;
        let Examined { found, forgotten, known, first, .. } = self.examine(&mut memory).await?;
        if !forgotten.is_empty() {
            memory.sightings += 1;
            if let Some(known) = known {
                self.facts().record = Some(known.clone());
                // At once where the streams were made anew or written to, because a gateway that
                // knows nothing may use them. Otherwise the leader may lag.
                if memory.lacks_witness(&known, &found)
                    || memory.sightings.is_multiple_of(SIGHTINGS)
                {
                    self.write_what_was_seen(&mut memory, known, &found).await;
                }
            }
            return Err(self.lose(&forgotten, memory.sightings));
        }
        memory.sightings = 0;
        let (Some(found), Some(known)) = (all(found), known) else {
            return Err(Hindrance::Away("the streams are being made".to_owned()));
        };
        let is_first = first.is_some();
        let there = self.remember(&mut memory, known, &found, is_first, connection).await?;
        match first {
            Some(Unrecorded::New) => {
                tracing::warn!("made a new store: nothing from before is remembered");
            }
            Some(_) => tracing::info!("took over the store of an older version"),
            None => {}
        }
        Ok(there)
    }

    /// What it means that something is missing, seen so often in a row.
    fn lose(&self, forgotten: &[Forgotten], sightings: usize) -> Hindrance {
        let what = record::sentence(forgotten);
        let mut facts = self.facts();
        if let Some(loss) = &facts.loss {
            return Hindrance::Lost(loss.clone());
        }
        if sightings < SIGHTINGS {
            return Hindrance::Away(format!("{what}; looking again"));
        }
        tracing::error!(
            what,
            "the store forgot something, and the gateway does nothing until an operator accepts that: see \
             docs/nats.md, and run `thingspace-gateway store accept-loss`"
        );
        let loss = Loss { what, noticed: Timestamp::now() };
        facts.loss = Some(loss.clone());
        Hindrance::Lost(loss)
    }

    /// Compares the streams with what is known of them.
    async fn examine(&self, memory: &mut Memory) -> Result<Examined, Hindrance> {
        // Before anything is read: what is read later can only be more.
        let before = self.facts().seen;
        let is_first = !self.facts().knows_the_streams();
        let told = if is_first { logs::seen_by_newest(self).await.map_err(away)? } else { None };
        // Before the record: where an operator accepts a loss, the record is written first.
        let report = self.newest_report().await.map_err(away)?.map(|(_, report)| report);
        let report = report.unwrap_or_default();
        let latest = report.epoch.max(told.map_or(0, Seen::epoch));
        let stored = self.load_record(&record::cell()).await?;
        let version = |stored: &Option<(Version, _)>| stored.as_ref().map(|(version, _)| *version);
        if memory.stored.is_some() && version(&memory.stored) != version(&stored) {
            memory.refreshed = Instant::now();
        }
        memory.stored.clone_from(&stored);
        // Also before the streams are looked at: they can only hold more than another gateway has
        // seen.
        let (known, unclear) = match memory.known.clone() {
            Some(known) => (Some(known), None),
            None => self.recall(memory).await?,
        };
        let found = streams::look(&self.link, &self.wanted).await?;
        self.facts().check_clocks(&self.names, &found).map_err(Hindrance::Wrong)?;
        let (mut known, mut put_back) = match (known, stored.map(|(_, record)| record)) {
            (None, None) => match unclear {
                None => return self.examine_unrecorded(found, latest).await,
                Some(why) => return Err(peers::unclear(&why)),
            },
            (None, Some(stored)) => (stored, false),
            // An operator accepted a loss at another replica.
            (Some(known), Some(stored))
                if stored.epoch > known.epoch && !stored.losses.is_empty() =>
            {
                (stored, false)
            }
            // A gateway that knew of nothing made the streams anew. This one knows that something
            // is lost.
            (Some(known), Some(stored)) if stored.epoch > known.epoch => (known, false),
            // This one made the streams anew, and another one remembers what was there before.
            (Some(known), Some(stored))
                if stored.epoch < known.epoch
                    && known.losses.is_empty()
                    && !record::describes_cells(&stored, &found) =>
            {
                (stored, false)
            }
            (Some(known), Some(stored)) if stored.epoch < known.epoch => (known, true),
            (Some(mut known), Some(stored)) => {
                record::merge(&mut known, &stored);
                (known, false)
            }
            (Some(known), None) => (known, false),
        };
        let marks = self.find_marks(&known, &found).await?;
        if let Some(told) = told {
            let seen = told.in_epoch(known.epoch);
            record::saw(&mut known, seen);
        }
        if report.epoch == known.epoch {
            record::merge(&mut known, &report);
        }
        put_back |= latest > known.epoch;
        let seen = before.in_epoch(known.epoch);
        let mut forgotten = record::forgotten(&self.names, &known, seen, &found, marks);
        for one in self.find_replaced(&mut known, &found).await.map_err(away)? {
            if !forgotten.iter().any(|other| other.stream == one.stream) {
                forgotten.push(one);
            }
        }
        if put_back && !forgotten.iter().any(|one| one.stream == CELLS) {
            forgotten.push(Forgotten::older(&self.names, CELLS, "was put back to an older copy"));
        }
        Ok(Examined { found, forgotten, known: Some(known), first: None, latest })
    }

    /// Streams that have no record, and of which this process knows nothing.
    async fn examine_unrecorded(&self, found: Streams, latest: u64) -> Result<Examined, Hindrance> {
        let what = record::unrecorded(&self.names, &found);
        let mut found = found;
        match &what {
            Unrecorded::Forgotten(forgotten) => {
                let forgotten = forgotten.clone();
                return Ok(Examined { found, forgotten, known: None, first: None, latest });
            }
            Unrecorded::New => {
                streams::make(&self.link, &self.wanted, &found).await?;
                found = streams::look(&self.link, &self.wanted).await?;
                if found
                    .iter()
                    .any(|found| found.as_ref().is_none_or(|found| found.last_sequence > 0))
                {
                    return Err(Hindrance::Away("another gateway makes the streams".to_owned()));
                }
            }
            Unrecorded::Older => {}
        }
        let Some(present) = all(found.clone()) else {
            return Err(Hindrance::Away("the streams are being made".to_owned()));
        };
        let created = present.iter().map(|found| found.created_ns).max().unwrap_or_default();
        let since = Timestamp::from_nanosecond(created.into()).unwrap_or(present[EVENTS].now);
        let known = Some(record::first(&present, since));
        Ok(Examined { found, forgotten: Vec::new(), known, first: Some(what), latest })
    }

    async fn load_record(
        &self,
        cell: &CellName,
    ) -> Result<Option<(Version, StoreRecord)>, Hindrance> {
        let Some(held) = cells::fetch(self, cell).await.map_err(away)? else { return Ok(None) };
        let version = Version(held.sequence);
        match decode_cell(held.payload) {
            Ok(record) => Ok(Some((version, record))),
            Err(error) => {
                Err(Hindrance::Wrong(format!("stream {}: {error}", self.names.cell(cell).0)))
            }
        }
    }

    /// Whether the marks that must be there are. A stream that is missing has no marks to miss.
    async fn find_marks(&self, known: &StoreRecord, found: &Streams) -> Result<Marks, Hindrance> {
        let mut marks = Marks { cells: true, keys: true };
        if known.cells_marked && found[CELLS].is_some() {
            marks.cells = cells::fetch(self, &record::cells_mark()).await.map_err(away)?.is_some();
        }
        if let Some(keys) = &found[KEYS]
            && let Some(mark) = record::oldest_key_mark(known, keys.now)
        {
            marks.keys = cells::fetch(self, &mark).await.map_err(away)?.is_some();
        }
        Ok(marks)
    }

    /// Takes note of what was found, which has forgotten nothing, and refreshes the record where
    /// that is due.
    async fn remember(
        &self,
        memory: &mut Memory,
        mut known: StoreRecord,
        found: &[Found; 3],
        write: bool,
        connection: u64,
    ) -> Result<There, Hindrance> {
        let keep = self.wanted.keep();
        let now = found[EVENTS].now;
        record::observe(&self.names, &mut known, found, keep);
        if memory.stored.is_none() {
            // Before the marks: marks without a record are what is left of a purge.
            self.write_record(memory, &known, true).await?;
        }
        let stored_cells = memory.stored.as_ref().map(|(_, stored)| &stored.cell_subjects);
        let mut write = write || stored_cells != Some(&known.cell_subjects);
        if record::mark_is_due(&known.key_marks, now, keep) {
            let number = u64::try_from(now.as_millisecond()).unwrap_or_default();
            let value = Bytes::from(number.to_string());
            match cells::replace(self, &record::key_mark(number), None, value).await {
                // Another replica's is as good.
                Ok(_) => {
                    known.key_marks.push(record::mark(number, now, keep));
                    write = true;
                }
                Err(error) if known.key_marks.is_empty() => return Err(away(error)),
                Err(error) => tracing::debug!(%error, "cannot set a mark"),
            }
        }
        if !known.cells_marked {
            let value = Bytes::from_static(b"1");
            cells::replace(self, &record::cells_mark(), None, value).await.map_err(away)?;
            (known.cells_marked, write) = (true, true);
        }
        if write {
            self.write_record(memory, &known, true).await?;
        } else {
            self.refresh_record(memory, &known).await?;
        }
        let there = There { epoch: known.epoch, created_ns: found[EVENTS].created_ns, connection };
        self.facts().learn(&known, now);
        self.room.look(&found[EVENTS]);
        memory.known = Some(known);
        Ok(there)
    }

    /// Refreshes the record now, so that the next start knows how far the streams were.
    pub(super) async fn last_refresh(&self) {
        if matches!(&*self.standing.borrow(), Standing::There(_))
            && let Err(why) = self.refresh(true).await
        {
            tracing::debug!(%why, "cannot refresh the record");
        }
    }

    /// Looks at the streams and takes note of what they hold. `write`: writes the record also where
    /// that is not due.
    async fn refresh(&self, write: bool) -> Result<(), Hindrance> {
        let mut memory = self.memory.lock().await;
        let Examined { found, forgotten, known, first, .. } = self.examine(&mut memory).await?;
        let (Some(found), Some(known), true, None) =
            (all(found), known, forgotten.is_empty(), first)
        else {
            return Ok(());
        };
        if write {
            memory.refreshed = Instant::now() - REFRESH;
        }
        self.remember(&mut memory, known, &found, false, 0).await.map(drop)
    }
}

fn all(found: Streams) -> Option<[Found; 3]> {
    let [events, cells, keys] = found;
    Some([events?, cells?, keys?])
}

fn away(error: impl std::fmt::Display) -> Hindrance {
    Hindrance::Away(error.to_string())
}
