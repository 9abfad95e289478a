//! What messages say about the last sequences of the three streams: headers and reports.
//!
//! Each event and each swapped cell has a header that says how far its sender had seen the streams.
//! The newest message of a stream always exists, so its header shows a gateway that starts whether
//! the other streams were put back to an older copy.
//!
//! The record and its copy are cells. If both streams of cells are put back to an older copy, so
//! are they. The report is not: it is the newest message of a subject of its own in the stream of
//! events. A gateway writes one after each change of a count of rejected logins, when it notices a
//! loss, and with the record when the stream of events got nothing for a minute. A report contains
//! what the one before it contained, and is written by compare-and-swap. So the newest report
//! contains everything.
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

/// The header of a message that says up to which sequences its sender had seen the three streams.
pub(super) const SEEN: &str = "Gateway-Seen";

/// How often a report or the copy of the record is written again when other gateways write it at
/// the same time.
pub(super) const TRIES: usize = 10;

impl Core {
    /// The sequences up to which the sender of a stream's newest message had seen the streams;
    /// zeros if the message does not say that.
    pub(super) async fn seen_by_newest(&self, stream: usize) -> Result<Positions, StoreError> {
        let stream = self.names.streams()[stream];
        let newest = self.newest_message(stream, &self.names.all_of(stream)).await?;
        let seen = newest.and_then(|newest| newest.headers.get(SEEN)?.as_str().parse().ok());
        Ok(seen.unwrap_or_default())
    }

    /// The sequence and the content of the newest report. If there is none, they are zero and
    /// empty. The content of one that cannot be read is empty, too.
    pub(super) async fn newest_report(&self) -> Result<(u64, StoreRecord), StoreError> {
        let newest = self.newest_message(&self.names.events, &self.names.report()).await?;
        let Some(newest) = newest else { return Ok(Default::default()) };
        Ok((newest.sequence, decode_cell(newest.payload).unwrap_or_default()))
    }

    /// Writes a report. If the stream of events is full, it takes no report, which is no error.
    pub(super) async fn report(&self, known: &StoreRecord) -> Result<(), StoreError> {
        for tries in 0..TRIES {
            let mut report = record::positions(known);
            let (expected, newest) = self.newest_report().await?;
            if newest.epoch > report.epoch {
                let why = "another gateway accepts a loss".to_owned();
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
                    tracing::debug!(why, "cannot report how far the streams were");
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Unavailable("other gateways report at the same time".to_owned()))
    }
}
