//! The events that a status answer adds to a log.
//!
//! After they are folded, the request has the answer's state. The same answer then adds no events.

use super::{DeviceState, DeviceStatus, Request, completes};
use crate::{
    identity::{AccountName, Device},
    proto::storage,
    requests::fold::event,
    thingspace::{StatusAnswer, StatusClass},
};

impl Request {
    /// Returns the events that a status answer adds, each below the store's size limit.
    pub(crate) fn observations(
        &self,
        account: &AccountName,
        answer: &StatusAnswer,
    ) -> Vec<storage::Observed> {
        let mut answer = answer.clone();
        self.make_agree(&mut answer);
        // An entry without an identifier may be about any device. Then the overall status is not
        // used.
        let is_nameless = |(device, class): &(Device, StatusClass)| {
            device.present().next().is_none() && *class != StatusClass::Succeeded
        };
        let nameless = answer.devices.iter().any(is_nameless);
        let overall = if nameless { StatusClass::Unknown } else { answer.overall };
        let observed = |devices, complete| storage::Observed {
            account: account.as_str().to_owned(),
            overall: event::class_to_stored(overall).into(),
            devices,
            overall_only: answer.devices.is_empty(),
            complete,
        };
        let folded = self.first.is_none() || self.folds();
        if !folded || !self.is_of(account.as_str()) {
            // The fold would ignore the events.
            return Vec::new();
        }
        let changes = |device: &Device, class: StatusClass| {
            let state = DeviceState::of(class).unwrap_or(DeviceState::Pending);
            self.find(device)
                .map_or_else(|| self.is_new(device), |at| self.devices[at].state.moves_to(state))
        };
        let overall = DeviceState::of(overall);
        let listed = |(device, _): &(Device, _)| self.is_new(device) || self.find(device).is_some();
        let completes = !self.known && completes(overall, answer.devices.iter().any(listed));
        let differing: Vec<_> = answer
            .devices
            .iter()
            .filter(|(device, class)| completes || changes(device, *class))
            .map(|(device, class)| storage::ObservedDevice {
                device: Some(event::to_stored(device)),
                status: event::class_to_stored(*class).into(),
            })
            .collect();
        let overall_moves = self.known
            && answer.devices.is_empty()
            && overall.is_some_and(|state| self.devices.iter().any(|d| d.state.moves_to(state)));
        if differing.is_empty() {
            return if completes || overall_moves || self.account.is_none() {
                vec![observed(Vec::new(), true)]
            } else {
                Vec::new()
            };
        }
        let last = differing.len().div_ceil(event::MAX_OBSERVED_DEVICES) - 1;
        differing
            .chunks(event::MAX_OBSERVED_DEVICES)
            .enumerate()
            .map(|(at, devices)| observed(devices.to_vec(), at == last))
            .collect()
    }

    /// Sets the entries of a status answer about one device to unknown if they do not agree. One
    /// entry may have the EID of the device, another the ICCID, and another an unknown identifier.
    pub(crate) fn make_agree(&self, answer: &mut StatusAnswer) {
        // As with callbacks, the only part is about the only device.
        if let [(device, class)] = &mut *answer.devices
            && *class == answer.overall
            && self.known
            && self.named_by(device).is_empty()
            && let Some(at) = self.only_device(device)
        {
            device.clone_from(&self.devices[at].device);
        }
        answer.agree(|device| {
            let devices = self.named_by(device);
            (self.known || !devices.is_empty()).then_some(devices)
        });
    }

    /// Whether a status of a device would make it final.
    pub(crate) fn ends(&self, device: &Device, class: StatusClass) -> bool {
        self.find(device).is_some_and(|at| is_ended_by(&self.devices[at], class))
    }

    /// Whether a status of all devices would make one of them final.
    pub(crate) fn ends_any(&self, class: StatusClass) -> bool {
        self.devices.iter().any(|device| is_ended_by(device, class))
    }
}

fn is_ended_by(device: &DeviceStatus, class: StatusClass) -> bool {
    DeviceState::of(class).is_some_and(|state| state.is_final() && device.state.moves_to(state))
}
