//! Finds the device that an event refers to.

use super::Request;
use crate::{
    identity::{Device, Digits, IdentifierKind},
    requests::fold::event,
};

impl Request {
    /// Whether a status answer names a new device while the device set is not known yet. A new
    /// device has a new EID or, without an EID, another new identifier.
    pub(super) fn is_new(&self, device: &Device) -> bool {
        let is_new =
            |(kind, digits): (_, &Digits)| !self.index.contains_key(&(kind, digits.clone()));
        let names = if device.eid.is_empty() { usize::MAX } else { 1 };
        !self.known && self.find(device).is_none() && device.present().take(names).any(is_new)
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

    /// Returns every device that has one of these identifiers.
    pub(super) fn named_by(&self, device: &Device) -> Vec<usize> {
        let ids = [(IdentifierKind::Eid, &device.eid), (IdentifierKind::Iccid, &device.iccid)];
        let by_id = ids.into_iter().filter_map(|(kind, digits)| {
            self.index.get(&(kind, digits.clone())).copied().flatten()
        });
        by_id.chain(self.find(device)).collect()
    }

    /// Returns the only device of a request, for a callback whose identifiers match none. Since
    /// rules 4 such a callback applies to it, unless it has an EID or another IMEI. Its ICCID may
    /// be that of the new profile.
    pub(super) fn only_device(&self, called: &Device) -> Option<usize> {
        let [status] = &*self.devices else { return None };
        let (own, imei) = (&status.device.imei, &called.imei);
        let is_other = !called.eid.is_empty() || !own.is_empty() && !imei.is_empty() && own != imei;
        (self.rules == event::RULES && !is_other).then_some(0)
    }
}
