//! Recent refusals by ThingSpace.
//!
//! A repeated order gets the same refusal from memory for a while. Nothing is stored or sent, so a
//! caller in a loop does not fill the store. A refusal by the API manager is not about the order
//! and is not kept.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use tokio::time::Instant;

use super::lock;
use crate::thingspace::{Refusal, RefusalKind};

const REMEMBERED_FOR: Duration = Duration::from_mins(1);

/// The maximum number of refusals. Further ones are not kept.
const MAX_REMEMBERED: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// By the name of the key's cell.
    recent: Mutex<HashMap<String, RecentRefusal>>,
}

#[derive(Debug)]
struct RecentRefusal {
    hash: Vec<u8>,
    refusal: Refusal,
    at: Instant,
}

impl RecentRefusal {
    fn is_fresh(&self, now: Instant) -> bool {
        now.duration_since(self.at) < REMEMBERED_FOR
    }
}

impl Refusals {
    pub(super) fn remember(&self, cell: &str, hash: &[u8], refusal: &Refusal) {
        if refusal.kind == RefusalKind::NotForwarded {
            return;
        }
        let now = Instant::now();
        let mut recent = lock(&self.recent);
        if recent.len() >= MAX_REMEMBERED {
            recent.retain(|_, entry| entry.is_fresh(now));
        }
        if recent.len() < MAX_REMEMBERED || recent.contains_key(cell) {
            let entry = RecentRefusal { hash: hash.to_vec(), refusal: refusal.clone(), at: now };
            recent.insert(cell.to_owned(), entry);
        }
    }

    /// Returns the recent refusal of the same order with the same key.
    pub(super) fn of(&self, cell: &str, hash: &[u8]) -> Option<Refusal> {
        let recent = lock(&self.recent);
        let entry = recent.get(cell).filter(|entry| entry.is_fresh(Instant::now()))?;
        (entry.hash == hash).then(|| entry.refusal.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal() -> Refusal {
        Refusal { kind: RefusalKind::Other, code: "CODE".to_owned(), status: 400 }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_repeated_for_a_while_and_only_for_the_same_order() {
        let refusals = Refusals::default();
        refusals.remember("key", b"order", &refusal());
        assert_eq!(refusals.of("key", b"order"), Some(refusal()));
        assert_eq!(refusals.of("key", b"another order"), None);
        assert_eq!(refusals.of("another key", b"order"), None);
        tokio::time::advance(REMEMBERED_FOR).await;
        assert_eq!(refusals.of("key", b"order"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_by_the_api_manager_is_not_remembered() {
        let refusals = Refusals::default();
        refusals.remember(
            "key",
            b"order",
            &Refusal { kind: RefusalKind::NotForwarded, ..refusal() },
        );
        assert_eq!(refusals.of("key", b"order"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded() {
        let refusals = Refusals::default();
        for n in 0..=MAX_REMEMBERED {
            refusals.remember(&n.to_string(), b"order", &refusal());
        }
        assert_eq!(lock(&refusals.recent).len(), MAX_REMEMBERED);
        assert_eq!(refusals.of(&MAX_REMEMBERED.to_string(), b"order"), None);
        tokio::time::advance(REMEMBERED_FOR).await;
        refusals.remember("late", b"order", &refusal());
        assert_eq!(lock(&refusals.recent).len(), 1);
    }
}
