//! Final statuses of answers, withheld until the callback with their reason arrives.
//!
//! A callback gives the reason of a failure; a status answer does not. If callbacks arrive for the
//! account, a status that would make a device final is withheld for a grace period, so that the
//! final message contains the reason. When the period ends, the status is appended without another
//! query. If an answer has another status of the device, the withheld status is dropped. The number
//! of withheld statuses is bounded by the devices of the request.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::{
    identity::Device,
    requests::fold::state::Request,
    thingspace::{StatusAnswer, StatusClass},
};

/// The withheld statuses of one request.
#[derive(Debug, Default)]
pub(crate) struct Withheld {
    /// The status of an answer that lists no device: it applies to all devices.
    overall: Option<WithheldStatus>,
    devices: HashMap<Device, WithheldStatus>,
}

#[derive(Debug, Clone, Copy)]
struct WithheldStatus {
    class: StatusClass,
    until: Instant,
}

impl WithheldStatus {
    /// Replaces the status in an answer by `Unknown`, until the grace period ends.
    fn hold(self, class: &mut StatusClass, now: Instant) {
        if self.until > now {
            *class = StatusClass::Unknown;
        }
    }
}

impl Withheld {
    /// Replaces final statuses in an answer by `Unknown`, unless all answers within `grace` had
    /// them.
    pub(crate) fn withhold(
        &mut self,
        request: &Request,
        mut answer: StatusAnswer,
        grace: Duration,
        now: Instant,
    ) -> StatusAnswer {
        self.forget(request);
        request.make_agree(&mut answer);
        let new = |class| WithheldStatus { class, until: now + grace };
        if answer.devices.is_empty() {
            self.overall = self.overall.filter(|held| held.class == answer.overall);
            if request.ends_any(answer.overall) {
                self.overall.get_or_insert(new(answer.overall)).hold(&mut answer.overall, now);
            }
            return answer;
        }
        self.overall = None;
        let found = |(device, class): &(Device, _)| Some((request.find(device)?, *class));
        let found: HashMap<usize, StatusClass> = answer.devices.iter().filter_map(found).collect();
        self.devices.retain(|device, held| {
            let class = request.find(device).and_then(|at| found.get(&at));
            class.is_none_or(|class| *class == held.class)
        });
        for (device, class) in &mut answer.devices {
            if device.present().next().is_some() && request.ends(device, *class) {
                self.devices.entry(device.clone()).or_insert(new(*class)).hold(class, now);
            }
        }
        answer
    }

    /// Returns when the first grace period ends.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.overall.iter().chain(self.devices.values()).map(|held| held.until).min()
    }

    /// Returns the statuses whose grace period has ended, as an answer.
    pub(crate) fn due(&self, now: Instant) -> Option<StatusAnswer> {
        let is_due = |held: &WithheldStatus| held.until <= now;
        if let Some(held) = self.overall.filter(is_due) {
            return Some(StatusAnswer { overall: held.class, devices: Vec::new() });
        }
        let due = self.devices.iter().filter(|(_, held)| is_due(held));
        let devices: Vec<_> = due.map(|(device, held)| (device.clone(), held.class)).collect();
        (!devices.is_empty()).then_some(StatusAnswer { overall: StatusClass::Unknown, devices })
    }

    /// Drops the statuses of devices that are final now.
    pub(crate) fn forget(&mut self, request: &Request) {
        if request.is_closed() {
            *self = Self::default();
        }
        self.overall = self.overall.filter(|held| request.ends_any(held.class));
        self.devices.retain(|device, held| request.ends(device, held.class));
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
        let observations =
            request.observations(&AccountName::parse("0000123456-00001").unwrap(), answer);
        let count = observations.len();
        for observed in observations {
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
    fn only_final_statuses_are_withheld_each_for_its_own_time() {
        let (mut request, mut withheld, start) = (request(3), Withheld::default(), Instant::now());
        let rest = withheld.withhold(&request, answer(&[Failed, Waiting, Pending]), GRACE, start);
        assert_eq!(rest, answer(&[Unknown, Waiting, Pending]));
        assert_eq!(withheld.until(), Some(start + GRACE));
        observe(&mut request, 2, &rest);

        let later = start + GRACE / 2;
        let rest = withheld.withhold(&request, answer(&[Failed, Succeeded, Pending]), GRACE, later);
        assert_eq!(rest, answer(&[Unknown, Unknown, Pending]));
        assert_eq!(observe(&mut request, 3, &rest), 0);
        assert_eq!(withheld.due(later), None);

        let released = withheld.due(start + GRACE).unwrap();
        assert_eq!(released.devices, [(device(0), Failed)]);
        assert_eq!(observe(&mut request, 4, &released), 1);
        withheld.forget(&request);
        assert_eq!(withheld.until(), Some(later + GRACE));
        // An answer at that moment is not withheld.
        let rest = withheld.withhold(
            &request,
            answer(&[Failed, Succeeded, Pending]),
            GRACE,
            later + GRACE,
        );
        assert_eq!(rest, answer(&[Failed, Succeeded, Pending]));
    }

    #[test]
    fn an_answer_that_lists_no_device_is_withheld_as_a_whole() {
        let (mut request, mut withheld, start) = (request(2), Withheld::default(), Instant::now());
        let overall = StatusAnswer { overall: Failed, devices: Vec::new() };
        let rest = withheld.withhold(&request, overall.clone(), GRACE, start);
        assert_eq!(observe(&mut request, 2, &rest), 0);
        assert_eq!(withheld.due(start), None);
        assert_eq!(withheld.due(start + GRACE), Some(overall.clone()));
        assert_eq!(observe(&mut request, 3, &overall), 1);
        assert!(request.is_final());
        withheld.forget(&request);
        assert_eq!(withheld.until(), None);
    }

    #[test]
    fn only_a_status_that_the_latest_answer_confirms_is_released() {
        let by_eid = Device { eid: device(0).eid, ..Device::default() };
        let by_iccid = Device { iccid: device(0).iccid, ..Device::default() };
        let listed = |devices: &[(Device, StatusClass)]| StatusAnswer {
            overall: Succeeded,
            devices: devices.to_vec(),
        };
        let unlisted = |overall| StatusAnswer { overall, devices: Vec::new() };
        for (first, later) in [
            (
                answer(&[Succeeded]),
                listed(&[(by_eid.clone(), Succeeded), (by_iccid.clone(), Failed)]),
            ),
            (answer(&[Succeeded]), listed(&[(by_iccid, Unknown)])),
            (answer(&[Failed]), listed(&[(by_eid.clone(), Pending)])),
            (answer(&[Succeeded]), listed(&[(by_eid, Failed)])),
            (unlisted(Succeeded), unlisted(Unknown)),
            (unlisted(Succeeded), unlisted(Failed)),
            (unlisted(Failed), answer(&[Pending])),
        ] {
            let (request, mut withheld) = (request(1), Withheld::default());
            let start = Instant::now();
            withheld.withhold(&request, first.clone(), GRACE, start);
            withheld.withhold(&request, later.clone(), GRACE, start + GRACE / 2);
            assert_eq!(withheld.due(start + GRACE), None, "{first:?}, {later:?}");
            // The grace period begins anew.
            withheld.withhold(&request, first.clone(), GRACE, start + GRACE);
            assert_eq!(withheld.until(), Some(start + 2 * GRACE), "{first:?}, {later:?}");
            let released = withheld.due(start + 2 * GRACE).unwrap();
            assert_eq!(released.devices, first.devices, "{later:?}");
        }
        // An answer about another device says nothing about this one.
        let (request, mut withheld, start) = (request(2), Withheld::default(), Instant::now());
        withheld.withhold(&request, answer(&[Succeeded]), GRACE, start);
        let other = listed(&[(device(1), Pending)]);
        withheld.withhold(&request, other, GRACE, start + GRACE / 2);
        assert_eq!(withheld.due(start + GRACE).unwrap().devices, [(device(0), Succeeded)]);
    }

    /// An answer may name a device by its EID in one entry and by its ICCID in another.
    #[test]
    fn entries_about_one_device_of_the_request_contradict_each_other() {
        let by_eid = |n| Device { eid: device(n).eid, ..Device::default() };
        let by_iccid = |n| Device { iccid: device(n).iccid, ..Device::default() };
        let swapped = |n: usize, m: usize| Device { iccid: device(m).iccid, ..device(n) };
        for (devices, shown) in [
            ([(by_eid(0), Succeeded), (by_iccid(0), Failed)], [Unknown, Unknown]),
            ([(by_eid(0), Pending), (by_iccid(0), Failed)], [Unknown, Unknown]),
            ([(swapped(0, 1), Succeeded), (swapped(1, 0), Failed)], [Unknown, Unknown]),
            ([(by_eid(0), Succeeded), (by_iccid(0), Succeeded)], [Succeeded, Succeeded]),
            ([(by_eid(0), Succeeded), (by_iccid(1), Failed)], [Succeeded, Failed]),
        ] {
            let mut request = request(2);
            let answer = StatusAnswer { overall: Succeeded, devices: devices.to_vec() };
            let rest = Withheld::default().withhold(
                &request,
                answer.clone(),
                Duration::ZERO,
                Instant::now(),
            );
            let classes: Vec<_> = rest.devices.iter().map(|(_, class)| *class).collect();
            assert_eq!(classes, shown, "{answer:?}");
            let is_stored = shown.contains(&Succeeded);
            assert_eq!(observe(&mut request, 2, &answer) > 0, is_stored, "{answer:?}");
        }
    }
}
