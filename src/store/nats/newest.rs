//! Recognises a stream that was put back to an older copy and then written to beyond its former
//! end. Its last sequence tells nothing, but it holds another message at the sequence of the newest
//! one that this process knows.
//!
//! Proves nothing where no message is at that sequence: it may have expired, and a cell may have
//! been replaced.

use async_nats::{
    HeaderMap, HeaderValue,
    header::NATS_MESSAGE_ID,
    jetstream::stream::{RawMessageErrorKind, Stream},
};

use futures_util::future::try_join_all;

use super::{
    Shared,
    facts::Message,
    record::{self, EVENTS, Forgotten, Streams},
};
use crate::{proto::storage::StoreRecord, store::StoreError};

/// The id of a message; empty: it has none, so it is not one of ours.
pub(super) fn id_of(headers: Option<&HeaderMap>) -> &str {
    headers.and_then(|headers| headers.get(NATS_MESSAGE_ID)).map_or("", HeaderValue::as_str)
}

/// Whether a stream holds another message in the place of this one.
async fn holds_another<I>(stream: &Stream<I>, message: &Message) -> Result<bool, StoreError> {
    match stream.get_raw_message(message.sequence).await {
        Ok(held) => Ok(id_of(Some(&held.headers)) != message.id),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(false),
        Err(error) => Err(StoreError::Unavailable(error.to_string())),
    }
}

impl Shared {
    /// Whether the stream of events holds another message in the place of the newest one that this
    /// process knows.
    pub(super) async fn is_other<I>(
        &self,
        events: &Stream<I>,
        epoch: u64,
    ) -> Result<bool, StoreError> {
        let newest = self.facts().newest(epoch, EVENTS);
        match newest {
            Some(newest) => holds_another(events, &newest).await,
            None => Ok(false),
        }
    }

    /// Looks for a message that this process or the record knows, and that a stream no longer
    /// holds. Notes it in the record for the other gateways.
    pub(super) async fn find_replaced(
        &self,
        known: &mut StoreRecord,
        found: &Streams,
    ) -> Result<Vec<Forgotten>, StoreError> {
        let (names, epoch) = (self.names.streams(), known.epoch);
        let recorded = record::replaced(known);
        let looked = (0..names.len()).filter(|which| found[*which].is_some()).map(async |which| {
            let stream = self.stream(names[which]).await?;
            let own = self.facts().newest(epoch, which);
            for message in own.into_iter().chain(recorded[which].clone()) {
                if holds_another(&stream, &message).await? {
                    return Ok(Some((which, message)));
                }
            }
            Ok(None)
        });
        let replaced = try_join_all(looked).await?.into_iter().flatten();
        let forgotten = |(which, message): (usize, Message)| {
            let what = format!(
                "holds another message at {} than before: it was put back to an older copy and written to \
                 since",
                message.sequence
            );
            record::note_replaced(known, which, message);
            Forgotten::older(&self.names, which, &what)
        };
        Ok(replaced.map(forgotten).collect())
    }
}
