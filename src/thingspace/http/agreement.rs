//! Makes the entries of a status answer about one device agree.

use std::collections::HashMap;

use crate::{
    identity::{Device, IdentifierKind},
    thingspace::{StatusAnswer, StatusClass},
};

/// Entries with the same key are about one device.
#[derive(PartialEq, Eq, Hash)]
enum DeviceKey<'a> {
    Id(IdentifierKind, &'a str),
    /// The index of a known device.
    Known(usize),
}

impl StatusAnswer {
    /// Sets the entries about a device to [`StatusClass::Unknown`] if they do not agree.
    ///
    /// Two entries are about one device if they have the same EID or ICCID (another identifier only
    /// if they have neither), or if `known` gives the same device for them. An entry without an
    /// identifier may be about any device, so its success or failure contradicts the opposite in
    /// every other entry.
    pub fn agree(&mut self, known: impl Fn(&Device) -> Vec<usize>) {
        // Each entry points to another entry of its group, the last one to itself.
        let mut groups: Vec<usize> = (0..self.devices.len()).collect();
        let mut first_with = HashMap::new();
        for (at, (device, _)) in self.devices.iter().enumerate() {
            let known = known(device).into_iter().map(DeviceKey::Known);
            for key in ids(device).chain(known) {
                let other = *first_with.entry(key).or_insert(at);
                let (own, others) = (last(&mut groups, at), last(&mut groups, other));
                groups[own] = others;
            }
        }
        let has_unnamed = |class| {
            self.devices.iter().any(|(device, of)| ids(device).next().is_none() && *of == class)
        };
        let (unnamed_success, unnamed_failure) =
            (has_unnamed(StatusClass::Succeeded), has_unnamed(StatusClass::Failed));
        let mut agreed = HashMap::new();
        for (at, (device, class)) in self.devices.iter().enumerate() {
            let is_contradicted = ids(device).next().is_some()
                && match class {
                    StatusClass::Succeeded => unnamed_failure,
                    StatusClass::Failed => unnamed_success,
                    StatusClass::Pending | StatusClass::Waiting | StatusClass::Unknown => false,
                };
            let of_group = agreed.entry(last(&mut groups, at)).or_insert(*class);
            if is_contradicted || of_group != class {
                *of_group = StatusClass::Unknown;
            }
        }
        for (at, (_, class)) in self.devices.iter_mut().enumerate() {
            *class = agreed[&last(&mut groups, at)];
        }
    }
}

/// The EID and the ICCID, or the other identifiers if there is neither.
fn ids(device: &Device) -> impl Iterator<Item = DeviceKey<'_>> {
    let is_weak = device.eid.is_empty() && device.iccid.is_empty();
    device
        .present()
        .filter(move |(kind, _)| {
            is_weak || matches!(kind, IdentifierKind::Eid | IdentifierKind::Iccid)
        })
        .map(|(kind, digits)| DeviceKey::Id(kind, digits.as_str()))
}

/// The last entry of a group. Shortens the way to it.
fn last(groups: &mut [usize], mut at: usize) -> usize {
    while groups[at] != at {
        groups[at] = groups[groups[at]];
        at = groups[at];
    }
    at
}
