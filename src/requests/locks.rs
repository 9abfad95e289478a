//! One lock per key, kept while it is used.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, Weak},
};

use tokio::sync::OwnedMutexGuard;

use super::lock;

/// Unused entries are removed when there are at least this many more of them than used ones.
const SLACK: usize = 64;

#[derive(Debug)]
pub(super) struct Locks<K>(Mutex<HashMap<K, Weak<tokio::sync::Mutex<()>>>>);

impl<K> Default for Locks<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone> Locks<K> {
    pub(super) async fn lock(&self, key: &K) -> OwnedMutexGuard<()> {
        self.get(key).lock_owned().await
    }

    fn get(&self, key: &K) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = lock(&self.0);
        if let Some(lock) = locks.get(key).and_then(Weak::upgrade) {
            return lock;
        }
        let in_use = |lock: &Weak<_>| lock.strong_count() > 0;
        if locks.len() >= 2 * locks.values().filter(|lock| in_use(lock)).count() + SLACK {
            locks.retain(|_, lock| in_use(lock));
        }
        let lock = Arc::default();
        locks.insert(key.clone(), Arc::downgrade(&lock));
        lock
    }
}
