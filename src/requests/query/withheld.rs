//! Final words of status answers that wait for the callback that says the same, and why.
//!
//! A callback names the reason of a failure and a status answer does not. Where callbacks arrive, a
//! word that would make a device final is kept here for a while, so that the reason is in the final
//! message. It only delays: a word whose time is up is told as it was, without asking again.
//! Bounded by the devices of the request.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::requests::fold::state::Request;
use crate::{
    identity::Device,
    thingspace::{StatusAnswer, StatusClass},
};

/// The words that are withheld of one request.
#[derive(Debug, Default)]
pub struct Withheld(HashMap<Device, Word>);

#[derive(Debug, Clone, Copy)]
struct Word {
    class: StatusClass,
    until: Instant,
}

/// Whom the word of an answer that lists no device is kept under: it is for all.
fn everybody() -> Device {
    Device::default()
}

impl Withheld {
    /// Takes out of an answer what would make devices final, unless it was taken out `grace` ago.
    pub fn sift(
        &mut self,
        request: &Request,
        mut answer: StatusAnswer,
        grace: Duration,
        now: Instant,
    ) -> StatusAnswer {
        self.forget(request);
        let mut take = |device: &Device, class: &mut StatusClass| {
            let word =
                self.0.entry(device.clone()).or_insert(Word { class: *class, until: now + grace });
            word.class = *class;
            if word.until > now {
                *class = StatusClass::Unknown;
            }
        };
        if answer.devices.is_empty() {
            if request.ends(&everybody(), answer.overall) {
                take(&everybody(), &mut answer.overall);
            }
            return answer;
        }
        for (device, class) in &mut answer.devices {
            if device.present().next().is_some() && request.ends(device, *class) {
                take(device, class);
            }
        }
        answer
    }

    /// When the time of the first word is up.
    pub fn until(&self) -> Option<Instant> {
        self.0.values().map(|word| word.until).min()
    }

    /// The words whose time is up, as an answer.
    pub fn due(&self, now: Instant) -> Option<StatusAnswer> {
        let due = || self.0.iter().filter(|(_, word)| word.until <= now);
        if let Some((_, word)) = due().find(|(device, _)| **device == everybody()) {
            return Some(StatusAnswer { overall: word.class, devices: Vec::new() });
        }
        let devices: Vec<_> = due().map(|(device, word)| (device.clone(), word.class)).collect();
        (!devices.is_empty()).then_some(StatusAnswer { overall: StatusClass::Unknown, devices })
    }

    /// Forgets the words for devices that are final by now.
    pub fn forget(&mut self, request: &Request) {
        if request.is_closed() {
            self.0 = HashMap::new();
        }
        self.0.retain(|device, word| request.ends(device, word.class));
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::{
        identity::{AccountName, Digits},
        proto::storage::{self, Event},
        requests::fold::event::{self, Kind},
        store::Position,
    };

    const GRACE: Duration = Duration::from_secs(10);

    fn device(n: usize) -> Device {
        Device {
            eid: Digits::new(&format!("{n:032}")),
            iccid: Digits::new(&format!("{n:020}")),
            ..Device::default()
        }
    }

    fn apply(request: &mut Request, sequence: u64, kind: Kind) {
        let event = Event { rules: event::RULES, kind: Some(kind), first_sequence: 0 };
        request.apply(Position { epoch: 1, sequence }, Timestamp::UNIX_EPOCH, &event);
    }

    fn request(devices: usize) -> Request {
        let mut request = Request::default();
        let accepted = storage::Accepted {
            order_id: "o".to_owned(),
            account: "0000123456-00001".to_owned(),
            devices: (0..devices).map(|n| event::to_stored(&device(n))).collect(),
            ..storage::Accepted::default()
        };
        apply(&mut request, 1, Kind::Accepted(accepted));
        request
    }

    fn observe(request: &mut Request, sequence: u64, answer: &StatusAnswer) -> usize {
        let news = request.news(&AccountName::parse("0000123456-00001").unwrap(), answer);
        let count = news.len();
        for observed in news {
            apply(request, sequence, Kind::Observed(observed));
        }
        count
    }

    fn answer(classes: &[StatusClass]) -> StatusAnswer {
        let devices = classes.iter().enumerate().map(|(n, class)| (device(n), *class)).collect();
        StatusAnswer { overall: StatusClass::Succeeded, devices }
    }

    use StatusClass::{Failed, Pending, Succeeded, Unknown, Waiting};

    #[test]
    fn only_what_would_end_a_device_waits_and_each_word_has_its_own_time() {
        let (mut request, mut withheld, start) = (request(3), Withheld::default(), Instant::now());
        let told = withheld.sift(&request, answer(&[Failed, Waiting, Pending]), GRACE, start);
        assert_eq!(told, answer(&[Unknown, Waiting, Pending]));
        assert_eq!(withheld.until(), Some(start + GRACE));
        observe(&mut request, 2, &told);

        let later = start + GRACE / 2;
        let told = withheld.sift(&request, answer(&[Failed, Succeeded, Pending]), GRACE, later);
        assert_eq!(told, answer(&[Unknown, Unknown, Pending]));
        assert_eq!(observe(&mut request, 3, &told), 0);
        assert_eq!(withheld.due(later), None);

        let up = withheld.due(start + GRACE).unwrap();
        assert_eq!(up.devices, [(device(0), Failed)]);
        assert_eq!(observe(&mut request, 4, &up), 1);
        withheld.forget(&request);
        assert_eq!(withheld.until(), Some(later + GRACE));
        // A question at that moment is as good as the end of the wait.
        let told =
            withheld.sift(&request, answer(&[Failed, Succeeded, Pending]), GRACE, later + GRACE);
        assert_eq!(told, answer(&[Failed, Succeeded, Pending]));
    }

    #[test]
    fn an_answer_that_lists_no_device_waits_whole() {
        let (mut request, mut withheld, start) = (request(2), Withheld::default(), Instant::now());
        let overall = StatusAnswer { overall: Failed, devices: Vec::new() };
        let told = withheld.sift(&request, overall.clone(), GRACE, start);
        assert_eq!(observe(&mut request, 2, &told), 0);
        assert_eq!(withheld.due(start), None);
        assert_eq!(withheld.due(start + GRACE), Some(overall.clone()));
        assert_eq!(observe(&mut request, 3, &overall), 1);
        assert!(request.is_final());
        withheld.forget(&request);
        assert_eq!(withheld.until(), None);
    }
}
