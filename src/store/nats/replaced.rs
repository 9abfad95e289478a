//! Recognises a stream that was put back to an older copy and then written to beyond its former
//! end. Its last sequence does not show that, but it holds another message at the sequence of one
//! that this process knows: the known one was *replaced*. No message at that sequence proves
//! nothing, because an event may have expired and a cell may have been swapped.

use async_nats::{
    HeaderMap, HeaderValue,
    header::NATS_MESSAGE_ID,
    jetstream::stream::{RawMessageErrorKind, Stream},
};
use futures_util::future::try_join_all;

use super::{
    Core,
    facts::MessageId,
    record::{self, EVENTS, StreamLoss, Streams},
};
use crate::{proto::storage::StoreRecord, store::StoreError};

/// The id of a message; empty if it has none, because no gateway sent it.
pub(super) fn id_of(headers: Option<&HeaderMap>) -> &str {
    headers.and_then(|headers| headers.get(NATS_MESSAGE_ID)).map_or("", HeaderValue::as_str)
}

/// Whether a stream holds another message at the sequence of this one.
async fn holds_another<I>(stream: &Stream<I>, message: &MessageId) -> Result<bool, StoreError> {
    match stream.get_raw_message(message.sequence).await {
        Ok(held) => Ok(id_of(Some(&held.headers)) != message.id),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(false),
        Err(error) => Err(StoreError::unavailable(error)),
    }
}

impl Core {
    /// Whether the stream of events holds another message at the sequence of the newest one that
    /// this process knows.
    pub(super) async fn holds_another_event<I>(
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

    /// Finds messages that were replaced, of those that this process or the record knows. Adds them
    /// to the record for the other gateways.
    pub(super) async fn find_replaced(
        &self,
        known: &mut StoreRecord,
        found: &Streams,
    ) -> Result<Vec<StreamLoss>, StoreError> {
        let (names, epoch) = (self.names.streams(), known.epoch);
        let recorded = record::replaced(known);
        let present = (0..names.len()).filter(|which| found[*which].is_some());
        let checks = present.map(async |which| {
            let stream = self.stream(names[which]).await?;
            let own = self.facts().newest(epoch, which);
            for message in own.into_iter().chain(recorded[which].clone()) {
                if holds_another(&stream, &message).await? {
                    return Ok::<_, StoreError>(Some((which, message)));
                }
            }
            Ok(None)
        });
        let replaced = try_join_all(checks).await?.into_iter().flatten();
        let loss = |(which, message): (usize, MessageId)| {
            let what = format!(
                "holds another message at {} than before: it was put back to an older copy and \
                 written to since",
                message.sequence
            );
            record::note_replaced(known, which, message);
            StreamLoss::older(&self.names, which, &what)
        };
        Ok(replaced.map(loss).collect())
    }
}
