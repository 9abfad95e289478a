//! Recognises a stream that was put back to an older copy and then written to beyond its former
//! end. Its last sequence does not show that. But it holds another message at the sequence of a
//! message that this process knows: the known message was *replaced*. A sequence without a message
//! proves nothing, because an event may have expired and a cell may have been swapped.

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

/// Returns the id of a message. It is empty if no gateway sent the message.
pub(super) fn id_of(headers: Option<&HeaderMap>) -> &str {
    headers.and_then(|headers| headers.get(NATS_MESSAGE_ID)).map_or("", HeaderValue::as_str)
}

/// Returns whether a stream holds another message at the sequence of this one.
async fn holds_another<I>(stream: &Stream<I>, message: &MessageId) -> Result<bool, StoreError> {
    match stream.get_raw_message(message.sequence).await {
        Ok(held) => Ok(id_of(Some(&held.headers)) != message.id),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(false),
        Err(error) => Err(StoreError::unavailable(error)),
    }
}

impl Core {
    /// Returns whether the stream of events holds another message at the sequence of the newest one
    /// that this process knows.
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

    /// Checks the messages that this process or the record knows. Returns a loss for each that was
    /// replaced, and adds the message to the record for the other replicas.
    pub(super) async fn find_replaced(
        &self,
        known: &mut StoreRecord,
        found: &Streams,
    ) -> Result<Vec<StreamLoss>, StoreError> {
        let (names, epoch) = (self.names.streams(), known.epoch);
        let recorded = record::replaced(known);
        let present = (0..names.len()).filter(|index| found[*index].is_some());
        let checks = present.map(async |index| {
            let stream = self.stream(names[index]).await?;
            let own = self.facts().newest(epoch, index);
            for message in own.into_iter().chain(recorded[index].clone()) {
                if holds_another(&stream, &message).await? {
                    return Ok::<_, StoreError>(Some((index, message)));
                }
            }
            Ok(None)
        });
        let replaced = try_join_all(checks).await?.into_iter().flatten();
        let loss = |(index, message): (usize, MessageId)| {
            let what = format!(
                "holds another message at {} than before: it was put back to an older copy and \
                 written to since",
                message.sequence
            );
            record::note_replaced(known, index, message);
            StreamLoss::older(&self.names, index, &what)
        };
        Ok(replaced.map(loss).collect())
    }
}
