//! Leases of orders that other replicas send, by observation.
//!
//! Replicas share no clock, so a lease holds a duration and no instant: it has lapsed once this
//! process has itself seen the cell's version unchanged for that long, on its own monotonic clock.
//! A lapse permits nothing but to stop waiting: the order's fate is then unknown, it is not sent
//! again, and what ThingSpace said of it beats every lapse, however late it is stored.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use tokio::time::Instant;

use crate::{lock::lock, store::Version};

/// Leases that are observed at once. One more is not noted and so does not lapse, rather than that
/// another begins anew.
const MAX_OBSERVED: usize = 10_000;

/// How long an order may be under way: a POST, another one after a renewed token, and half of one
/// for the writes around them.
pub(super) fn lease(order_timeout: Duration) -> Duration {
    order_timeout * 5 / 2
}

/// How much of its lease an order may have used when it is sent: what is left has to do for the
/// POST.
pub(super) fn before_sending(order_timeout: Duration) -> Duration {
    order_timeout * 3 / 2
}

#[derive(Debug, Default)]
pub(super) struct Leases {
    /// By order.
    seen: Mutex<HashMap<String, Seen>>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    version: Version,
    since: Instant,
    lease: Duration,
}

impl Leases {
    /// Whether the lease of an order has lapsed whose cell is at `version`. The first look begins
    /// the observation.
    pub(super) fn has_lapsed(&self, order_id: &str, version: Version, lease: Duration) -> bool {
        let now = Instant::now();
        let mut seen = lock(&self.seen);
        if let Some(known) = seen.get(order_id).filter(|known| known.version == version) {
            return now.duration_since(known.since) >= lease;
        }
        if seen.len() >= MAX_OBSERVED {
            // What lapsed that long ago has been dealt with.
            seen.retain(|_, known| now.duration_since(known.since) < 2 * known.lease);
        }
        if seen.len() < MAX_OBSERVED {
            seen.insert(order_id.to_owned(), Seen { version, since: now, lease });
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(150);

    #[test]
    fn a_lease_covers_two_posts_and_half_of_one() {
        let order_timeout = Duration::from_mins(1);
        assert_eq!(lease(order_timeout), LEASE);
        assert_eq!(before_sending(order_timeout) + order_timeout, LEASE);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_version_seen_unchanged_for_all_its_lease_has_lapsed() {
        let leases = Leases::default();
        let lapsed = |version| leases.has_lapsed("o1", Version(version), LEASE);
        assert!(!lapsed(1));
        tokio::time::advance(LEASE * 9 / 10).await;
        assert!(!lapsed(1));
        // Another version is another observation, and so is the first look after a long absence.
        assert!(!lapsed(2));
        tokio::time::advance(LEASE / 2).await;
        assert!(!lapsed(2));
        tokio::time::advance(LEASE / 2).await;
        assert!(lapsed(2) && lapsed(2));
        assert!(!leases.has_lapsed("o2", Version(2), LEASE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_table_loses_no_observation() {
        let leases = Leases::default();
        let of = |n: usize| leases.has_lapsed(&n.to_string(), Version(1), LEASE);
        assert!((0..=MAX_OBSERVED).all(|n| !of(n)));
        tokio::time::advance(LEASE).await;
        assert!((0..MAX_OBSERVED).all(of));
        assert!(!of(MAX_OBSERVED), "there was no room for it");
        tokio::time::advance(LEASE).await;
        assert!(!of(MAX_OBSERVED), "there is now");
        tokio::time::advance(LEASE).await;
        assert!(of(MAX_OBSERVED));
    }
}
