//! The open requests by age. Metrics and the status page show the same classes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::age;
use crate::{identity::AccountName, lock::lock, requests::Requests};

/// The classes of ages: the longest age of each, its name in metrics, and its name for people.
pub(crate) const AGES: [(Duration, &str, &str); 5] = [
    (Duration::from_mins(1), "1m", "up to 1 minute"),
    (Duration::from_mins(10), "10m", "1 to 10 minutes"),
    (Duration::from_hours(1), "1h", "10 minutes to 1 hour"),
    (Duration::from_hours(24), "1d", "1 hour to 1 day"),
    (Duration::MAX, "older", "over a day"),
];

/// How long a result is used. Each takes a look at all open requests, and everybody who reaches the
/// admin listener can ask for one.
const FRESH: Duration = Duration::from_secs(1);

/// Some open requests, by the classes of [`AGES`].
#[derive(Debug, Clone, Default)]
pub(crate) struct OpenByAge {
    pub(crate) requests: [usize; AGES.len()],
    pub(crate) devices: [usize; AGES.len()],
    pub(crate) oldest: Duration,
}

/// The open requests of each account. `None`: only callbacks name the requests.
pub(crate) type OpenByAccount = HashMap<Option<AccountName>, OpenByAge>;

/// The last result, and when it was made.
pub(in crate::requests) type LastAges = Arc<Mutex<Option<(Instant, Arc<OpenByAccount>)>>>;

/// The open requests of a class of ages, for people.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OpenAge {
    /// Such as `1 hour to 1 day`.
    pub(crate) age: String,
    pub(crate) requests: usize,
    pub(crate) devices: usize,
}

impl Requests {
    /// Returns the open requests of each account, at most [`FRESH`] old.
    pub(crate) fn open_by_account(&self) -> Arc<OpenByAccount> {
        let mut last = lock(&self.last_ages);
        match &*last {
            Some((at, open)) if at.elapsed() < FRESH => Arc::clone(open),
            _ => {
                let open = Arc::new(self.count_by_account());
                *last = Some((Instant::now(), Arc::clone(&open)));
                open
            }
        }
    }

    /// Returns the open requests by age, the youngest first. They are at most [`FRESH`] old.
    pub(crate) fn open_by_age(&self) -> Vec<OpenAge> {
        let open = self.open_by_account();
        let sum = |class: usize, select: fn(&OpenByAge) -> &[usize; AGES.len()]| {
            open.values().map(|open| select(open)[class]).sum()
        };
        let classes = AGES.iter().enumerate();
        classes
            .map(|(class, (_, _, age))| OpenAge {
                age: (*age).to_owned(),
                requests: sum(class, |open| &open.requests),
                devices: sum(class, |open| &open.devices),
            })
            .collect()
    }

    fn count_by_account(&self) -> OpenByAccount {
        let mut open = OpenByAccount::default();
        for tracked in self.hub.open_tracked() {
            let request = &tracked.lock().request;
            let age = age(&*self.store, request.first, request.create_time);
            let open = open.entry(request.account.clone()).or_default();
            let class = AGES.iter().position(|(longest, ..)| age <= *longest).unwrap_or_default();
            open.requests[class] += 1;
            open.devices[class] += request.counts.total;
            open.oldest = open.oldest.max(age);
        }
        open
    }
}
