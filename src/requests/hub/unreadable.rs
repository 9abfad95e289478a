//! Logs that cannot be read. What they hold is missing from the projection until an operator has
//! seen to it.

use std::{collections::BTreeMap, sync::Mutex};

use tracing::error;

use crate::{requests::lock, store::LogName};

/// Logs that are listed. More of them are logged and not listed.
const MAX_LISTED: usize = 1_000;

/// By their names, and why.
#[derive(Debug, Default)]
pub(super) struct Unreadable(Mutex<BTreeMap<String, String>>);

impl Unreadable {
    pub(super) fn set_aside(&self, log: &LogName, why: String) {
        let name = log.encode();
        let mut logs = lock(&self.0);
        if logs.contains_key(&name) {
            return;
        }
        error!(
            log = name,
            why,
            "a log in the store is damaged and is set aside: its request or order is missing until the store is \
             restored from a backup; all others go on"
        );
        if logs.len() < MAX_LISTED {
            logs.insert(name, why);
        }
    }

    pub(super) fn list(&self) -> Vec<(String, String)> {
        lock(&self.0).iter().map(|(log, why)| (log.clone(), why.clone())).collect()
    }

    /// The store is another one.
    pub(super) fn forget(&self) {
        lock(&self.0).clear();
    }
}
