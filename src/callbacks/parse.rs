//! Reads a callback's body, in every shape in which one was documented or met.
//!
//! Names of fields are read in any case, one thing in place of a list and a number in place of a
//! text, unknown fields are ignored, and an opening brace that was lost is put back. It believes
//! nothing twice: where a body contradicts itself about an identifier or about success, that part
//! is left out, and a poll decides. It never panics, and nothing of a body is in an error or in a
//! `Debug` output.

use std::borrow::Cow;

use secrecy::SecretString;
use serde_json::value::RawValue;

use crate::{
    identity::{AccountName, Device, Digits, IdentifierKind, RequestId},
    proto::storage,
    requests::fold::event,
    thingspace::{self, Object, Parts, StatusClass},
};

/// Of a fault's text, in characters.
const MAX_MESSAGE: usize = 256;

/// Of each word about a profile, in characters.
const MAX_WORD: usize = 64;

/// From this many digits on they may be somebody's identity.
const MASKED_DIGITS: usize = 7;

/// How many digits of a masked run are shown.
const SHOWN_DIGITS: usize = 4;

/// How deep identifiers may lie: a list of devices, each with a list of identifiers.
const MAX_DEPTH: usize = 3;

/// The fields that hold identifiers, or devices that hold them.
const IDENTIFIERS: [&str; 6] = [
    "deviceIds",
    "device",
    "devices",
    "deviceIdentifierCollection",
    "deviceIdentifiers",
    "deviceId",
];

/// What a body says.
#[derive(Debug)]
pub struct Callback {
    pub request_id: RequestId,
    /// What the sender shows of itself; not checked here.
    pub username: Option<SecretString>,
    pub password: Option<SecretString>,
    /// The account is for the one to fill in who knows it.
    pub called_back: storage::CalledBack,
}

/// Not a callback about a request; why, without a word of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unintelligible {
    #[error("it is no JSON object")]
    NotAnObject,
    #[error("it names no request")]
    NoRequest,
    #[error("it names another account than its path")]
    OtherAccount,
}

/// Reads a body that came by the path of this account.
pub fn parse(body: &[u8], account: &AccountName) -> Result<Callback, Unintelligible> {
    let text = String::from_utf8_lossy(body);
    let text = repair(text.trim_start_matches('\u{feff}').trim());
    let root: Object<'_> = serde_json::from_str(&text).map_err(|_| Unintelligible::NotAnObject)?;
    let request_id = root.request_id();

    let parts = Parts::of(&root);
    if !parts.are_of_account(account) {
        return Err(Unintelligible::OtherAccount);
    }
    let mut identifiers = Identifiers::default();
    for part in parts.all() {
        identifiers.gather(part, MAX_DEPTH);
    }
    let fault = root.objects(&["faultResponse"]).iter().find_map(Fault::read);
    Ok(Callback {
        request_id: request_id.ok_or(Unintelligible::NoRequest)?,
        username: root.text(&["username"]).map(SecretString::from),
        password: root.text(&["password"]).map(SecretString::from),
        called_back: storage::CalledBack {
            account: String::new(),
            device: Some(event::to_stored(&identifiers.undisputed())),
            status: event::class_to_stored(class(&root, &parts, fault.is_some())).into(),
            fault: fault.and_then(|fault| fault.0),
            profile: parts.profiles.iter().find_map(profile),
        },
    })
}

/// The user name and the password in a body that says nothing else, if both can be read.
pub fn pair(body: &[u8]) -> Option<(SecretString, SecretString)> {
    let text = String::from_utf8_lossy(body);
    let text = repair(text.trim_start_matches('\u{feff}').trim());
    let root: Object<'_> = serde_json::from_str(&text).ok()?;
    Some((root.text(&["username"])?.into(), root.text(&["password"])?.into()))
}

/// Callbacks without their first brace were met.
fn repair(text: &str) -> Cow<'_, str> {
    if text.starts_with('"') { format!("{{{text}").into() } else { text.into() }
}

/// The status that all fields for it agree on. A fault means failure where no word says so. A part
/// that denies a success makes it doubtful.
fn class(root: &Object<'_>, parts: &Parts<'_, '_>, fault: bool) -> StatusClass {
    let of = |value: &RawValue| {
        serde_json::from_str::<String>(value.get())
            .map_or(StatusClass::Unknown, |word| StatusClass::of(&word))
    };
    let mut classes = root.values(&["status"]).map(of);
    let class = classes.next().unwrap_or(StatusClass::Unknown);
    if !classes.all(|other| other == class) {
        return StatusClass::Unknown;
    }
    match class {
        StatusClass::Unknown if fault => StatusClass::Failed,
        StatusClass::Succeeded if fault || parts.deny_success() => StatusClass::Unknown,
        class => class,
    }
}

/// A fault that says something, and of it what may be kept.
struct Fault(Option<storage::Fault>);

impl Fault {
    fn read(object: &Object<'_>) -> Option<Self> {
        let code = thingspace::shown_code(&object.text(&["faultCode", "code"]).unwrap_or_default());
        let message = object.text(&["faultString", "message"]).unwrap_or_default();
        let message = cut(&masked(message.trim()), MAX_MESSAGE);
        let kept = !code.is_empty() || !message.is_empty();
        let present = kept || object.all().any(|value| !is_empty(value));
        present.then_some(Self(kept.then_some(storage::Fault { code, message })))
    }
}

fn is_empty(value: &RawValue) -> bool {
    matches!(value.get(), "null" | "\"\"" | "{}" | "[]")
}

fn profile(object: &Object<'_>) -> Option<storage::Profile> {
    let word = |names| cut(&masked(object.text(names).unwrap_or_default().trim()), MAX_WORD);
    let (state, status, role) =
        (word(&["state"]), word(&["profileStatus"]), word(&["profileRole"]));
    let says = [&state, &status, &role].iter().any(|word| !word.is_empty());
    says.then_some(storage::Profile { state, status, role })
}

/// The identifiers of one device, from wherever they lie. What two places say differently of a kind
/// counts for nothing.
#[derive(Default)]
struct Identifiers {
    device: Device,
    disputed: Vec<IdentifierKind>,
}

impl Identifiers {
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
        } else if !self.disputed.contains(&kind) {
            self.disputed.push(kind);
        }
    }

    fn undisputed(mut self) -> Device {
        for kind in self.disputed {
            *self.device.get_mut(kind) = Digits::default();
        }
        self.device
    }
}

/// Without the digits of anybody's identity, but the last four of each.
fn masked(text: &str) -> String {
    let mut masked = String::new();
    let mut run = Vec::new();
    for next in text.chars().map(Some).chain([None]) {
        if let Some(digit) = next.filter(|c| c.is_numeric()) {
            run.push(digit);
            continue;
        }
        if run.len() >= MASKED_DIGITS {
            masked.push('…');
            run.drain(..run.len() - SHOWN_DIGITS);
        }
        masked.extend(run.drain(..));
        masked.extend(next.map(|c| if c.is_control() { ' ' } else { c }));
    }
    masked
}

fn cut(text: &str, characters: usize) -> String {
    text.chars().take(characters).collect()
}

#[cfg(test)]
mod tests;
