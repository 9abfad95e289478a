//! Whether a request that is already known can carry out a certain order.

use std::collections::HashSet;

use super::Request;
use crate::identity::{Device, Digits, IdentifierKind};

impl Request {
    /// Whether something known of the request shows that it does not carry out an order of these
    /// devices: another account, a device that is not among them, or a final list that lacks one of
    /// them.
    pub fn contradicts(&self, account: &str, devices: &[Device]) -> bool {
        let other_account = self.account.as_ref().is_some_and(|known| known.as_str() != account);
        let ordered = devices.iter().flat_map(Device::present).collect();
        other_account || self.names_others(account, &ordered) || self.ended_without(devices)
    }

    fn names_others(&self, account: &str, ordered: &HashSet<(IdentifierKind, &Digits)>) -> bool {
        let listed = self.devices.iter().any(|status| is_other(&status.device, ordered));
        let called_back = self.early.iter().filter(|said| said.account == account).any(|said| {
            let eid =
                said.device.as_ref().map(|device| Digits::new(&device.eid)).unwrap_or_default();
            !eid.is_empty() && !ordered.contains(&(IdentifierKind::Eid, &eid))
        });
        listed || called_back
    }

    /// Its list of devices is complete, and does not have all of these.
    fn ended_without(&self, devices: &[Device]) -> bool {
        let has_list = self.is_final() && !self.devices.is_empty();
        has_list && devices.iter().any(|device| self.find(device).is_none())
    }

    /// Whether two requests whose ids differ only in case are different requests.
    pub fn differs_from(&self, other: &Self) -> bool {
        let devices: Vec<_> = other.devices.iter().map(|status| status.device.clone()).collect();
        other.account.as_ref().is_some_and(|account| self.contradicts(account.as_str(), &devices))
    }
}

/// Whether a device is not among those of an order. Its EID decides if it has one: the ICCID may be
/// of the new profile.
fn is_other(device: &Device, ordered: &HashSet<(IdentifierKind, &Digits)>) -> bool {
    if !device.eid.is_empty() {
        return !ordered.contains(&(IdentifierKind::Eid, &device.eid));
    }
    let mut ids = device.present().filter(|(kind, _)| *kind != IdentifierKind::Mdn).peekable();
    ids.peek().is_some() && !ids.any(|id| ordered.contains(&id))
}
