//! Exponential back-off.

use std::time::Duration;

/// Returns the pause after some failures in a row: `least`, doubled with each further failure up to
/// `most`, then between half and all of that by chance, so that replicas drift apart.
pub(crate) fn backoff(failures: usize, least: Duration, most: Duration) -> Duration {
    let doublings = u32::try_from(failures).unwrap_or(u32::MAX);
    jittered(doubled(least, doublings, most), fastrand::f64())
}

/// Doubles a pause some times, up to `most`.
pub(crate) fn doubled(pause: Duration, times: u32, most: Duration) -> Duration {
    pause.saturating_mul(2_u32.saturating_pow(times)).min(most)
}

/// Returns between half of a pause (`roll` is 0) and all of it (`roll` is 1).
pub(crate) fn jittered(pause: Duration, roll: f64) -> Duration {
    pause.mul_f64(f64::midpoint(1.0, roll))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound() {
        let (least, most) = (Duration::from_millis(50), Duration::from_secs(2));
        for failures in 0..100 {
            let wait = backoff(failures, least, most);
            assert!(wait >= least / 2 && wait <= most, "{wait:?}");
        }
        assert!(backoff(99, least, most) >= most / 2);
        assert_eq!(doubled(least, 3, most), Duration::from_millis(400));
    }
}
