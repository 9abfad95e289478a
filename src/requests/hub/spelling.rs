//! Request ids in another case.
//!
//! The log of a request is named by the id that ThingSpace answered. Callers and callbacks may use
//! another case. Two spellings are the same request, unless each belongs to an order, or
//! ThingSpace's answers about one contradict the account or the devices of the other.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::Arc,
};

use super::{Hub, Projection, Tracked};
use crate::{
    identity::RequestId,
    requests::{
        fold::event::{self, Kind},
        lock,
    },
    store::{LogName, StoreError},
};

/// The maximum number of ids in each half of [`CallbackSpellings`].
const MAX_CALLBACK_SPELLINGS: usize = 5_000;

/// The ids in mixed case from callbacks for requests that are not in memory. The store finds a log
/// only by its exact name, and the gateway looks up only the spellings in small and in capital
/// letters. When the newer half is full, the older half is dropped.
#[derive(Debug, Default)]
pub(super) struct CallbackSpellings {
    newer: HashMap<String, HashSet<RequestId>>,
    older: HashMap<String, HashSet<RequestId>>,
    /// The number of ids in `newer`.
    count: usize,
}

impl CallbackSpellings {
    pub(super) fn add(&mut self, id: &RequestId) {
        if !is_mixed(id) {
            return;
        }
        if self.count >= MAX_CALLBACK_SPELLINGS {
            (self.older, self.count) = (mem::take(&mut self.newer), 0);
        }
        self.count +=
            usize::from(self.newer.entry(small_letters(id)).or_default().insert(id.clone()));
    }

    fn of(&self, id: &RequestId) -> impl Iterator<Item = &RequestId> {
        let small = small_letters(id);
        [&self.newer, &self.older].into_iter().filter_map(move |ids| ids.get(&small)).flatten()
    }
}

impl Projection {
    pub(super) fn track(&mut self, tracked: Arc<Tracked>) {
        let id = &tracked.id;
        if has_capitals(id) {
            let spellings = self.capitals.entry(small_letters(id)).or_default();
            if !spellings.contains(id) {
                spellings.push(id.clone());
            }
        }
        self.requests.insert(id.clone(), tracked);
    }

    /// Removes and returns a request. The caller drops it after it has released the lock.
    pub(super) fn forget(&mut self, id: &RequestId) -> Option<Arc<Tracked>> {
        self.closed.remove(id);
        if has_capitals(id) {
            let small = small_letters(id);
            if let Some(spellings) = self.capitals.get_mut(&small) {
                spellings.retain(|other| other != id);
                if spellings.is_empty() {
                    self.capitals.remove(&small);
                }
            }
        }
        self.requests.remove(id)
    }

    /// Returns the requests in memory with this id in any case, the exact one first.
    pub(super) fn spellings(&self, id: &RequestId) -> Vec<Arc<Tracked>> {
        let small = small_letters(id);
        let capitals = self.capitals.get(&small).into_iter().flatten().cloned();
        let others =
            RequestId::parse(&small).into_iter().chain(capitals).filter(|other| other != id);
        let all = std::iter::once(id.clone()).chain(others);
        all.filter_map(|id| self.requests.get(&id).map(Arc::clone)).collect()
    }

    /// Returns whether this id in another case belongs to another order.
    pub(super) fn has_rival(&self, order_id: &str, id: &RequestId) -> bool {
        self.spellings(id).iter().any(|other| {
            let owner = &other.lock().request.order_id;
            other.id != *id && owner.as_deref().is_some_and(|owner| owner != order_id)
        })
    }
}

fn has_capitals(id: &RequestId) -> bool {
    id.as_str().bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_mixed(id: &RequestId) -> bool {
    has_capitals(id) && id.as_str().bytes().any(|byte| byte.is_ascii_lowercase())
}

fn small_letters(id: &RequestId) -> String {
    id.as_str().to_ascii_lowercase()
}

/// Returns whether two ids differ only in case, or not at all.
pub(crate) fn is_same(one: &RequestId, other: &RequestId) -> bool {
    one.as_str().eq_ignore_ascii_case(other.as_str())
}

/// Returns the spellings to look up in the store: as given, in small and in capital letters.
fn usual_spellings(id: &RequestId) -> impl Iterator<Item = RequestId> {
    let text = id.as_str();
    let others = [text.to_ascii_lowercase(), text.to_ascii_uppercase()];
    let others = others.into_iter().filter_map(|other| RequestId::parse(&other).ok());
    std::iter::once(id.clone()).chain(others.filter(|other| other != id).collect::<Vec<_>>())
}

impl Hub {
    /// Returns the spelling under which a request is in memory.
    pub(crate) fn spelling_in_memory(&self, id: &RequestId) -> Option<RequestId> {
        let spellings = lock(&self.projection).spellings(id);
        let exact = spellings.first().filter(|tracked| tracked.id == *id);
        let is_ordered = |tracked: &Arc<Tracked>| tracked.lock().request.order_id.is_some();
        if exact.is_some_and(is_ordered) {
            return Some(id.clone());
        }
        let ordered = spellings.iter().find(|tracked| is_ordered(tracked));
        let known = match (exact, ordered) {
            (Some(exact), Some(ordered)) if are_different(exact, ordered) => exact,
            (_, Some(ordered)) => ordered,
            (_, None) => spellings.first()?,
        };
        Some(known.id.clone())
    }

    /// Returns the spelling under which a request is in memory or in the store.
    pub(crate) async fn spelling(&self, id: &RequestId) -> Result<Option<RequestId>, StoreError> {
        if let Some(known) = self.spelling_in_memory(id) {
            let is_other =
                known != *id && self.get(id).is_none() && self.is_other_request(id, &known).await?;
            return Ok(Some(if is_other { id.clone() } else { known }));
        }
        // The request may be closed and no longer in memory.
        let mut known = None;
        for spelling in usual_spellings(id) {
            let entries = self.store.read(&LogName::request(spelling.as_str()), 0, 1).await?;
            let Some(first) = entries.first() else { continue };
            let kind = event::decode(&first.event).and_then(|event| event.kind);
            if matches!(kind, Some(Kind::Accepted(_))) {
                return Ok(Some(spelling));
            }
            known = known.or(Some(spelling));
        }
        Ok(known)
    }

    /// Returns whether the log with exactly this id belongs to another request than `known`, which
    /// is in memory. The other request may be closed and no longer in memory.
    async fn is_other_request(
        &self,
        id: &RequestId,
        known: &RequestId,
    ) -> Result<bool, StoreError> {
        let stored = self.stored_request(id).await?;
        let Some(tracked) = self.get(known) else { return Ok(stored.order_id.is_some()) };
        let known = tracked.lock().request.clone();
        Ok(stored.order_id.is_some() || stored.differs_from(&known))
    }

    /// Returns the other spellings of an id that have a log. They may be the same request.
    pub(crate) async fn other_spellings(
        &self,
        id: &RequestId,
    ) -> Result<Vec<RequestId>, StoreError> {
        let mut others: Vec<_> = {
            let projection = lock(&self.projection);
            let tracked = projection.spellings(id).into_iter().map(|tracked| tracked.id.clone());
            tracked.chain(projection.callback_spellings.of(id).cloned()).collect()
        };
        for spelling in usual_spellings(id).filter(|spelling| spelling != id) {
            if !others.contains(&spelling) {
                let log = LogName::request(spelling.as_str());
                others.extend((!self.store.read(&log, 0, 1).await?.is_empty()).then_some(spelling));
            }
        }
        others.retain(|other| other != id);
        others.sort_unstable();
        others.dedup();
        Ok(others)
    }
}

/// Returns whether two spellings are different requests. The second one belongs to an order.
fn are_different(one: &Tracked, ordered: &Tracked) -> bool {
    let ordered = ordered.lock().request.clone();
    one.lock().request.differs_from(&ordered)
}
