//! Writes the record and its copy.

use bytes::Bytes;
use prost::Message as _;
use tokio::time::Instant;

use super::{Memory, REFRESH, away};
use crate::{
    proto::storage::StoreRecord,
    store::{
        StoreError,
        nats::{Shared, cells, record, streams::Hindrance},
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
                self.write_copy(known).await.or_else(|error| if must { Err(error) } else { Ok(()) })
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
    pub(super) async fn write_copy(&self, known: &StoreRecord) -> Result<(), Hindrance> {
        let held = self.load_record(&record::copy()).await?.map(|(version, _)| version);
        let value = Bytes::from(known.encode_to_vec());
        cells::replace(self, &record::copy(), held, value).await.map(drop).map_err(away)
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
