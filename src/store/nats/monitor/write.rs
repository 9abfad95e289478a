//! Writes the record, its copy and the report.

use bytes::Bytes;
use prost::Message as _;
use tokio::time::Instant;

use super::{MonitorState, REFRESH_EVERY};
use crate::{
    proto::storage::StoreRecord,
    store::{
        StoreError, Version,
        nats::{
            Core, cells,
            record::{self, CELLS, EVENTS, KEYS, Streams},
            streams::StreamsError,
        },
    },
};

/// How often in a row a write of the record may go unacknowledged, while the servers answer
/// everything else, before they count as unable to store anything.
const UNACKNOWLEDGED: usize = 2;

const NO_ACKNOWLEDGEMENT: &str = "the NATS servers answer and acknowledge nothing that they \
                                  should store. A server whose disk is full does so: make room \
                                  and restart it";

fn encoded(record: &StoreRecord) -> Bytes {
    record.encode_to_vec().into()
}

impl MonitorState {
    /// Whether the stored record lacks what other gateways cannot notice: that the cells are in a
    /// new stream, or that messages were replaced.
    pub(super) fn must_warn_others(&self, known: &StoreRecord, found: &Streams) -> bool {
        let stored = self.stored.as_ref().map(|(_, record)| record);
        match stored.filter(|stored| stored.epoch == known.epoch) {
            Some(stored) => record::replaced(stored) != record::replaced(known),
            None => found[CELLS].is_some() && !record::describes_cells(known, found),
        }
    }
}

impl Core {
    /// Writes the record, the copy and the report. With `must`, it fails if one of them is not
    /// written; otherwise it is a refresh, which another replica may make as well.
    pub(super) async fn write_record(
        &self,
        state: &mut MonitorState,
        known: &StoreRecord,
        must: bool,
    ) -> Result<(), StreamsError> {
        let expected = state.stored.as_ref().map(|(version, _)| *version);
        let written = cells::replace(self, &record::cell(), expected, encoded(known)).await;
        match &written {
            Err(StoreError::UnknownOutcome(_)) => state.unacknowledged += 1,
            _ => state.unacknowledged = 0,
        }
        let done = match written {
            Ok(Some(version)) => {
                state.stored = Some((version, known.clone()));
                state.refreshed = Instant::now();
                self.write_copy_and_report(known, version).await
            }
            Ok(None) => Err(StreamsError::away("another gateway writes the record")),
            Err(error) => Err(error.into()),
        };
        match done {
            Err(why) if !must => {
                tracing::debug!(%why, "cannot refresh the record");
                Ok(())
            }
            done => done,
        }
    }

    async fn write_copy_and_report(
        &self,
        known: &StoreRecord,
        version: Version,
    ) -> Result<(), StreamsError> {
        let copy = self.write_copy(known).await?.unwrap_or(Version(0));
        let mut known = known.clone();
        record::saw(&mut known, [0, version.0, copy.0]);
        Ok(self.report(&known).await?)
    }

    /// Returns `None` if the copy is current, or if another replica writes it at the same time.
    async fn write_copy(&self, known: &StoreRecord) -> Result<Option<Version>, StreamsError> {
        let copy = self.load_record(&record::copy()).await?;
        if copy.as_ref().is_some_and(|(_, copy)| copy == known) {
            return Ok(None);
        }
        let expected = copy.map(|(version, _)| version);
        Ok(cells::replace(self, &record::copy(), expected, encoded(known)).await?)
    }

    /// Stores what this process knows of streams that lost it, so that the other gateways, and
    /// those that start now, notice it, too. Nothing is written to a stream that is shorter than
    /// before. If all are, the report is written: the two other streams still show the loss.
    pub(super) async fn record_losses(
        &self,
        state: &mut MonitorState,
        mut known: StoreRecord,
        found: &Streams,
    ) {
        let seen = self.facts().seen.in_epoch(known.epoch);
        record::saw(&mut known, seen);
        let shorter = record::shorter(&known, found);
        let mut results = Vec::new();
        if !shorter[CELLS] && state.stored.as_ref().is_none_or(|(_, stored)| *stored != known) {
            let expected = state.stored.as_ref().map(|(version, _)| *version);
            let written = cells::replace(self, &record::cell(), expected, encoded(&known)).await;
            results.push(written.map(drop).map_err(StreamsError::from));
        }
        if !shorter[KEYS] {
            results.push(self.write_copy(&known).await.map(drop));
        }
        if !shorter[EVENTS] || shorter == [true; 3] {
            results.push(self.report(&known).await.map_err(StreamsError::from));
        }
        for why in results.into_iter().filter_map(Result::err) {
            tracing::debug!(%why, "cannot store what was lost");
        }
        state.known = Some(known);
    }

    /// Writes the record if that is due: at the first check, every minute, and after a write that
    /// was not acknowledged, to learn whether the servers store anything. An idle gateway writes
    /// it, too, so it notices a full disk before a caller does.
    pub(super) async fn refresh_record(
        &self,
        state: &mut MonitorState,
        known: &StoreRecord,
    ) -> Result<(), StreamsError> {
        if !self.space.awaits_acknowledgement() {
            // Something was stored since.
            state.unacknowledged = 0;
            if state.refreshed.elapsed() < REFRESH_EVERY {
                return Ok(());
            }
        }
        self.write_record(state, known, false).await?;
        if state.unacknowledged >= UNACKNOWLEDGED {
            self.space.refused(0, NO_ACKNOWLEDGEMENT.to_owned());
        }
        Ok(())
    }
}
