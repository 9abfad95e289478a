//! Writes the record, its copy and the report.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message as _;
use tokio::time::{Instant, sleep};

use super::{MonitorState, REFRESH_EVERY};
use crate::{
    backoff::backoff,
    proto::storage::StoreRecord,
    store::{
        StoreError, Version,
        nats::{
            Core, cells,
            facts::Positions,
            publish::{RETRY_MAX, RETRY_MIN},
            record::{self, CELLS, EVENTS, KEYS, Streams},
            reports::TRIES,
            streams::StreamsError,
        },
    },
};

/// While messages are stored, the time between two writes of the record by the same process.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// After this many writes of the record in a row without an acknowledgement, while the servers
/// answer everything else, they count as unable to store anything.
const UNACKNOWLEDGED: usize = 2;

const NO_ACKNOWLEDGEMENT: &str = "the NATS servers answer, but do not acknowledge what they \
                                  should store. A server whose disk is full does so: free space \
                                  on its disk and restart it";

fn encoded(record: &StoreRecord) -> Bytes {
    record.encode_to_vec().into()
}

impl MonitorState {
    /// Returns whether the stored record lacks what other gateways cannot notice: that the cells
    /// are in a new stream, or that messages were replaced.
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
    /// written. Without it, a failure is only logged, because another replica may write them.
    pub(super) async fn write_record(
        &self,
        state: &mut MonitorState,
        known: &StoreRecord,
        must: bool,
    ) -> Result<(), StreamsError> {
        let write = async {
            let version = self.replace_record(state, known).await?;
            let copy = self.write_copy(known).await?.unwrap_or(Version(0));
            let mut known = known.clone();
            record::saw(&mut known, [0, version.0, copy.0]);
            Ok(self.report(&known).await?)
        };
        match write.await {
            Err(why) if !must => {
                tracing::debug!(%why, "cannot refresh the record");
                Ok(())
            }
            result => result,
        }
    }

    /// Writes only the record.
    async fn replace_record(
        &self,
        state: &mut MonitorState,
        known: &StoreRecord,
    ) -> Result<Version, StreamsError> {
        let expected = state.stored.as_ref().map(|(version, _)| *version);
        let written = cells::replace(self, &record::cell(), expected, encoded(known)).await;
        match &written {
            Err(StoreError::UnknownOutcome(_)) => state.unacknowledged += 1,
            _ => state.unacknowledged = 0,
        }
        let Some(version) = written? else {
            return Err(StreamsError::away("another gateway writes the record"));
        };
        state.stored = Some((version, known.clone()));
        state.refreshed = Instant::now();
        Ok(version)
    }

    /// Writes the copy of the record, and keeps the positions and cells in it that other replicas
    /// added. Returns `None` if the copy is current.
    pub(in crate::store::nats) async fn write_copy(
        &self,
        known: &StoreRecord,
    ) -> Result<Option<Version>, StreamsError> {
        for tries in 0..TRIES {
            let (expected, copy) = self.load_record(&record::copy()).await?.unzip();
            let mut known = known.clone();
            if let Some(copy) = copy {
                if copy.epoch == known.epoch {
                    record::merge(&mut known, &record::without_marks(copy.clone()));
                }
                if copy == known {
                    return Ok(None);
                }
            }
            let written = cells::replace(self, &record::copy(), expected, encoded(&known)).await?;
            if written.is_some() {
                return Ok(written);
            }
            sleep(backoff(tries, RETRY_MIN, RETRY_MAX)).await;
        }
        Err(StreamsError::away("other gateways write the copy of the record at the same time"))
    }

    /// Writes the record and its copy when this process has stored messages: at once, and then
    /// every [`PROGRESS_EVERY`] while it stores more.
    pub(in crate::store::nats) async fn keep_record_current(self: Arc<Self>) {
        loop {
            self.has_stored.notified().await;
            if let Err(why) = self.record_progress().await {
                tracing::debug!(%why, "cannot write the record after something was stored");
                self.has_stored.notify_one();
            }
            sleep(PROGRESS_EVERY).await;
        }
    }

    /// Writes what this process has stored, unless the record already covers it. The copy is
    /// written first, because the record shows whether both are done.
    ///
    /// Writes a report only if no message was added to the stream of events for a minute: each
    /// event has the positions of the streams, too, and reports take space until they expire.
    async fn record_progress(&self) -> Result<(), StreamsError> {
        self.usable().await?;
        let mut state = self.monitor.lock().await;
        let (Some(mut known), 0) = (self.current_record(), state.losses_in_a_row) else {
            return Ok(());
        };
        let epoch = known.epoch;
        let newest = [EVENTS, CELLS, KEYS]
            .map(|stream| self.facts().newest(epoch, stream).map_or(0, |newest| newest.sequence));
        // Without a record, or with one of another epoch, the next check decides what it means.
        let Some((version, stored)) = self.load_record(&record::cell()).await? else {
            return Ok(());
        };
        let recorded = Positions::of(&stored).in_epoch(epoch);
        let is_covered = newest.iter().zip(recorded).all(|(newest, recorded)| *newest <= recorded);
        if stored.epoch != epoch || is_covered {
            return Ok(());
        }
        record::merge(&mut known, &stored);
        state.stored = Some((version, stored));
        self.write_copy(&known).await?;
        self.replace_record(&mut state, &known).await?;
        if self.age_of_newest_event().await?.is_none_or(|age| age >= REFRESH_EVERY) {
            self.report(&known).await?;
        }
        Ok(())
    }

    /// Stores what this process knows of streams with a loss, so that the other gateways, and those
    /// that start later, notice the loss, too. Writes nothing to a stream that is shorter than
    /// before. If all are shorter, writes only the report: the two other streams still show the
    /// loss.
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
            tracing::debug!(%why, "cannot write what is known about a loss");
        }
        state.known = Some(known);
    }

    /// Writes the record if that is due: at the first check, after a minute without a change of the
    /// record, and after a write that was not acknowledged, to learn whether the servers store
    /// anything. An idle gateway writes it, too, so it notices a full disk before a caller does.
    pub(super) async fn refresh_record(
        &self,
        state: &mut MonitorState,
        known: &StoreRecord,
    ) -> Result<(), StreamsError> {
        if !self.space.awaits_acknowledgement() {
            // The servers have acknowledged a message since.
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
