//! Which watched files have new content that is not in use, for metrics.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    lock::lock,
    telemetry::{attribute, metrics, names},
};

/// The outcomes of new content.
pub(crate) const USED: &str = "used";
pub(crate) const REFUSED: &str = "refused";

/// The number of refused files of each kind.
static KINDS: Mutex<BTreeMap<&'static str, usize>> = Mutex::new(BTreeMap::new());

/// Some files that belong together, and whether their newest content is refused.
#[derive(Debug)]
pub(crate) struct WatchedFiles {
    pub(super) kind: &'static str,
    refused: AtomicBool,
}

impl WatchedFiles {
    /// `kind` is the value of the attribute `files`.
    pub(crate) fn new(kind: &'static str) -> Self {
        lock(&KINDS).entry(kind).or_default();
        for outcome in [USED, REFUSED] {
            metrics().reloads.start(&reload_attributes(kind, outcome));
        }
        Self { kind, refused: AtomicBool::new(false) }
    }

    /// Sets whether the newest content is refused.
    pub(crate) fn set_refused(&self, refused: bool) {
        let mut kinds = lock(&KINDS);
        let count = kinds.entry(self.kind).or_default();
        match (self.refused.swap(refused, Ordering::Relaxed), refused) {
            (false, true) => *count += 1,
            (true, false) => *count -= 1,
            _ => {}
        }
    }
}

impl Drop for WatchedFiles {
    fn drop(&mut self) {
        self.set_refused(false);
    }
}

/// Returns the number of refused files of each kind.
pub(crate) fn refused_files() -> Vec<(&'static str, usize)> {
    lock(&KINDS).iter().map(|(kind, count)| (*kind, *count)).collect()
}

/// Counts files whose new content came into use or was refused.
pub(crate) fn count_reload(kind: &'static str, outcome: &'static str) {
    metrics().reloads.add(&reload_attributes(kind, outcome));
}

fn reload_attributes(kind: &'static str, outcome: &'static str) -> [opentelemetry::KeyValue; 2] {
    [attribute(names::FILES, kind), attribute(names::OUTCOME, outcome)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refused_set_of_files_counts_once_until_it_is_used_or_gone() {
        const KIND: &str = "of a test";
        let refused = || refused_files().into_iter().find(|(kind, _)| *kind == KIND).unwrap().1;
        let (one, other) = (WatchedFiles::new(KIND), WatchedFiles::new(KIND));
        assert_eq!(refused(), 0);
        one.set_refused(true);
        one.set_refused(true);
        other.set_refused(true);
        assert_eq!(refused(), 2);
        one.set_refused(false);
        assert_eq!(refused(), 1);
        drop(other);
        assert_eq!(refused(), 0);
    }
}
