//! Exponential back-off.

use std::time::Duration;

/// Returns the pause before the next attempt: `least`, doubled `failures` times up to `most`, and
/// then a random part of that, at least half. So replicas do not all retry at the same moment.
pub(crate) fn backoff(failures: usize, least: Duration, most: Duration) -> Duration {
    let doublings = u32::try_from(failures).unwrap_or(u32::MAX);
    jittered(doubled(least, doublings, most), fastrand::f64())
}

/// Doubles a pause this many `times`, up to `most`.
pub(crate) fn doubled(pause: Duration, times: u32, most: Duration) -> Duration {
    pause.saturating_mul(2_u32.saturating_pow(times)).min(most)
}

/// Returns a part of a pause: half of it if `random` is 0, all of it if `random` is 1.
pub(crate) fn jittered(pause: Duration, random: f64) -> Duration {
    pause.mul_f64(f64::midpoint(1.0, random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound() {
        let (least, most) = (Duration::from_millis(50), Duration::from_secs(2));
        for failures in 0..100 {
            let pause = backoff(failures, least, most);
            assert!(pause >= least / 2 && pause <= most, "{pause:?}");
        }
        assert!(backoff(99, least, most) >= most / 2);
        assert_eq!(doubled(least, 3, most), Duration::from_millis(400));
    }
}
