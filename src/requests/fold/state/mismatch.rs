//! Whether a request contradicts an order, or another request with nearly the same id.

use std::collections::HashSet;

use super::Request;
use crate::identity::{Device, Digits, IdentifierKind};

impl Request {
    /// Whether the request cannot be the result of an order of these devices: it has another
    /// account or another device, or its final list lacks one of them.
    pub(crate) fn contradicts(&self, account: &str, devices: &[Device]) -> bool {
        let other_account = self.account.as_ref().is_some_and(|known| known.as_str() != account);
        let ordered = devices.iter().flat_map(Device::present).collect();
        other_account || self.names_others(account, &ordered) || self.ended_without(devices)
    }

    fn names_others(&self, account: &str, ordered: &HashSet<(IdentifierKind, &Digits)>) -> bool {
        let listed = self.devices.iter().any(|status| is_other(&status.device, ordered));
        let called_back = self.early.iter().filter(|early| early.account == account).any(|early| {
            let eid = Digits::new(early.device.as_ref().map_or("", |device| &device.eid));
            !eid.is_empty() && !ordered.contains(&(IdentifierKind::Eid, &eid))
        });
        listed || called_back
    }

    /// Whether the request's list of devices is final and lacks one of these.
    fn ended_without(&self, devices: &[Device]) -> bool {
        let has_list = self.is_final() && !self.devices.is_empty();
        has_list && devices.iter().any(|device| self.find(device).is_none())
    }

    /// Whether two requests whose ids differ only in case are different requests.
    pub(crate) fn differs_from(&self, other: &Self) -> bool {
        let devices: Vec<_> = other.devices.iter().map(|status| status.device.clone()).collect();
        other.account.as_ref().is_some_and(|account| self.contradicts(account.as_str(), &devices))
    }
}

/// Whether a device is none of the order's devices. If it has an EID, the EID decides, because the
/// ICCID may be that of the new profile.
fn is_other(device: &Device, ordered: &HashSet<(IdentifierKind, &Digits)>) -> bool {
    if !device.eid.is_empty() {
        return !ordered.contains(&(IdentifierKind::Eid, &device.eid));
    }
    let mut ids = device.present().filter(|(kind, _)| *kind != IdentifierKind::Mdn).peekable();
    ids.peek().is_some() && !ids.any(|id| ordered.contains(&id))
}
