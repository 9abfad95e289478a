//! Headers and reports: they contain the last sequences of the three streams.
//!
//! Each event and each swapped cell has a header with the last sequences that its sender had seen.
//! The newest message of a stream always exists. At a start its header shows whether the other
//! streams were put back to an older copy.
//!
//! If both streams of cells are put back to an older copy, so are the record and its copy, because
//! they are cells. Reports are not: they are in the stream of events, with their own subject. A
//! replica writes one after each change of a count of rejected logins, when it notices a loss, and
//! with the record when the stream of events got nothing for a minute. A report contains what the
//! one before it contained, and is written by compare-and-swap. So the newest one contains
//! everything.
//!
//! A report is not an event, but expires like one.

use async_nats::jetstream::message::PublishMessage;
use prost::Message as _;
use tokio::time::sleep;

use super::{
    Core,
    facts::Positions,
    publish::{RETRY_MAX, RETRY_MIN, publish_next},
    record,
};
use crate::{
    backoff::backoff,
    proto::storage::StoreRecord,
    store::{StoreError, decode_cell},
};

/// The header with the last sequences of the three streams that the sender had seen.
pub(super) const SEEN: &str = "Gateway-Seen";

/// How often a report or the copy of the record is written again when other replicas write it at
/// the same time.
pub(super) const TRIES: usize = 10;

impl Core {
    /// Returns the last sequences that the sender of a stream's newest message had seen, or zeros
    /// if the message does not contain them.
    pub(super) async fn seen_by_newest(&self, stream: usize) -> Result<Positions, StoreError> {
        let stream = self.names.streams()[stream];
        let newest = self.newest_message(stream, &self.names.all_of(stream)).await?;
        let seen = newest.and_then(|newest| newest.headers.get(SEEN)?.as_str().parse().ok());
        Ok(seen.unwrap_or_default())
    }

    /// Returns the sequence and the content of the newest report, or zero and an empty content if
    /// there is none. The content of a report that cannot be read is empty, too.
    pub(super) async fn newest_report(&self) -> Result<(u64, StoreRecord), StoreError> {
        let newest = self.newest_message(&self.names.events, &self.names.report()).await?;
        let Some(newest) = newest else { return Ok(Default::default()) };
        Ok((newest.sequence, decode_cell(newest.payload).unwrap_or_default()))
    }

    /// Writes a report, unless the stream of events is full.
    pub(super) async fn report(&self, known: &StoreRecord) -> Result<(), StoreError> {
        for tries in 0..TRIES {
            let mut report = record::positions(known);
            let (expected, newest) = self.newest_report().await?;
            if newest.epoch > report.epoch {
                let why = "another replica accepts a loss".to_owned();
                return Err(StoreError::Unavailable(why));
            }
            if newest.epoch == report.epoch {
                record::merge(&mut report, &newest);
            }
            if newest == report {
                return Ok(());
            }
            let message = PublishMessage::build().header(SEEN, Positions::of(&report).to_string());
            let value = report.encode_to_vec().into();
            match publish_next(self, self.names.report(), expected, value, message).await {
                Ok(Some(_)) => return Ok(()),
                Ok(None) => sleep(backoff(tries, RETRY_MIN, RETRY_MAX)).await,
                Err(StoreError::Full(why)) => {
                    tracing::debug!(why, "no report: the stream of events is full");
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Unavailable("other replicas write reports at the same time".to_owned()))
    }
}
