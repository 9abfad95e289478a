//! Makes the entries of a status answer about one device agree.

use std::collections::{HashMap, HashSet};

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
    /// if they have neither), or if `known` returns the same device of the request for both.
    /// `known` returns the indexes of the devices that an entry fits, or `None` if it may be about
    /// a new device of the request.
    ///
    /// An entry without an identifier may be about any device, so its success or failure
    /// contradicts the opposite in every other entry. So may an entry that fits no device of the
    /// request, for example one with the ICCID of a new profile. Its success contradicts each
    /// failure, and any other class contradicts each success. The overall status confirms nothing,
    /// because ThingSpace says Success above pending devices.
    pub fn agree(&mut self, known: impl Fn(&Device) -> Option<Vec<usize>>) {
        use StatusClass::{Failed, Succeeded};
        // Each entry points to another entry of its group, the last one to itself.
        let mut links: Vec<usize> = (0..self.devices.len()).collect();
        let (mut first_with, mut of_request) = (HashMap::new(), Vec::new());
        for (at, (device, _)) in self.devices.iter().enumerate() {
            let known = known(device);
            if known.as_ref().is_none_or(|known| !known.is_empty()) {
                of_request.push(at);
            }
            for key in ids(device).chain(known.into_iter().flatten().map(DeviceKey::Known)) {
                let other = *first_with.entry(key).or_insert(at);
                let (own, others) = (last(&mut links, at), last(&mut links, other));
                links[own] = others;
            }
        }
        let groups: Vec<usize> = (0..links.len()).map(|at| last(&mut links, at)).collect();
        let of_request: HashSet<usize> = of_request.into_iter().map(|at| groups[at]).collect();
        let entries = || self.devices.iter().zip(&groups);
        let has_unnamed = |wanted| {
            entries().any(|((device, class), _)| ids(device).next().is_none() && *class == wanted)
        };
        let has_other = |success| {
            entries().any(|((_, class), group)| {
                (*class == Succeeded) == success && !of_request.contains(group)
            })
        };
        let denies_success = has_unnamed(Failed) || has_other(false);
        let denies_failure = has_unnamed(Succeeded) || has_other(true);
        let mut agreed = HashMap::new();
        for ((device, class), group) in entries() {
            let is_contradicted = ids(device).next().is_some()
                && match class {
                    Succeeded => denies_success,
                    Failed => denies_failure,
                    StatusClass::Pending | StatusClass::Waiting | StatusClass::Unknown => false,
                };
            let of_group = agreed.entry(*group).or_insert(*class);
            if is_contradicted || of_group != class {
                *of_group = StatusClass::Unknown;
            }
        }
        for ((_, class), group) in self.devices.iter_mut().zip(&groups) {
            *class = agreed[group];
        }
    }
}

/// Returns the EID and the ICCID, or the other identifiers if there is neither.
fn ids(device: &Device) -> impl Iterator<Item = DeviceKey<'_>> {
    let is_weak = device.eid.is_empty() && device.iccid.is_empty();
    device
        .present()
        .filter(move |(kind, _)| {
            is_weak || matches!(kind, IdentifierKind::Eid | IdentifierKind::Iccid)
        })
        .map(|(kind, digits)| DeviceKey::Id(kind, digits.as_str()))
}

/// Returns the last entry of a group, and shortens the links to it.
fn last(groups: &mut [usize], mut at: usize) -> usize {
    while groups[at] != at {
        groups[at] = groups[groups[at]];
        at = groups[at];
    }
    at
}
