//! Stores callbacks in the logs of their requests, even if a callback has the request id in another
//! case.

use std::{sync::atomic::Ordering, time::Duration};

use tracing::{Instrument, info, info_span};

use super::{Requests, append, error::Error, fold::event};
use crate::{
    identity::{AccountName, RequestId},
    proto::storage,
    store::LogName,
    telemetry::{attribute, causes, metrics, names},
};

/// The maximum number of concurrent lookups of a request id's spelling, and the time for each.
pub(super) const MAX_SPELLING_LOOKUPS: usize = 16;
const SPELLING_WITHIN: Duration = Duration::from_millis(500);

impl Requests {
    /// Stores a callback for a request that may be unknown. The callback is durable when this
    /// returns, but may not be folded yet.
    pub async fn called_back(
        &self,
        account: &AccountName,
        request: &RequestId,
        called_back: storage::CalledBack,
    ) -> Result<(), Error> {
        let called_back = storage::CalledBack { account: account.to_string(), ..called_back };
        let spelling = self.spelling_of_callback(request).await;
        if spelling.is_none() {
            self.count_stray(account);
        }
        let request = spelling.as_ref().unwrap_or(request);
        let id = event::called_back_id(request, &called_back);
        let log = LogName::request(request.as_str());
        let first = self.hub.first(request);
        let span = info_span!("callback", otel.kind = "server");
        causes::link(&span, request);
        span.in_scope(|| causes::set(request));
        let called_back = event::Kind::CalledBack(called_back);
        append(&*self.store, &log, first, id, called_back).instrument(span).await?;
        Ok(())
    }

    /// Returns the spelling of a request id that is in the store. `None`: the request is unknown.
    /// If the lookup fails or takes too long, returns the spelling in memory or else the callback's
    /// own, so that the callback is stored anyway.
    async fn spelling_of_callback(&self, request: &RequestId) -> Option<RequestId> {
        let in_memory = self.hub.spelling_in_memory(request);
        if in_memory.as_ref() == Some(request) {
            return in_memory;
        }
        let look_up = async {
            let _lookup =
                self.spelling_lookups.acquire().await.expect("the semaphore is never closed");
            self.hub.spelling(request).await
        };
        match tokio::time::timeout(SPELLING_WITHIN, look_up).await {
            Ok(Ok(spelling)) => spelling,
            Ok(Err(_)) | Err(_) => Some(in_memory.unwrap_or_else(|| request.clone())),
        }
    }

    /// Returns the spelling of a request id that is in the store, or else the caller's own.
    pub(crate) async fn spelling(&self, request: &RequestId) -> Result<RequestId, Error> {
        Ok(self.hub.spelling(request).await?.unwrap_or_else(|| request.clone()))
    }

    /// Counts a callback for an unknown request. Logs only the first, because other systems of the
    /// account may place many such requests.
    fn count_stray(&self, account: &AccountName) {
        metrics().callbacks_stray.add(&[attribute(names::ACCOUNT, account.to_string())]);
        if self.stray_callbacks.fetch_add(1, Ordering::Relaxed) == 0 {
            info!(
                %account,
                "a callback names a request that this gateway does not know; `status` counts such \
                 callbacks"
            );
        }
    }
}
