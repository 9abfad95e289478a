//! Reads the body of a callback, in every shape that is documented or was observed.
//!
//! The case of field names does not matter. An object may stand for a list of one, and a number for
//! a string. Unknown fields are ignored, and a missing opening brace is added. If a body
//! contradicts itself about an identifier or about success, that part is ignored, and a poll
//! decides. No body causes a panic, and no error or `Debug` output contains any part of it.

use secrecy::SecretString;
use serde_json::value::RawValue;

use crate::{
    identity::{AccountName, Device, Digits, IdentifierKind, RequestId},
    proto::storage,
    requests::fold::event,
    thingspace::{self, DeviceParts, Object, StatusClass},
};

/// The longest text of a fault, in characters.
const MAX_MESSAGE: usize = 256;

/// The longest text about a profile, in characters.
const MAX_PROFILE_TEXT: usize = 64;

/// A run of at least this many digits may be an identity, so it is masked.
const MASKED_DIGITS: usize = 7;

/// The number of digits of a masked run that are shown.
const SHOWN_DIGITS: usize = 4;

/// The deepest nesting of identifiers: a list of devices, each with a list of identifiers.
const MAX_DEPTH: usize = 3;

/// The fields that hold identifiers, or devices with identifiers.
const IDENTIFIERS: [&str; 6] = [
    "deviceIds",
    "device",
    "devices",
    "deviceIdentifierCollection",
    "deviceIdentifiers",
    "deviceId",
];

#[derive(Debug)]
pub(crate) struct Callback {
    pub(super) request_id: RequestId,
    /// The pair of the sender, which is not checked here.
    pub(super) username: Option<SecretString>,
    pub(super) password: Option<SecretString>,
    /// The event, without the account.
    pub(super) called_back: storage::CalledBack,
}

/// Why a callback goes to the quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QuarantineReason {
    #[error("it is not a JSON object")]
    NotAnObject,
    #[error("it names no request")]
    NoRequest,
    #[error("it names another account than its path")]
    OtherAccount,
}

/// Reads a callback that arrived at the path of this account.
pub(crate) fn parse(body: &[u8], account: &AccountName) -> Result<Callback, QuarantineReason> {
    let text = decode(body);
    let root: Object<'_> =
        serde_json::from_str(&text).map_err(|_| QuarantineReason::NotAnObject)?;
    let parts = DeviceParts::of(&root);
    if !parts.are_of_account(account) {
        return Err(QuarantineReason::OtherAccount);
    }
    let request_id = root.request_id().ok_or(QuarantineReason::NoRequest)?;
    let mut identifiers = ReportedIdentifiers::default();
    for part in parts.all() {
        identifiers.gather(part, MAX_DEPTH);
    }
    let fault = root.objects(&["faultResponse"]).iter().find_map(fault);
    Ok(Callback {
        request_id,
        username: root.text(&["username"]).map(SecretString::from),
        password: root.text(&["password"]).map(SecretString::from),
        called_back: storage::CalledBack {
            account: String::new(),
            device: Some(event::to_stored(&identifiers.consistent())),
            status: event::class_to_stored(class(&root, &parts, fault.is_some())).into(),
            fault: fault.filter(|fault| *fault != storage::Fault::default()),
            profile: parts.profiles.iter().find_map(profile),
        },
    })
}

/// Reads the user name and password alone.
pub(crate) fn pair(body: &[u8]) -> Option<(SecretString, SecretString)> {
    let text = decode(body);
    let root: Object<'_> = serde_json::from_str(&text).ok()?;
    Some((root.text(&["username"])?.into(), root.text(&["password"])?.into()))
}

/// Decodes a body, and adds the opening brace that ThingSpace sometimes leaves out.
fn decode(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.starts_with('"') { format!("{{{text}") } else { text.to_owned() }
}

/// Returns the status, or `Unknown` if the status fields differ. An unknown status with a fault is
/// a failure. A success with a fault, or with a part that says failure, is unknown.
fn class(root: &Object<'_>, parts: &DeviceParts<'_, '_>, has_fault: bool) -> StatusClass {
    let classify = |value: &RawValue| {
        serde_json::from_str::<String>(value.get())
            .map_or(StatusClass::Unknown, |word| StatusClass::of(&word))
    };
    let mut classes = root.values(&["status"]).map(classify);
    let class = classes.next().unwrap_or(StatusClass::Unknown);
    if !classes.all(|other| other == class) {
        return StatusClass::Unknown;
    }
    match class {
        StatusClass::Unknown if has_fault => StatusClass::Failed,
        StatusClass::Succeeded if has_fault || parts.deny_success() => StatusClass::Unknown,
        class => class,
    }
}

/// Reads a fault. Returns `None` if it is empty. It may have other fields than code and message.
fn fault(object: &Object<'_>) -> Option<storage::Fault> {
    let code = thingspace::shown_code(&object.text(&["faultCode", "code"]).unwrap_or_default());
    let message = masked(object.text(&["faultString", "message"]), MAX_MESSAGE);
    let fault = storage::Fault { code, message };
    let is_empty = |value: &RawValue| matches!(value.get(), "null" | "\"\"" | "{}" | "[]");
    (fault != storage::Fault::default() || !object.all().all(is_empty)).then_some(fault)
}

fn profile(object: &Object<'_>) -> Option<storage::Profile> {
    let [state, status, role] = ["state", "profileStatus", "profileRole"]
        .map(|name| masked(object.text(&[name]), MAX_PROFILE_TEXT));
    let profile = storage::Profile { state, status, role };
    (profile != storage::Profile::default()).then_some(profile)
}

/// The identifiers of one device, from all places of a callback.
#[derive(Default)]
struct ReportedIdentifiers {
    device: Device,
    /// The kinds of which the callback has two different values.
    contradicted: Vec<IdentifierKind>,
}

impl ReportedIdentifiers {
    fn gather(&mut self, object: &Object<'_>, depth: usize) {
        for entry in object.objects(&IDENTIFIERS) {
            let kind = entry.text(&["kind"]).and_then(|kind| IdentifierKind::parse(kind.trim()));
            let id = entry.text(&["id", "identifier"]);
            if let (Some(kind), Some(id)) = (kind, id) {
                self.add(kind, id.trim());
            } else if depth > 0 {
                self.gather(&entry, depth - 1);
            }
        }
    }

    fn add(&mut self, kind: IdentifierKind, id: &str) {
        let known = self.device.get_mut(kind);
        if kind.check(id).is_err() || known.as_str() == id {
            return;
        }
        if known.is_empty() {
            *known = Digits::new(id);
        } else {
            self.contradicted.push(kind);
        }
    }

    fn consistent(mut self) -> Device {
        for kind in self.contradicted {
            *self.device.get_mut(kind) = Digits::default();
        }
        self.device
    }
}

/// Returns the beginning of a text, with all but the last digits of long numbers masked.
fn masked(text: Option<String>, characters: usize) -> String {
    let mut masked = String::new();
    let mut digits = Vec::new();
    for next in text.unwrap_or_default().trim().chars().map(Some).chain([None]) {
        if let Some(digit) = next.filter(|c| c.is_numeric()) {
            digits.push(digit);
            continue;
        }
        if digits.len() >= MASKED_DIGITS {
            masked.push('…');
            digits.drain(..digits.len() - SHOWN_DIGITS);
        }
        masked.extend(digits.drain(..));
        masked.extend(next.map(|c| if c.is_control() { ' ' } else { c }));
    }
    masked.chars().take(characters).collect()
}

#[cfg(test)]
mod tests;
