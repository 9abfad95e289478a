//! A gateway that starts asks the running ones for the record of the store.
//!
//! When all streams were deleted, a gateway that starts finds nothing and would make a new store,
//! in which every key is free. Gateways that are running still know the old store. So each of them
//! answers requests for the record, over core NATS, and a gateway without a record of its own sends
//! one before it trusts what it finds. NATS reports at once that nobody subscribes to the subject,
//! so the first start of a new store does not wait.
//!
//! Without the permission to subscribe nobody answers, and a gateway that starts must rely on the
//! record in the streams. Without the permission to reply the request times out, and no gateway
//! makes a new store while another one runs.

use std::sync::Arc;

use async_nats::{Message, RequestErrorKind};
use bytes::Bytes;
use futures_util::StreamExt as _;
use prost::Message as _;

use super::Memory;
use crate::{
    proto::storage::StoreRecord,
    store::{
        decode_cell,
        nats::{Shared, record, streams::Hindrance},
    },
};

impl Shared {
    /// Asks the gateways that know the store for its record; `None`: none is running. Fails where
    /// at least one is running, and none gives a usable answer.
    async fn ask_peers(&self) -> Result<Option<StoreRecord>, String> {
        match self.link.client.request(self.names.record_requests(), Bytes::new()).await {
            Ok(Message { payload, .. }) => {
                decode_cell(payload).map(Some).map_err(|error| error.to_string())
            }
            Err(error) if error.kind() == RequestErrorKind::NoResponders => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    /// What the other gateways know, otherwise the copy of the record, and why it is unclear what
    /// they know.
    pub(super) async fn recall(
        &self,
        memory: &mut Memory,
    ) -> Result<(Option<StoreRecord>, Option<String>), Hindrance> {
        let unclear = match self.ask_peers().await {
            Ok(Some(record)) => {
                // Also when that gateway has ended.
                memory.known = Some(record);
                return Ok((memory.known.clone(), None));
            }
            Ok(None) => None,
            Err(why) => Some(why),
        };
        Ok((self.load_record(&record::copy()).await?.map(|(_, copy)| copy), unclear))
    }

    /// Answers gateways that ask for the record. Called once this process knows the store.
    pub(super) async fn answer_peers(self: Arc<Self>) {
        let client = &self.link.client;
        // Fails only when the client was closed.
        let Ok(mut requests) = client.subscribe(self.names.record_requests()).await else { return };
        while let Some(request) = requests.next().await {
            if let (Some(reply), Some(record)) = (request.reply, self.current_record())
                && let Err(error) = client.publish(reply, record.encode_to_vec().into()).await
            {
                tracing::debug!(%error, "cannot answer another gateway");
            }
        }
    }

    /// The record, with everything that this process has seen since it was written.
    pub(in crate::store::nats) fn current_record(&self) -> Option<StoreRecord> {
        let facts = self.facts();
        let mut record = facts.record.clone()?;
        let seen = facts.seen.in_epoch(record.epoch);
        record::saw(&mut record, seen);
        Some(record)
    }
}

/// Why a gateway that has found no record makes no new store.
pub(super) fn unclear(why: &str) -> Hindrance {
    Hindrance::Away(format!(
        "there is no record of a store, and another gateway, which may know one, did not say: {why}"
    ))
}
