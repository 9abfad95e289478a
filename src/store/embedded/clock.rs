//! Checks the wall clock, which gives events their time stamps.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

/// The largest error of the wall clock that is not logged.
pub(super) const TOLERANCE: SignedDuration = SignedDuration::from_mins(1);

/// If the last time stamp is older than this at the start, its age is logged: the clock may be
/// ahead.
const LONG_AGO: SignedDuration = SignedDuration::from_hours(24);

/// The wall clock and the monotonic clock at the same moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    wall: Timestamp,
    monotonic: Instant,
}

impl Clocks {
    pub(super) fn now() -> Self {
        Self { wall: Timestamp::now(), monotonic: Instant::now() }
    }

    /// Returns by how much the wall clock was set since `before`, if by more than [`TOLERANCE`].
    pub(super) fn jump_since(&self, before: &Self) -> Option<SignedDuration> {
        let elapsed = self.monotonic.saturating_duration_since(before.monotonic);
        let elapsed = SignedDuration::try_from(elapsed).unwrap_or(SignedDuration::MAX);
        let jump = self.wall.duration_since(before.wall).saturating_sub(elapsed);
        (jump.abs() > TOLERANCE).then_some(jump)
    }

    /// Returns how far the wall clock is ahead of a time stamp, if by more than [`LONG_AGO`].
    pub(super) fn ahead(&self, last: Timestamp) -> Option<Duration> {
        let ahead = self.wall.duration_since(last);
        (ahead > LONG_AGO).then(|| ahead.unsigned_abs())
    }

    /// Returns how far the wall clock is behind a time stamp, if by more than [`TOLERANCE`].
    pub(super) fn behind(&self, last: Timestamp) -> Option<Duration> {
        let behind = last.duration_since(self.wall);
        (behind > TOLERANCE).then(|| behind.unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clock_that_was_set_is_reported() {
        let (wall, monotonic) = (Timestamp::UNIX_EPOCH, Instant::now());
        let before = Clocks { wall, monotonic };
        let after = |wall_seconds, seconds| Clocks {
            wall: wall + SignedDuration::from_secs(wall_seconds),
            monotonic: monotonic + Duration::from_secs(seconds),
        };
        assert_eq!(after(1, 1).jump_since(&before), None);
        assert_eq!(after(3_600, 3_600).jump_since(&before), None);
        assert_eq!(after(59, 1).jump_since(&before), None);
        assert_eq!(after(3_601, 1).jump_since(&before), Some(SignedDuration::from_hours(1)));
        assert_eq!(after(-3_599, 1).jump_since(&before), Some(SignedDuration::from_hours(-1)));
        assert_eq!(before.behind(wall + SignedDuration::from_secs(60)), None);
        let hour = Duration::from_hours(1);
        assert_eq!(before.behind(wall + SignedDuration::from_hours(1)), Some(hour));
        assert_eq!(before.behind(wall - SignedDuration::from_hours(1)), None);
        assert_eq!(before.ahead(wall - SignedDuration::from_hours(24)), None);
        assert_eq!(
            before.ahead(wall - SignedDuration::from_hours(25)),
            Some(Duration::from_hours(25))
        );
        assert_eq!(before.ahead(wall + SignedDuration::from_hours(25)), None);
    }
}
