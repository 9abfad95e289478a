//! Finds the device that an event refers to, and applies the event to it.

use std::sync::Arc;

use super::{DeviceState, DeviceStatus, FoldStep, Request, size};
use crate::{
    identity::{Device, Digits, IdentifierKind},
    proto::storage,
    requests::fold::event,
};

impl Request {
    /// Whether a status answer names a new device while the device set is not known yet. A new
    /// device has a new EID or, without an EID, another new identifier.
    pub(super) fn is_new(&self, device: &Device) -> bool {
        let is_new =
            |(kind, digits): (_, &Digits)| !self.index.contains_key(&(kind, digits.clone()));
        let count = if device.eid.is_empty() { usize::MAX } else { 1 };
        !self.known && self.find(device).is_none() && device.present().take(count).any(is_new)
    }

    pub(in crate::requests) fn find(&self, device: &Device) -> Option<usize> {
        let at = |kind, digits: &Digits| self.index.get(&(kind, digits.clone())).copied().flatten();
        if device.eid.is_empty() {
            device.present().find_map(|(kind, digits)| at(kind, digits))
        } else {
            at(IdentifierKind::Eid, &device.eid)
                // The devices of an external request may be known without EIDs.
                .or_else(|| {
                    device
                        .present()
                        .find_map(|(kind, digits)| at(kind, digits))
                        .filter(|&at| self.devices[at].device.eid.is_empty())
                })
        }
    }

    /// Returns the indices of the devices that have the EID or the ICCID, or that [`Self::find`]
    /// finds.
    pub(super) fn named_by(&self, device: &Device) -> Vec<usize> {
        let ids = [(IdentifierKind::Eid, &device.eid), (IdentifierKind::Iccid, &device.iccid)];
        let by_id = ids.into_iter().filter_map(|(kind, digits)| {
            self.index.get(&(kind, digits.clone())).copied().flatten()
        });
        by_id.chain(self.find(device)).collect()
    }

    /// Returns the only device of a request, for a callback or the only part of a status answer
    /// whose identifiers match none. Since rules 4 it applies to the device, unless it has an EID
    /// or another IMEI. Its ICCID may be that of the new profile.
    pub(super) fn only_device(&self, called: &Device) -> Option<usize> {
        let [status] = &*self.devices else { return None };
        let (own, imei) = (&status.device.imei, &called.imei);
        let is_other = !called.eid.is_empty() || !own.is_empty() && !imei.is_empty() && own != imei;
        (self.rules == event::RULES && !is_other).then_some(0)
    }

    pub(super) fn add(&mut self, device: Device, step: &mut FoldStep<'_>) {
        let at = self.devices.len();
        for (kind, digits) in device.present() {
            self.add_to_index(kind, digits.clone(), at);
        }
        self.devices.push(Arc::new(DeviceStatus {
            device,
            state: DeviceState::Pending,
            profile: None,
            fault: None,
            update_time: step.time,
        }));
        self.counts.total += 1;
        step.changed.push(at);
    }

    /// Applies a status to the device with these identifiers, if the request has it.
    pub(super) fn apply_status(
        &mut self,
        device: &Device,
        state: DeviceState,
        fault: Option<&storage::Fault>,
        profile: Option<&storage::Profile>,
        step: &mut FoldStep<'_>,
    ) {
        self.apply_to(self.find(device), device, state, fault, profile, step);
    }

    /// Applies a status to the device at an index. `None`: the request has no such device.
    pub(super) fn apply_to(
        &mut self,
        at: Option<usize>,
        device: &Device,
        state: DeviceState,
        fault: Option<&storage::Fault>,
        profile: Option<&storage::Profile>,
        step: &mut FoldStep<'_>,
    ) {
        let Some(at) = at else {
            step.applied.unmatched += 1;
            return;
        };
        self.move_device(at, state, step);
        let current = &self.devices[at];
        // Only the final status may add a fault or a profile. The fault of a warning is not the
        // reason of a later failure.
        let is_final_status = state.is_final() && current.state == state;
        let new_fault = fault
            .filter(|_| is_final_status && state == DeviceState::Failed && current.fault.is_none());
        let new_profile = profile.filter(|_| is_final_status && current.profile.is_none());
        let new_ids: Vec<_> = device
            .present()
            .map(|(kind, _)| kind)
            .filter(|&kind| current.device.get(kind).is_empty())
            .filter(|&kind| kind != IdentifierKind::Iccid || self.takes_iccid(&device.iccid))
            .collect();
        if new_fault.is_none() && new_profile.is_none() && new_ids.is_empty() {
            return;
        }
        for kind in new_ids {
            let digits = device.get(kind).clone();
            self.add_to_index(kind, digits.clone(), at);
            *Arc::make_mut(&mut self.devices[at]).device.get_mut(kind) = digits;
        }
        self.text_bytes += size::of_texts(new_fault, new_profile);
        let status = Arc::make_mut(&mut self.devices[at]);
        status.fault = new_fault.cloned().or(status.fault.take());
        status.profile = new_profile.cloned().or(status.profile.take());
        status.update_time = step.time;
        step.changed.push(at);
    }

    /// Adds an identifier to the index. Devices that share an identifier cannot be found by it.
    fn add_to_index(&mut self, kind: IdentifierKind, digits: Digits, at: usize) {
        self.index.entry((kind, digits)).and_modify(|at| *at = None).or_insert(Some(at));
    }

    /// Whether this ICCID may be filled in for a device without one.
    fn takes_iccid(&self, iccid: &Digits) -> bool {
        self.rules >= event::ICCID_RULES
            && !self.index.contains_key(&(IdentifierKind::Iccid, iccid.clone()))
    }

    fn move_device(&mut self, at: usize, state: DeviceState, step: &mut FoldStep<'_>) {
        let current = self.devices[at].state;
        if current.moves_to(state) {
            let status = Arc::make_mut(&mut self.devices[at]);
            status.state = state;
            status.update_time = step.time;
            self.counts.succeeded += usize::from(state == DeviceState::Succeeded);
            self.counts.failed += usize::from(state == DeviceState::Failed);
            step.changed.push(at);
        } else if current.is_final() && state.is_final() && current != state {
            step.applied.contradictions += 1;
        }
    }

    pub(super) fn apply_to_all(&mut self, state: Option<DeviceState>, step: &mut FoldStep<'_>) {
        if let Some(state) = state {
            (0..self.devices.len()).for_each(|at| self.move_device(at, state, step));
        }
    }
}
