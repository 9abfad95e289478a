//! A gateway that starts requests the record of the store from the running ones.
//!
//! If all streams were deleted, a gateway that starts finds nothing and would make a new store, in
//! which every key is free. Running gateways still know the old store. So each of them answers
//! requests for the record, over core NATS. A gateway that starts sends such a request before it
//! trusts what it finds. If no gateway subscribes to the subject, NATS says so at once, so the
//! first start of a new store does not wait.
//!
//! Without the permission to subscribe, no gateway answers, and one that starts must rely on the
//! record in the streams. Without the permission to reply, the request times out, and no gateway
//! makes a new store while another one runs.

use std::sync::Arc;

use async_nats::{Message, RequestErrorKind};
use bytes::Bytes;
use futures_util::StreamExt as _;
use prost::Message as _;

use super::MonitorState;
use crate::{
    proto::storage::StoreRecord,
    store::{
        decode_cell,
        nats::{Core, record, streams::StreamsError},
    },
};

impl Core {
    /// Requests the record from the gateways that know the store; `None`: none is running. Fails if
    /// at least one is running and none gives a usable answer.
    async fn request_record(&self) -> Result<Option<StoreRecord>, String> {
        match self.link.client.request(self.names.record_requests(), Bytes::new()).await {
            Ok(Message { payload, .. }) => {
                decode_cell(payload).map(Some).map_err(|error| error.to_string())
            }
            Err(error) if error.kind() == RequestErrorKind::NoResponders => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Returns what the other gateways know, or else the copy of the record; and, if it is unclear
    /// what they know, the reason.
    pub(super) async fn recall(
        &self,
        state: &mut MonitorState,
    ) -> Result<(Option<StoreRecord>, Option<String>), StreamsError> {
        let unclear = match self.request_record().await {
            Ok(Some(record)) => {
                // Kept, because the other gateway may end.
                state.known = Some(record.clone());
                return Ok((Some(record), None));
            }
            Ok(None) => None,
            Err(why) => Some(why),
        };
        Ok((self.load_record(&record::copy()).await?.map(|(_, copy)| copy), unclear))
    }

    /// Answers gateways that request the record. Called once this process knows the store.
    pub(super) async fn answer_peers(self: Arc<Self>) {
        let client = &self.link.client;
        // Fails only if the client was closed.
        let Ok(mut requests) = client.subscribe(self.names.record_requests()).await else { return };
        while let Some(request) = requests.next().await {
            if let (Some(reply), Some(record)) = (request.reply, self.current_record())
                && let Err(error) = client.publish(reply, record.encode_to_vec().into()).await
            {
                tracing::debug!(%error, "cannot answer another gateway");
            }
        }
    }

    /// Returns the record with everything that this process has seen since it was written.
    pub(in crate::store::nats) fn current_record(&self) -> Option<StoreRecord> {
        let facts = self.facts();
        let mut record = facts.record.clone()?;
        let seen = facts.seen.in_epoch(record.epoch);
        record::saw(&mut record, seen);
        Some(record)
    }
}

/// Says why a gateway that found no record makes no new store.
pub(super) fn unclear(why: &str) -> StreamsError {
    StreamsError::Away(format!(
        "there is no record of a store, and another gateway that may have one gave no usable \
         answer: {why}"
    ))
}
