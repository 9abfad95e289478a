//! Callbacks that spell the id of an order's request in another case and came before it was known
//! here.
//!
//! They lie in a log of their own. What is noticed here, `requests::orders::resolve` copies into the
//! request's log. Every replica does so; the events' ids make them one.

use std::{collections::HashMap, sync::Mutex};

use super::Hub;
use crate::{
    identity::RequestId,
    proto::storage,
    requests::{
        fold::{
            event::{self, Kind},
            state::Request,
        },
        lock,
    },
    store::{LogName, StoreError},
};

/// Logs that wait to be copied. Further ones are not taken.
const MAX_STRAYS: usize = 10_000;

/// Callbacks of a request under another spelling than the request's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// The log in which they lie.
    pub from: RequestId,
    /// The request, which belongs to an order.
    pub to: RequestId,
}

#[derive(Debug, Default)]
pub(super) struct Strays(Mutex<HashMap<RequestId, RequestId>>);

impl Hub {
    /// Notices that a log may hold callbacks of a request that belongs to an order.
    pub fn add_stray(&self, Stray { from, to }: Stray) {
        let mut strays = lock(&self.strays.0);
        if strays.len() < MAX_STRAYS || strays.contains_key(&from) {
            strays.insert(from, to);
        }
    }

    pub fn take_strays(&self) -> Vec<Stray> {
        lock(&self.strays.0).drain().map(|(from, to)| Stray { from, to }).collect()
    }

    /// What a stray log says to its request; nothing if they are different requests.
    pub async fn stray_callbacks(
        &self,
        stray: &Stray,
    ) -> Result<Vec<storage::CalledBack>, StoreError> {
        let Some((tracked, _)) = self.attach(&stray.to).await? else { return Ok(Vec::new()) };
        let owner = tracked.lock().request.clone();
        let Some(account) = owner.account.as_ref().filter(|_| owner.order_id.is_some()) else {
            return Ok(Vec::new());
        };
        let (mut request, mut callbacks) = (Request::default(), Vec::new());
        self.read_log(&LogName::request(stray.from.as_str()), |entry| {
            let Some(event) = event::decode(&entry.event) else { return };
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
