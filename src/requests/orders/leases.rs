//! Observes the leases of orders that other replicas send.
//!
//! Replicas share no clock. So a lease is a duration, not a point in time. It has expired when this
//! process has seen the cell's version unchanged for that long on its own monotonic clock. After
//! that, callers no longer wait: the outcome of the order is unknown, and the order is not sent
//! again. ThingSpace's answer still decides the outcome, however late it is stored.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use tokio::time::Instant;

use crate::{lock::lock, store::Version};

/// The maximum number of observed leases. A further lease is not observed, so it does not expire.
const MAX_OBSERVED: usize = 10_000;

/// Returns the lease of an order: the time for two POSTs, one before and one after a renewal, and
/// for the writes.
pub(super) fn lease(order_timeout: Duration) -> Duration {
    order_timeout * 5 / 2
}

/// Returns the part of the lease after which the order is not sent. The rest is for the POST.
pub(super) fn before_sending(order_timeout: Duration) -> Duration {
    order_timeout * 3 / 2
}

#[derive(Debug, Default)]
pub(super) struct Leases {
    seen: Mutex<HashMap<String, ObservedLease>>,
}

#[derive(Debug, Clone, Copy)]
struct ObservedLease {
    version: Version,
    since: Instant,
    lease: Duration,
}

impl Leases {
    /// Returns whether the lease of an order has expired. `version` is that of the key's cell. The
    /// first call for a version begins the observation.
    pub(super) fn has_expired(&self, order_id: &str, version: Version, lease: Duration) -> bool {
        let now = Instant::now();
        let mut seen = lock(&self.seen);
        if let Some(known) = seen.get(order_id).filter(|known| known.version == version) {
            return now.duration_since(known.since) >= lease;
        }
        if seen.len() >= MAX_OBSERVED {
            // Observations that are older than twice their lease are no longer needed.
            seen.retain(|_, known| now.duration_since(known.since) < 2 * known.lease);
        }
        if seen.len() < MAX_OBSERVED {
            seen.insert(order_id.to_owned(), ObservedLease { version, since: now, lease });
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
    async fn a_lease_expires_when_its_version_stays_unchanged_for_its_duration() {
        let leases = Leases::default();
        let expired = |version| leases.has_expired("o1", Version(version), LEASE);
        assert!(!expired(1));
        tokio::time::advance(LEASE * 9 / 10).await;
        assert!(!expired(1));
        // A new version begins a new observation.
        assert!(!expired(2));
        tokio::time::advance(LEASE / 2).await;
        assert!(!expired(2));
        tokio::time::advance(LEASE / 2).await;
        assert!(expired(2) && expired(2));
        assert!(!leases.has_expired("o2", Version(2), LEASE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_table_loses_no_observation() {
        let leases = Leases::default();
        let of = |n: usize| leases.has_expired(&n.to_string(), Version(1), LEASE);
        assert!((0..=MAX_OBSERVED).all(|n| !of(n)));
        tokio::time::advance(LEASE).await;
        assert!((0..MAX_OBSERVED).all(of));
        assert!(!of(MAX_OBSERVED), "a lease beyond the limit is not observed");
        tokio::time::advance(LEASE).await;
        assert!(!of(MAX_OBSERVED), "its observation has only begun");
        tokio::time::advance(LEASE).await;
        assert!(of(MAX_OBSERVED));
    }
}
