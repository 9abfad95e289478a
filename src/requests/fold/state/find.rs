//! Which device of a request a message means.

use super::Request;
use crate::{
    identity::{self, Device, Digits},
    requests::fold::event,
};

impl Request {
    /// Whether a status answer tells of this device for the first time, while the device set is
    /// still unknown: it has an EID that no device has or, without one, another such identifier.
    pub(super) fn is_new(&self, device: &Device) -> bool {
        let unheard =
            |(kind, digits): (_, &Digits)| !self.index.contains_key(&(kind, digits.clone()));
        let names = if device.eid.is_empty() { usize::MAX } else { 1 };
        !self.known && self.find(device).is_none() && device.present().take(names).any(unheard)
    }

    pub(super) fn find(&self, device: &Device) -> Option<usize> {
        let at = |kind, digits: &Digits| self.index.get(&(kind, digits.clone())).copied().flatten();
        if device.eid.is_empty() {
            device.present().find_map(|(kind, digits)| at(kind, digits))
        } else {
            at(identity::IdentifierKind::Eid, &device.eid)
                // A request of others may have become known by a list without EIDs.
                .or_else(|| {
                    device
                        .present()
                        .find_map(|(kind, digits)| at(kind, digits))
                        .filter(|&at| self.devices[at].device.eid.is_empty())
                })
        }
    }

    /// Every device that one of these identifiers names.
    pub(super) fn named_by(&self, device: &Device) -> Vec<usize> {
        let ids = [
            (identity::IdentifierKind::Eid, &device.eid),
            (identity::IdentifierKind::Iccid, &device.iccid),
        ];
        let by_id = ids.into_iter().filter_map(|(kind, digits)| {
            self.index.get(&(kind, digits.clone())).copied().flatten()
        });
        by_id.chain(self.find(device)).collect()
    }

    /// The only device of a request, for a callback whose identifiers find none. By rules 4 such a
    /// callback concerns this device, unless it names an EID or another IMEI. An ICCID may be that
    /// of the new profile.
    pub(super) fn only_device(&self, called: &Device) -> Option<usize> {
        let [status] = &*self.devices else { return None };
        let (own, imei) = (&status.device.imei, &called.imei);
        let is_other = !called.eid.is_empty() || !own.is_empty() && !imei.is_empty() && own != imei;
        (self.rules == event::RULES && !is_other).then_some(0)
    }
}
