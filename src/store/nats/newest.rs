//! Recognises a stream that was put back to an older copy and then written to beyond its former end. Its
//! last sequence tells nothing, but it holds another message at the sequence of the newest one that this
//! process knows.
//!
//! Proves nothing where no message is at that sequence: it may have expired, and a cell may have been replaced.

use async_nats::{
    HeaderMap, HeaderValue,
    header::NATS_MESSAGE_ID,
    jetstream::stream::{RawMessageErrorKind, Stream},
};

use futures_util::future::try_join_all;

use super::{
    Shared,
    record::{Forgotten, Streams},
};
use crate::store::StoreError;

/// The id of a message; empty: it has none, so it is not one of ours.
pub(super) fn id_of(headers: Option<&HeaderMap>) -> &str {
    headers.and_then(|headers| headers.get(NATS_MESSAGE_ID)).map_or("", HeaderValue::as_str)
}

impl Shared {
    /// The sequence of the newest message that this process knows of a stream, if another one has its place.
    pub(super) async fn is_written_over<I: Sync>(
        &self,
        stream: &Stream<I>,
        epoch: u64,
        which: usize,
    ) -> Result<Option<u64>, StoreError> {
        let Some(newest) = self.facts().newest(epoch, which) else { return Ok(None) };
        match stream.get_raw_message(newest.sequence).await {
            Ok(message) if id_of(Some(&message.headers)) == newest.id => Ok(None),
            Ok(_) => Ok(Some(newest.sequence)),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(StoreError::Unavailable(error.to_string())),
        }
    }

    /// The streams that were found, and that hold another message than this process knows.
    pub(super) async fn written_over(
        &self,
        epoch: u64,
        found: &Streams,
    ) -> Result<Vec<Forgotten>, StoreError> {
        let names = self.names.streams();
        let asked = (0..names.len()).filter(|which| found[*which].is_some()).map(async |which| {
            let stream = self.stream(names[which]).await?;
            let Some(sequence) = self.is_written_over(&stream, epoch, which).await? else { return Ok(None) };
            let what = format!(
                "holds another message at {sequence} than before: it was put back to an older copy and written \
                 to since"
            );
            Ok(Some(Forgotten::older(&self.names, which, &what)))
        });
        Ok(try_join_all(asked).await?.into_iter().flatten().collect())
    }
}
