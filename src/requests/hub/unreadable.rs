//! Damaged logs. Their requests and orders are missing from the projection until an operator
//! restores the store.

use std::{collections::BTreeMap, sync::Mutex};

use tracing::error;

use crate::{requests::lock, store::LogName};

/// The maximum number of listed logs. Further ones are only logged.
const MAX_LISTED: usize = 1_000;

/// Why each log cannot be read, by its name.
#[derive(Debug, Default)]
pub(super) struct Unreadable(Mutex<BTreeMap<String, String>>);

impl Unreadable {
    pub(super) fn add(&self, log: &LogName, why: String) {
        let name = log.encode();
        let mut logs = lock(&self.0);
        if logs.contains_key(&name) {
            return;
        }
        error!(
            log = name,
            why,
            "a log in the store is damaged and is skipped: its request or order is missing; all \
             others are served. Restore the store from a backup to get it back"
        );
        if logs.len() < MAX_LISTED {
            logs.insert(name, why);
        }
    }

    pub(super) fn list(&self) -> Vec<(String, String)> {
        lock(&self.0).iter().map(|(log, why)| (log.clone(), why.clone())).collect()
    }

    /// Must be called when the store was replaced.
    pub(super) fn clear(&self) {
        lock(&self.0).clear();
    }
}
