//! Log lines of which one input or one bad minute could make thousands.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::lock::lock;

/// Between two lines of a kind.
const SAY_EVERY: Duration = Duration::from_mins(1);

/// One kind of log line: the first is due at once, later ones once a minute with a count.
#[derive(Debug, Default)]
pub(crate) struct Repeated(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    said: Option<Instant>,
    /// What happened since the last line.
    unsaid: u64,
}

impl Repeated {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(State { said: None, unsaid: 0 }))
    }

    /// Counts one; how many a line has to speak of, if one is due.
    pub(crate) fn count(&self) -> Option<u64> {
        self.count_at(Instant::now())
    }

    fn count_at(&self, now: Instant) -> Option<u64> {
        let mut state = lock(&self.0);
        state.unsaid += 1;
        if state.said.is_some_and(|said| now < said + SAY_EVERY) {
            return None;
        }
        state.said = Some(now);
        Some(std::mem::take(&mut state.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_at_once_and_the_others_are_counted() {
        let (kind, now) = (Repeated::new(), Instant::now());
        assert_eq!(kind.count_at(now), Some(1));
        for _ in 0..119_999 {
            assert_eq!(kind.count_at(now + SAY_EVERY / 2), None);
        }
        assert_eq!(kind.count_at(now + SAY_EVERY), Some(120_000));
        assert_eq!(kind.count_at(now + SAY_EVERY), None);
    }
}
