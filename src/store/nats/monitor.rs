//! The monitor: a task that checks the streams every few seconds, after each connection, and when a
//! read or write fails. It decides whether the store can be used, and notices losses.
//!
//! A loss must be found several times in a row before it counts, because a server that was just
//! elected may lag. Until then the store is unavailable, as if NATS did not answer. A loss that is
//! no longer found is forgotten: a leader may have lagged for longer, or an operator has put back
//! what was missing.

mod accept;
mod examine;
mod peers;
mod write;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use self::examine::{Examination, all};
use super::{
    Core,
    availability::StoreId,
    cells,
    record::{self, EVENTS, StreamLoss, Unrecorded, marks},
    streams::{self, StreamInfo, StreamsError},
};
use crate::{
    backoff::backoff,
    proto::storage::StoreRecord,
    store::{CellName, Loss, Version, decode_cell},
};

/// The time between two checks of streams that can be used.
const CHECK_EVERY: Duration = Duration::from_secs(3);

/// The back-off between two checks of streams that cannot be used.
const RECHECK_MIN: Duration = Duration::from_millis(100);
const RECHECK_MAX: Duration = Duration::from_secs(5);

/// The time between two checks of streams that may have lost something, and how often in a row a
/// loss must be found.
const CONFIRM_EVERY: Duration = Duration::from_secs(1);
const CONFIRMATIONS: usize = 5;

/// How often in a row a check must fail before a store that could be used is unavailable. Each
/// check takes up to [`ANSWER`](super::link::ANSWER).
const FAILED_CHECKS: usize = 3;

/// The record is written again if no replica has changed it for this time.
const REFRESH_EVERY: Duration = Duration::from_mins(1);

/// What this process knows of the store.
#[derive(Debug)]
pub(super) struct MonitorState {
    /// What the streams must hold; unknown before the first check.
    known: Option<StoreRecord>,
    /// The stored record when this process last read or wrote it.
    stored: Option<(Version, StoreRecord)>,
    /// When this process last wrote the stored record or saw it changed.
    refreshed: Instant,
    /// How often in a row a loss was found.
    losses_in_a_row: usize,
    /// How often in a row a write of the record was not acknowledged.
    unacknowledged: usize,
}

impl Default for MonitorState {
    fn default() -> Self {
        // In the past, so that the first check writes the record: a process that restarts again and
        // again must write it, too.
        let refreshed = Instant::now() - REFRESH_EVERY;
        Self { known: None, stored: None, refreshed, losses_in_a_row: 0, unacknowledged: 0 }
    }
}

impl Core {
    /// Checks the streams until the store is closed.
    pub(super) async fn monitor(self: Arc<Self>, servers: String) {
        let mut link = self.link.state.clone();
        let (mut failures, mut is_logged, mut answers_peers) = (0, false, false);
        loop {
            let state = link.borrow_and_update().clone();
            if !state.connected {
                if let Some(error) = state.error.as_ref().filter(|_| !is_logged) {
                    tracing::warn!(servers, error, "cannot connect to NATS; trying again");
                    is_logged = true;
                }
                let why = state.error.map_or_else(String::new, |error| format!(": {error}"));
                self.set_availability(Err(StreamsError::Away(format!(
                    "not connected to NATS{why}"
                ))));
                if link.changed().await.is_err() {
                    return;
                }
                continue;
            }
            is_logged = false;
            let result = tokio::select! {
                result = self.check_streams(state.number) => result,
                changed = link.changed() => if changed.is_err() { return } else { continue },
            };
            if !answers_peers && self.facts().record.is_some() {
                let answering = Arc::clone(&self).answer_peers();
                tokio::spawn(self.end.clone().run_until_cancelled_owned(answering));
                answers_peers = true;
            }
            let loss = self.facts().loss.clone();
            let result = match (result, loss) {
                (Err(StreamsError::Away(_)), Some(loss)) => Err(StreamsError::Lost(loss)),
                (result, _) => result,
            };
            failures = if result.is_ok() { 0 } else { failures + 1 };
            let confirms_loss = self.monitor.lock().await.losses_in_a_row > 0;
            let is_ignored = matches!(result, Err(StreamsError::Away(_)))
                && !confirms_loss
                && failures < FAILED_CHECKS
                && self.is_available();
            if !is_ignored {
                self.set_availability(result);
            }
            let wait = match failures {
                0 => CHECK_EVERY,
                _ if confirms_loss => CONFIRM_EVERY,
                _ => backoff(failures, RECHECK_MIN, RECHECK_MAX),
            };
            tokio::select! {
                changed = link.changed() => if changed.is_err() { return },
                // Many calls may fail at the same time. One check is enough for them.
                () = self.check_now.notified() => sleep(RECHECK_MIN).await,
                () = sleep(wait) => {}
            }
        }
    }

    /// Checks the streams once. `connection`: the number of the connection that is used.
    async fn check_streams(&self, connection: u64) -> Result<StoreId, StreamsError> {
        streams::check_server(&self.link)?;
        let mut state = self.monitor.lock().await;
        let Examination { found, losses, known, first, .. } = self.examine(&mut state).await?;
        if !losses.is_empty() {
            state.losses_in_a_row += 1;
            if let Some(known) = known {
                self.facts().record = Some(known.clone());
                // Unless the loss is certain, the leader may lag.
                let is_certain = state.must_warn_others(&known, &found);
                if is_certain || state.losses_in_a_row.is_multiple_of(CONFIRMATIONS) {
                    self.record_losses(&mut state, known, &found).await;
                }
            }
            return Err(self.loss_error(&losses, state.losses_in_a_row));
        }
        state.losses_in_a_row = 0;
        let (Some(found), Some(known)) = (all(found), known) else {
            return Err(StreamsError::away("the streams are being made"));
        };
        let id = self.remember(&mut state, known, &found, first.is_some(), connection).await?;
        match first {
            Some(Unrecorded::New) => {
                tracing::warn!("made a new store: nothing from before is remembered");
            }
            Some(_) => tracing::info!("took over the store of an older version"),
            None => {}
        }
        Ok(id)
    }

    /// Turns losses into an error. They count, and are logged, once they were found
    /// [`CONFIRMATIONS`] times in a row.
    fn loss_error(&self, losses: &[StreamLoss], in_a_row: usize) -> StreamsError {
        let what = record::sentence(losses);
        let mut facts = self.facts();
        if let Some(loss) = &facts.loss {
            return StreamsError::Lost(loss.clone());
        }
        if in_a_row < CONFIRMATIONS {
            return StreamsError::Away(format!("{what}; checking again"));
        }
        tracing::error!(
            what,
            "the store lost something. The gateway does nothing until an operator accepts that: \
             see docs/nats.md, and run `thingspace-gateway store accept-loss`"
        );
        let loss = Loss { what, noticed: Timestamp::now() };
        facts.loss = Some(loss.clone());
        StreamsError::Lost(loss)
    }

    pub(super) async fn load_record(
        &self,
        cell: &CellName,
    ) -> Result<Option<(Version, StoreRecord)>, StreamsError> {
        let Some(message) = cells::fetch(self, cell).await? else { return Ok(None) };
        let version = Version(message.sequence);
        let stream = self.names.cell(cell).0;
        let record = decode_cell(message.payload)
            .map_err(|error| StreamsError::Wrong(format!("stream {stream}: {error}")))?;
        Ok(Some((version, record)))
    }

    /// Remembers what the streams hold after a check that found no loss. Sets the marks that are
    /// due. Writes the record if `write` is set, if it lacks a cell or a new mark, or if it is due.
    async fn remember(
        &self,
        state: &mut MonitorState,
        mut known: StoreRecord,
        found: &[StreamInfo; 3],
        write: bool,
        connection: u64,
    ) -> Result<StoreId, StreamsError> {
        let retention = self.configs.retention();
        let now = found[EVENTS].now;
        record::observe(&self.names, &mut known, found, retention);
        if state.stored.is_none() {
            // Must precede the marks: marks without a record mean that the record was purged.
            self.write_record(state, &known, true).await?;
        }
        let stored_cells = state.stored.as_ref().map(|(_, stored)| &stored.cell_subjects);
        let mut write = write || stored_cells != Some(&known.cell_subjects);
        if marks::is_due(&known.key_marks, now, retention) {
            let number = u64::try_from(now.as_millisecond()).unwrap_or_default();
            let value = Bytes::from(number.to_string());
            match cells::replace(self, &marks::key(number), None, value).await {
                // `None`: another replica has set it.
                Ok(_) => {
                    known.key_marks.push(marks::new(number, now, retention));
                    write = true;
                }
                Err(error) if known.key_marks.is_empty() => return Err(error.into()),
                Err(error) => tracing::debug!(%error, "cannot set a mark"),
            }
        }
        if !known.cells_marked {
            let value = Bytes::from_static(b"1");
            cells::replace(self, &record::cells_mark(), None, value).await?;
            (known.cells_marked, write) = (true, true);
        }
        if write {
            self.write_record(state, &known, true).await?;
        } else {
            self.refresh_record(state, &known).await?;
        }
        let id = StoreId { epoch: known.epoch, created_ns: found[EVENTS].created_ns(), connection };
        self.facts().learn(&known, now);
        self.space.inspected(&found[EVENTS]);
        state.known = Some(known);
        Ok(id)
    }

    /// Writes the record, so that the next start knows how far the streams were.
    pub(super) async fn last_refresh(&self) {
        if self.is_available()
            && let Err(why) = self.refresh(true).await
        {
            tracing::debug!(%why, "cannot refresh the record");
        }
    }

    /// Remembers what the streams hold now. `write`: writes the record even if it is not due.
    pub(super) async fn refresh(&self, write: bool) -> Result<(), StreamsError> {
        let mut state = self.monitor.lock().await;
        let Examination { found, losses, known, first, .. } = self.examine(&mut state).await?;
        let (Some(found), Some(known), true, None) = (all(found), known, losses.is_empty(), first)
        else {
            return Ok(());
        };
        if write {
            state.refreshed = Instant::now() - REFRESH_EVERY;
        }
        self.remember(&mut state, known, &found, false, 0).await.map(drop)
    }
}
