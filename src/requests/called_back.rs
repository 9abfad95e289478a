//! Taking callbacks: each is stored in the log of its request, whose id it may spell in another
//! case.

use std::{sync::atomic::Ordering, time::Duration};

use tracing::info;

use super::{Requests, append, error::Error, fold::event};
use crate::{
    identity::{AccountName, RequestId},
    proto::storage,
    store::LogName,
};

/// Callbacks for unknown requests whose ids are looked up in other cases at once, and how long each
/// of them may take.
pub(super) const MAX_SPELLING_LOOKUPS: usize = 16;
const SPELLING_WITHIN: Duration = Duration::from_millis(500);

impl Requests {
    /// Stores what a callback said of a request, known here or not. It is durable when this
    /// returns, which waits for nothing else: folding it is the follower's business.
    pub async fn called_back(
        &self,
        account: &AccountName,
        request: &RequestId,
        called_back: storage::CalledBack,
    ) -> Result<(), Error> {
        let called_back = storage::CalledBack { account: account.to_string(), ..called_back };
        let known = self.spelling_of_callback(request).await;
        if known.is_none() {
            self.count_stray(account);
        }
        let request = known.as_ref().unwrap_or(request);
        let id = event::called_back_id(request, &called_back);
        let log = LogName::request(request.as_str());
        let first = self.hub.first(request);
        append(&*self.store, &log, first, id, event::Kind::CalledBack(called_back)).await?;
        Ok(())
    }

    /// The spelling under which a callback's request is known. Where the store does not tell in
    /// time, it is the one in memory, else the callback's own: the callback must not be lost for
    /// that.
    async fn spelling_of_callback(&self, request: &RequestId) -> Option<RequestId> {
        let in_memory = self.hub.spelling_in_memory(request);
        if in_memory.as_ref() == Some(request) {
            return in_memory;
        }
        let look_up = async {
            let _lookup =
                self.spelling_lookups.acquire().await.expect("nobody closes this semaphore");
            self.hub.spelling(request).await
        };
        match tokio::time::timeout(SPELLING_WITHIN, look_up).await {
            Ok(Ok(known)) => known,
            Ok(Err(_)) | Err(_) => Some(in_memory.unwrap_or_else(|| request.clone())),
        }
    }

    /// The spelling under which a request is known whose id a caller may have written in another
    /// case.
    pub async fn spelling(&self, request: &RequestId) -> Result<RequestId, Error> {
        Ok(self.hub.spelling(request).await?.unwrap_or_else(|| request.clone()))
    }

    /// Counts a callback for a request of which nothing is known here. Those of other tools are
    /// such, so only the first is said.
    fn count_stray(&self, account: &AccountName) {
        if self.stray_callbacks.fetch_add(1, Ordering::Relaxed) == 0 {
            info!(%account, "a callback names a request that this gateway does not know; `status` counts such callbacks");
        }
    }
}
