//! How a callback is written. Verizon's pages, their samples and its service do not agree.

use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};

use super::Registered;
use crate::{
    identity::{Device, Digits, IdentifierKind, RequestId},
    simulator::Outcome,
};

/// The ways in which callbacks differ. The default is the example of the download page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one difference that was seen, free of the others"
)]
pub struct CallbackShape {
    pub case: Case,
    pub kinds: Kinds,
    pub ids: Ids,
    pub sender: Sender,
    /// Only this kind of identifier.
    pub only: Option<IdentifierKind>,
    /// The entries of a device's ids have a kind and no id.
    pub without_ids: bool,
    /// An object where there could be an array of one, and the other way round.
    pub one_or_many: bool,
    /// Counts as texts.
    pub numbers_as_text: bool,
    /// As it came in 2016.
    pub without_brace: bool,
    /// A callback with the status `warning` goes before the final one.
    pub warning_first: bool,
    /// The request id in upper case.
    pub upper_case_id: bool,
    /// No `faultResponse` in a failure.
    pub without_fault: bool,
    /// Fields that nobody documented.
    pub extras: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Case {
    #[default]
    Camel,
    /// As on the oldest pages: `RequestId`, and `Device` with `Kind` and `Identifier`.
    Pascal,
}

/// The spelling of the kinds of identifiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kinds {
    /// Iccid, Imei, Eid, mdn
    #[default]
    Documented,
    Lower,
    Upper,
}

/// Where the identifiers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ids {
    /// In front, and in the response again.
    #[default]
    Both,
    Outer,
    Inner,
}

/// Whose pair is in the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sender {
    #[default]
    Registered,
    /// None.
    Nobody,
    /// Somebody's who does not know it.
    Stranger,
}

impl CallbackShape {
    pub(super) fn write(
        self,
        request: &RequestId,
        device: &Device,
        outcome: Outcome,
        pair: &Registered,
        count: u32,
        threshold: u32,
    ) -> Vec<u8> {
        let number = |n: u32| if self.numbers_as_text { json!(n.to_string()) } else { json!(n) };
        let ids = self.identifiers(device);
        let mut body = Map::new();
        self.sign(&mut body, pair);
        let id = request.as_str();
        let id = if self.upper_case_id { id.to_ascii_uppercase() } else { id.to_owned() };
        body.insert("requestId".into(), json!(id));
        if self.ids != Ids::Inner {
            body.insert("deviceIds".into(), ids.clone());
        }
        body.insert("status".into(), json!(status(outcome)));
        if outcome == Outcome::Failed && !self.without_fault {
            let fault = json!({
                "faultcode": "DeviceProfileService.REQUEST_FAILED.DownloadFailed",
                "faultstring": "The profile could not be downloaded.",
            });
            body.insert("faultResponse".into(), fault);
        } else if outcome != Outcome::Failed {
            body.insert("deviceResponse".into(), self.response(ids));
        }
        body.insert("callbackCount".into(), number(count));
        body.insert("maxCallbackThreshold".into(), number(threshold));
        if self.extras {
            body.insert("comment".into(), Value::Null);
            body.insert(
                "summary".into(),
                json!({"devicesRequested": 1, "more": [1, {"deep": true}]}),
            );
        }
        let body = match self.case {
            Case::Camel => Value::Object(body),
            Case::Pascal => pascal(Value::Object(body)),
        };
        let text = body.to_string();
        if self.without_brace { text[1..].into() } else { text.into() }
    }

    fn sign(self, body: &mut Map<String, Value>, pair: &Registered) {
        let (username, password) = match self.sender {
            Sender::Registered
                if pair.username.is_empty() && pair.password.expose_secret().is_empty() =>
            {
                return;
            }
            Sender::Registered => (pair.username.as_str(), pair.password.expose_secret()),
            Sender::Stranger => ("stranger", "no idea"),
            Sender::Nobody => return,
        };
        body.insert("username".into(), json!(username));
        body.insert("password".into(), json!(password));
    }

    fn identifiers(self, device: &Device) -> Value {
        let entry = |(kind, digits): (IdentifierKind, &Digits)| {
            let kind = match (self.kinds, kind) {
                (Kinds::Documented, IdentifierKind::Eid) => "Eid".to_owned(),
                (Kinds::Documented, IdentifierKind::Iccid) => "Iccid".to_owned(),
                (Kinds::Documented, IdentifierKind::Imei) => "Imei".to_owned(),
                (Kinds::Documented | Kinds::Lower, kind) => kind.as_str().to_owned(),
                (Kinds::Upper, kind) => kind.as_str().to_ascii_uppercase(),
            };
            if self.without_ids {
                json!({"kind": kind})
            } else {
                json!({"id": digits.as_str(), "kind": kind})
            }
        };
        let mut entries: Vec<Value> = device
            .present()
            .filter(|(kind, _)| self.only.is_none_or(|only| only == *kind))
            .map(entry)
            .collect();
        if self.one_or_many && entries.len() == 1 { entries.remove(0) } else { json!(entries) }
    }

    fn response(self, ids: Value) -> Value {
        let mut profile =
            json!({"state": "ACTIVE", "profileStatus": "ENABLE", "profileRole": "LOCAL"});
        if self.ids != Ids::Outer {
            profile["deviceIdentifierCollection"] = ids;
        }
        if self.one_or_many {
            json!([{"deviceProfileResponse": [profile]}])
        } else {
            json!({"deviceProfileResponse": profile})
        }
    }
}

fn status(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pending => "Pending",
        Outcome::Success => "SUCCESS",
        Outcome::Failed => "Failed",
        Outcome::Word(word) => word,
    }
}

fn pascal(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            fields.into_iter().map(|(key, value)| (pascal_key(&key), pascal(value))).collect()
        }
        Value::Array(values) => values.into_iter().map(pascal).collect(),
        plain => plain,
    }
}

fn pascal_key(key: &str) -> String {
    match key {
        "username" | "password" => key.to_owned(),
        "deviceIds" => "Device".to_owned(),
        "id" => "Identifier".to_owned(),
        _ => key[..1].to_ascii_uppercase() + &key[1..],
    }
}
