//! The report: how far the three streams were, in the stream of events.
//!
//! The record and its copy are cells, and go back with the cells when an operator puts back both
//! streams of cells. The report does not: it is the newest message of a subject of its own in the
//! stream of events. A gateway writes it after the record, after each change of a count of rejected
//! logins, and when it notices a loss. It replaces the report that it has read and knows what that
//! one knew, so the newest one knows everything.
//!
//! Reports are no events. They expire like events.

use async_nats::jetstream::message::PublishMessage;
use prost::Message as _;
use tokio::time::sleep;

use super::{
    Shared,
    facts::Seen,
    link::backoff,
    logs::SEEN,
    publish::{RETRY_LEAST, RETRY_MOST, publish_next},
    record,
};
use crate::{
    proto::storage::StoreRecord,
    store::{StoreError, decode_cell},
};

/// How often a report is written again when other gateways report at the same time.
const TRIES: usize = 10;

impl Shared {
    /// The newest report and its sequence. One that cannot be read counts as none.
    pub(super) async fn newest_report(&self) -> Result<Option<(u64, StoreRecord)>, StoreError> {
        let newest = self.newest_message(&self.names.events, &self.names.report()).await?;
        Ok(newest.map(|newest| (newest.sequence, decode_cell(newest.payload).unwrap_or_default())))
    }

    /// Reports how far the streams were. A stream of events that is full takes no report: what is
    /// counted then is protected by the next one.
    pub(super) async fn report(&self, known: &StoreRecord) -> Result<(), StoreError> {
        for tries in 0..TRIES {
            let mut report = record::positions(known);
            let (expected, newest) = self.newest_report().await?.unwrap_or_default();
            if newest.epoch == report.epoch {
                record::merge(&mut report, &newest);
            }
            if newest.epoch > report.epoch {
                let why = "another gateway accepts a loss".to_owned();
                return Err(StoreError::Unavailable(why));
            }
            if newest == report {
                return Ok(());
            }
            let message = PublishMessage::build().header(SEEN, Seen::of(&report).to_string());
            let value = report.encode_to_vec().into();
            match publish_next(self, self.names.report(), expected, value, message).await {
                Ok(Some(_)) => return Ok(()),
                Ok(None) => sleep(backoff(tries, RETRY_LEAST, RETRY_MOST)).await,
                Err(StoreError::Full(why)) => {
                    tracing::debug!(why, "cannot report how far the streams were");
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Unavailable("other gateways report at the same time".to_owned()))
    }
}
