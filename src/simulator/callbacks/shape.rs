//! Writes the bodies of callbacks.

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};

use crate::{
    identity::{Device, Digits, IdentifierKind, RequestId},
    simulator::DeviceResult,
};

/// The differences between callbacks. The default is the example on the download page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallbackShape {
    /// The spelling of field names.
    pub case: Case,
    /// Whether a callback with the status `warning` is sent before the final one.
    pub warning_first: bool,
}

/// The spelling of the field names in callbacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Case {
    /// As on the current pages: `requestId`, and `deviceIds` with `kind` and `id`.
    #[default]
    Camel,
    /// As on the oldest pages: `RequestId`, and `Device` with `IdentifierKind` and `Identifier`.
    Pascal,
}

impl CallbackShape {
    pub(in crate::simulator) fn write(
        self,
        request: &RequestId,
        device: &Device,
        result: DeviceResult,
        (username, password): (&str, &SecretString),
        (count, threshold): (u32, u32),
    ) -> Vec<u8> {
        let ids: Vec<Value> = device.present().map(identifier).collect();
        let mut body = Map::new();
        let password = password.expose_secret();
        if !(username.is_empty() && password.is_empty()) {
            body.insert("username".into(), json!(username));
            body.insert("password".into(), json!(password));
        }
        body.insert("requestId".into(), json!(request.as_str()));
        body.insert("deviceIds".into(), json!(ids));
        body.insert("status".into(), json!(status(result)));
        if result == DeviceResult::Failed {
            let fault = json!({
                "faultcode": "DeviceProfileService.REQUEST_FAILED.DownloadFailed",
                "faultstring": "The profile could not be downloaded.",
            });
            body.insert("faultResponse".into(), fault);
        } else {
            let profile = json!({
                "state": "ACTIVE", "profileStatus": "ENABLE", "profileRole": "LOCAL",
                "deviceIdentifierCollection": ids,
            });
            body.insert("deviceResponse".into(), json!({"deviceProfileResponse": profile}));
        }
        body.insert("callbackCount".into(), json!(count));
        body.insert("maxCallbackThreshold".into(), json!(threshold));
        let body = Value::Object(body);
        if self.case == Case::Pascal { pascal(body) } else { body }.to_string().into()
    }
}

fn identifier((kind, digits): (IdentifierKind, &Digits)) -> Value {
    let kind = match kind {
        IdentifierKind::Eid => "Eid",
        IdentifierKind::Iccid => "Iccid",
        IdentifierKind::Imei => "Imei",
        IdentifierKind::Mdn => "mdn",
    };
    json!({"id": digits.as_str(), "kind": kind})
}

fn status(result: DeviceResult) -> &'static str {
    match result {
        DeviceResult::Pending => "Pending",
        DeviceResult::Success => "SUCCESS",
        DeviceResult::Failed => "Failed",
        DeviceResult::Word(word) => word,
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
