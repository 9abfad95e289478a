//! Callbacks that came before their request was known, and name it by its id in another case.
//!
//! They are in the log of that other id. `requests::orders::resolve` copies them into the log of
//! the request. Each replica does so; equal event ids prevent duplicates.

use std::{collections::HashMap, sync::Mutex};

use super::Hub;
use crate::{
    identity::RequestId,
    proto::storage,
    requests::{
        fold::{event::Kind, state::Request},
        lock,
    },
    store::{LogName, StoreError},
};

/// The maximum number of logs that wait to be copied. Further ones are ignored.
const MAX_VARIANTS: usize = 10_000;

/// A log that may hold callbacks of a request under another spelling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SpellingVariant {
    /// The spelling of the log.
    pub(crate) from: RequestId,
    /// The request, which belongs to an order.
    pub(crate) to: RequestId,
}

#[derive(Debug, Default)]
pub(super) struct SpellingVariants(Mutex<HashMap<RequestId, RequestId>>);

impl Hub {
    pub(crate) fn add_spelling_variant(&self, SpellingVariant { from, to }: SpellingVariant) {
        let mut variants = lock(&self.spelling_variants.0);
        if variants.len() < MAX_VARIANTS || variants.contains_key(&from) {
            variants.insert(from, to);
        }
    }

    pub(crate) fn take_spelling_variants(&self) -> Vec<SpellingVariant> {
        lock(&self.spelling_variants.0)
            .drain()
            .map(|(from, to)| SpellingVariant { from, to })
            .collect()
    }

    /// Returns the callbacks in a variant's log. Returns none if the log belongs to another
    /// request.
    pub(crate) async fn callbacks_of(
        &self,
        variant: &SpellingVariant,
    ) -> Result<Vec<storage::CalledBack>, StoreError> {
        let Some((tracked, _)) = self.attach(&variant.to).await? else { return Ok(Vec::new()) };
        let owner = tracked.lock().request.clone();
        let Some(account) = owner.account.as_ref().filter(|_| owner.order_id.is_some()) else {
            return Ok(Vec::new());
        };
        let (mut request, mut callbacks) = (Request::default(), Vec::new());
        self.read_events(&LogName::request(variant.from.as_str()), |entry, event| {
            request.apply(entry.position, entry.time, &event);
            if let Some(Kind::CalledBack(called_back)) = event.kind
                && called_back.account == account.as_str()
            {
                callbacks.push(called_back);
            }
        })
        .await?;
        let different = request.order_id.is_some() || request.differs_from(&owner);
        Ok(if different { Vec::new() } else { callbacks })
    }
}
