//! The connections that are open, at most so many. A new one takes the place of the oldest on which nothing is open: those who
//! hold connections only to keep others out hold them in vain.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use tokio_util::sync::CancellationToken;

/// What happens on a connection.
#[derive(Debug, Default)]
pub(super) struct Activity {
    begun: AtomicU64,
    open: AtomicUsize,
}

impl Activity {
    /// Nothing is open on it.
    fn rests(&self) -> bool {
        self.open.load(Ordering::Relaxed) == 0
    }

    /// Whether nothing is open and nothing began since the last look.
    pub(super) fn rested_since(&self, begun: &mut u64) -> bool {
        let before = std::mem::replace(begun, self.begun.load(Ordering::Relaxed));
        before == *begun && self.rests()
    }
}

/// A request while it is open.
pub(super) struct Open(Arc<Activity>);

impl Open {
    pub(super) fn new(activity: &Arc<Activity>) -> Self {
        activity.begun.fetch_add(1, Ordering::Relaxed);
        activity.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The open connections, oldest first.
#[derive(Clone)]
pub(super) struct Crowd {
    most: usize,
    places: Arc<Mutex<Places>>,
}

#[derive(Default)]
struct Places {
    count: u64,
    held: BTreeMap<u64, (Arc<Activity>, CancellationToken)>,
}

/// A connection's place, given back when it is dropped.
pub(super) struct Place {
    pub(super) activity: Arc<Activity>,
    /// The place was given to another.
    pub(super) taken: CancellationToken,
    number: u64,
    crowd: Crowd,
}

impl Crowd {
    pub(super) fn new(most: usize) -> Self {
        Self { most, places: Arc::default() }
    }

    /// `None`: on every connection something is open.
    pub(super) fn admit(&self) -> Option<Place> {
        let mut places = self.places();
        if places.held.len() >= self.most {
            let resting = places.held.iter().find(|(_, (activity, _))| activity.rests());
            let number = resting.map(|(number, _)| *number)?;
            let (_, taken) = places.held.remove(&number)?;
            taken.cancel();
        }
        places.count += 1;
        let (number, activity, taken) = (places.count, Arc::default(), CancellationToken::new());
        places.held.insert(number, (Arc::clone(&activity), taken.clone()));
        drop(places);
        Some(Place { activity, taken, number, crowd: self.clone() })
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.places().held.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_that_rests_makes_room() {
        let crowd = Crowd::new(3);
        let places: Vec<_> = (0..3).map(|_| crowd.admit().unwrap()).collect();
        let open = [Open::new(&places[0].activity), Open::new(&places[2].activity)];
        let fourth = crowd.admit().unwrap();
        assert_eq!([0, 1, 2].map(|n| places[n].taken.is_cancelled()), [false, true, false]);
        let open_fourth = Open::new(&fourth.activity);
        assert!(crowd.admit().is_none());
        drop(open);
        assert!(crowd.admit().is_some());
        assert!(places[0].taken.is_cancelled());
        drop((places, fourth, open_fourth));
        assert!(crowd.places().held.is_empty());
    }

    #[test]
    fn a_connection_rests_when_nothing_began_since_the_last_look() {
        let activity = Arc::new(Activity::default());
        let mut begun = 0;
        assert!(activity.rested_since(&mut begun));
        let open = Open::new(&activity);
        assert!(!activity.rested_since(&mut begun) && !activity.rested_since(&mut begun));
        drop(open);
        assert!(activity.rested_since(&mut begun));
        drop(Open::new(&activity));
        assert!(!activity.rested_since(&mut begun));
    }
}
