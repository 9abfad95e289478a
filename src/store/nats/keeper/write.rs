//! Writes the record and its copy.

use bytes::Bytes;
use prost::Message as _;
use tokio::time::Instant;

use super::{Memory, REFRESH, away};
use crate::{
    proto::storage::StoreRecord,
    store::{
        StoreError, Version,
        nats::{
            Shared, cells,
            record::{self, CELLS, EVENTS, KEYS, Streams},
            streams::Hindrance,
        },
    },
};

/// How often in a row the record may go unacknowledged, while the servers answer everything else,
/// before they count as unable to store anything.
const UNACKNOWLEDGED: usize = 2;

const NO_ACKNOWLEDGEMENT: &str = "the NATS servers answer and acknowledge nothing that they should store. A server whose \
                                  disk is full does so: make room and restart it";

impl Shared {
    /// `must`: it is not just a refresh, which another replica may have made as well.
    pub(super) async fn write_record(
        &self,
        memory: &mut Memory,
        known: &StoreRecord,
        must: bool,
    ) -> Result<(), Hindrance> {
        let expected = memory.stored.as_ref().map(|(version, _)| *version);
        let value = Bytes::from(known.encode_to_vec());
        let written = cells::replace(self, &record::cell(), expected, value).await;
        match &written {
            Err(StoreError::Ambiguous(_)) => memory.unacknowledged += 1,
            _ => memory.unacknowledged = 0,
        }
        match written {
            Ok(Some(version)) => {
                memory.stored = Some((version, known.clone()));
                memory.refreshed = Instant::now();
                let rest = async {
                    let copy = self.write_copy(known).await?.unwrap_or(Version(0));
                    let mut known = known.clone();
                    record::saw(&mut known, [0, version.0, copy.0]);
                    self.report(&known).await.map_err(away)
                };
                rest.await.or_else(|error| if must { Err(error) } else { Ok(()) })
            }
            Ok(None) if must => {
                Err(Hindrance::Away("another gateway writes the record".to_owned()))
            }
            Err(error) if must => Err(away(error)),
            Ok(None) => Ok(()),
            Err(error) => {
                tracing::debug!(%error, "cannot refresh the record");
                Ok(())
            }
        }
    }

    /// One that another replica writes at the same time is as good.
    async fn write_copy(&self, known: &StoreRecord) -> Result<Option<Version>, Hindrance> {
        let held = self.load_record(&record::copy()).await?;
        if held.as_ref().is_some_and(|(_, copy)| copy == known) {
            return Ok(None);
        }
        let held = held.map(|(version, _)| version);
        let value = Bytes::from(known.encode_to_vec());
        cells::replace(self, &record::copy(), held, value).await.map_err(away)
    }

    /// Writes down what this process has seen of streams that forgot it, so that the other gateways
    /// and those that start now notice, too. Each stream takes its part, unless it is shorter than
    /// it was; where all are, the report is written nevertheless: it makes only the stream of
    /// events longer.
    pub(super) async fn write_what_was_seen(
        &self,
        memory: &mut Memory,
        mut known: StoreRecord,
        found: &Streams,
    ) {
        let seen = self.facts().seen.in_epoch(known.epoch);
        record::saw(&mut known, seen);
        let shorter = record::shorter(&known, found);
        let is_stored = memory.stored.as_ref().is_some_and(|(_, stored)| *stored == known);
        let record = async {
            if shorter[CELLS] || is_stored {
                return Ok(());
            }
            let expected = memory.stored.as_ref().map(|(version, _)| *version);
            let value = Bytes::from(known.encode_to_vec());
            cells::replace(self, &record::cell(), expected, value).await.map(drop).map_err(away)
        };
        let copy =
            async { if shorter[KEYS] { Ok(()) } else { self.write_copy(&known).await.map(drop) } };
        let report = async {
            if shorter[EVENTS] && shorter != [true; 3] {
                return Ok(());
            }
            self.report(&known).await.map_err(away)
        };
        for written in [record.await, copy.await, report.await] {
            if let Err(why) = written {
                tracing::debug!(%why, "cannot write down what was lost");
            }
        }
        memory.known = Some(known);
    }

    /// Writes the record when that is due: at the first look, every minute, and whenever a write
    /// was not acknowledged, to learn whether the servers store anything.
    ///
    /// An idle gateway writes it, too: it finds out that a disk is full before a caller does.
    pub(super) async fn refresh_record(
        &self,
        memory: &mut Memory,
        known: &StoreRecord,
    ) -> Result<(), Hindrance> {
        if !self.room.awaits_acknowledgement() {
            // Something was stored since.
            memory.unacknowledged = 0;
            if memory.refreshed.elapsed() < REFRESH {
                return Ok(());
            }
        }
        self.write_record(memory, known, false).await?;
        if memory.unacknowledged >= UNACKNOWLEDGED {
            self.room.refused(0, NO_ACKNOWLEDGEMENT.to_owned());
        }
        Ok(())
    }
}
