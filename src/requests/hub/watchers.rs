//! Counts the open watches of each request by caller, for operators.

use std::{collections::HashMap, sync::Arc};

use super::Hub;
use crate::{identity::RequestId, requests::lock};

/// The open watches of each request that has one: callers, and the number of watches of each.
pub(super) type Watchers = HashMap<RequestId, Vec<(Arc<str>, usize)>>;

impl Hub {
    pub(crate) fn add_watcher(&self, id: &RequestId, caller: &Arc<str>) {
        let mut watchers = lock(&self.watchers);
        match watchers.get_mut(id) {
            None => {
                // Without spare capacity, because there may be 100,000 watched requests.
                watchers.insert(id.clone(), vec![(Arc::clone(caller), 1)]);
            }
            Some(callers) => match callers.iter_mut().find(|(name, _)| name == caller) {
                Some((_, watches)) => *watches += 1,
                None => callers.push((Arc::clone(caller), 1)),
            },
        }
    }

    pub(crate) fn remove_watcher(&self, id: &RequestId, caller: &Arc<str>) {
        let mut watchers = lock(&self.watchers);
        let Some(callers) = watchers.get_mut(id) else { return };
        if let Some((_, watches)) = callers.iter_mut().find(|(name, _)| name == caller) {
            *watches -= 1;
        }
        callers.retain(|(_, watches)| *watches > 0);
        if callers.is_empty() {
            watchers.remove(id);
        }
    }

    /// Returns the callers that watch a request, each with the number of its watches.
    pub(crate) fn watchers(&self, id: &RequestId) -> Vec<(Arc<str>, usize)> {
        lock(&self.watchers).get(id).cloned().unwrap_or_default()
    }
}
