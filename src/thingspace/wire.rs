//! ThingSpace's JSON: read tolerantly, written strictly.
//!
//! Unknown fields are ignored, fields that are documented in several ways are read in all of them, and a value that
//! would be believed (a token, a request id) is checked. Nothing here keeps or shows a message of ThingSpace.

mod registrations;

use std::{collections::HashMap, fmt, marker::PhantomData, time::Duration};

use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Value, value::RawValue};

pub(super) use registrations::{registered, registration, registrations};

use super::{
    Object, Order, StatusAnswer, StatusClass, code::Said, json::Json, verdict::is_request_id, words::plain,
};
use crate::identity::{AccountName, Device, Digits, Kind, RequestId};

const MAX_TOKEN_BYTES: usize = 4096;
/// ThingSpace says an hour; whoever says more than a day is not believed.
const MAX_LIFETIME_SECONDS: u64 = 86_400;

/// A bearer as it was issued.
#[derive(Debug)]
pub(super) struct Bearer {
    pub(super) token: SecretString,
    pub(super) expires_in: Option<Duration>,
}

/// The body of a download order: the devices' EID, ICCID and IMEI, in this order as in Verizon's example.
pub(super) fn order(order: &Order) -> Bytes {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        devices: Vec<Entry<'a>>,
        account_name: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        service_plan: &'a str,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Entry<'a> {
        device_ids: Vec<Id<'a>>,
    }
    #[derive(Serialize)]
    struct Id<'a> {
        kind: &'static str,
        id: &'a str,
    }
    fn entry(device: &Device) -> Entry<'_> {
        let ids = device.present().filter(|(kind, _)| *kind != Kind::Mdn);
        Entry { device_ids: ids.map(|(kind, id)| Id { kind: kind.as_str(), id: id.as_str() }).collect() }
    }
    json(&Body {
        devices: order.devices.iter().map(entry).collect(),
        account_name: order.account.as_str(),
        service_plan: &order.service_plan,
    })
}

/// The body of a login.
pub(super) fn login(username: &SecretString, password: &SecretString) -> Bytes {
    #[derive(Serialize)]
    struct Body<'a> {
        username: &'a str,
        password: &'a str,
    }
    json(&Body { username: username.expose_secret(), password: password.expose_secret() })
}

fn json(body: &impl Serialize) -> Bytes {
    serde_json::to_vec(body).expect("plain structs of text serialize").into()
}

/// The answer to a token request.
pub(super) fn bearer(body: &[u8]) -> Option<Bearer> {
    #[derive(Deserialize)]
    struct Body {
        access_token: SecretString,
        #[serde(default)]
        token_type: Option<Text>,
        #[serde(default)]
        expires_in: Option<Text>,
    }
    let body: Body = serde_json::from_slice(body).ok()?;
    let is_bearer = body.token_type.is_none_or(|kind| kind.0.eq_ignore_ascii_case("bearer"));
    let seconds = body.expires_in.and_then(|seconds| seconds.0.parse::<u64>().ok());
    let expires_in = seconds.map(|seconds| Duration::from_secs(seconds.min(MAX_LIFETIME_SECONDS)));
    (is_bearer && is_token(&body.access_token)).then_some(Bearer { token: body.access_token, expires_in })
}

/// The answer to a login. A lifetime beside it is ignored: what some documents invent is not what ThingSpace does.
pub(super) fn session(body: &[u8]) -> Option<SecretString> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        session_token: SecretString,
    }
    let body: Body = serde_json::from_slice(body).ok()?;
    is_token(&body.session_token).then_some(body.session_token)
}

fn is_token(token: &SecretString) -> bool {
    let token = token.expose_secret();
    (1..=MAX_TOKEN_BYTES).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The answer to a status call, if it is about the request and the account that were asked for.
pub(super) fn status(body: &[u8], account: &AccountName, asked: &RequestId) -> Option<StatusAnswer> {
    #[derive(Deserialize)]
    struct Body {
        status: Text,
        #[serde(default, alias = "subrequests", alias = "subRequest", deserialize_with = "one_or_many")]
        #[serde(rename = "subRequests")]
        sub_requests: Vec<SubRequest>,
        #[serde(default, rename = "faultResponse", alias = "FaultResponse")]
        fault: Value,
    }
    #[derive(Deserialize)]
    struct SubRequest {
        #[serde(default, deserialize_with = "one_or_many")]
        ids: Vec<Entry>,
        #[serde(default)]
        status: Option<Text>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        kind: Option<Text>,
        #[serde(default)]
        id: Option<Id>,
        #[serde(default)]
        status: Option<Text>,
    }
    impl SubRequest {
        fn device(&self) -> Device {
            let mut device = Device::default();
            for id in &self.ids {
                let (Some(kind), Some(id)) = (&id.kind, &id.id) else { continue };
                if let Some(kind) = Kind::parse(&kind.0).filter(|kind| kind.check(&id.0).is_ok()) {
                    *device.get_mut(kind) = Digits::new(&id.0);
                }
            }
            device
        }

        /// Its own status and those of its ids, if they agree.
        fn class(&self) -> StatusClass {
            let of_ids = self.ids.iter().filter_map(|id| id.status.as_ref());
            let mut classes = self.status.iter().chain(of_ids).map(|status| class(&status.0));
            let first = classes.next().unwrap_or(StatusClass::Unknown);
            if classes.all(|class| class == first) { first } else { StatusClass::Unknown }
        }
    }
    let root: Object<'_> = serde_json::from_slice(body).ok()?;
    let is_asked = |id: &RawValue| {
        serde_json::from_str(id.get()).is_ok_and(|Id(id)| id.eq_ignore_ascii_case(asked.as_str()))
    };
    if !root.values_where(is_request_id).all(is_asked) {
        return None;
    }
    let is_of_account = |name: &RawValue| match serde_json::from_str(name.get()) {
        Ok(Json::Text(name)) => name.trim().is_empty() || name.trim() == account.as_str(),
        _ => false,
    };
    if !root.values_where(|name| plain(name) == "accountname").all(is_of_account) {
        return None;
    }
    let names_request = root.values_where(is_request_id).next().is_some();
    if root.values_where(|name| name.eq_ignore_ascii_case("status")).count() > 1 {
        return None;
    }
    let answer: Body = serde_json::from_slice(body).ok()?;
    // An error that names no request may be about this very question.
    if !names_request && answer.sub_requests.is_empty() {
        return None;
    }
    let mut devices = agreed(answer.sub_requests.iter().map(|sub| (sub.device(), sub.class())).collect());
    // As in a callback: a fault or a code makes a success doubtful.
    let is_doubtful =
        || says_something(&answer.fault) || !matches!(Said::read(body), Said::Nothing | Said::Success);
    let mut overall = match class(&answer.status.0) {
        StatusClass::Succeeded if is_doubtful() => StatusClass::Unknown,
        class => class,
    };
    // A failure of the whole without one that failed contradicts itself. The opposite does not: the documented example says
    // Success above a device that is pending.
    let all_succeeded = devices.iter().all(|(_, class)| *class == StatusClass::Succeeded);
    if overall == StatusClass::Failed && !devices.is_empty() && all_succeeded {
        overall = StatusClass::Unknown;
        for (_, class) in &mut devices {
            *class = StatusClass::Unknown;
        }
    }
    Some(StatusAnswer { overall, devices })
}

/// The devices, each with the status that all entries about it agree on.
fn agreed(mut devices: Vec<(Device, StatusClass)>) -> Vec<(Device, StatusClass)> {
    let mut classes: HashMap<Device, StatusClass> = HashMap::new();
    for (device, class) in devices.iter().filter(|(device, _)| device.present().next().is_some()) {
        let agreed = classes.entry(device.clone()).or_insert(*class);
        if agreed != class {
            *agreed = StatusClass::Unknown;
        }
    }
    for (device, class) in &mut devices {
        if let Some(agreed) = classes.get(device) {
            *class = *agreed;
        }
    }
    devices
}

/// Whether there is anything in a value.
pub(super) fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(values) => values.iter().any(says_something),
        Value::Object(fields) => fields.values().any(says_something),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

/// A status word, in any case and with any punctuation (`In Progress`, `IN_PROGRESS`).
pub(super) fn class(word: &str) -> StatusClass {
    let letters: String =
        word.chars().filter(char::is_ascii_alphabetic).map(|c| c.to_ascii_lowercase()).collect();
    match letters.as_str() {
        "success" | "succeeded" | "successful" | "complete" | "completed" => StatusClass::Succeeded,
        "failed" | "failure" | "fail" | "error" | "cancelled" | "canceled" => StatusClass::Failed,
        "pending" | "queued" | "inprogress" | "processing" | "submitted" => StatusClass::Pending,
        "warning" | "onhold" | "requestonhold" => StatusClass::Waiting,
        _ => StatusClass::Unknown,
    }
}

/// Text that may also have been written as a number or a boolean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Text(pub(super) String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;
        impl Visitor<'_> for Scalar {
            type Value = Text;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a number")
            }
            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.to_owned()))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Text, E> {
                Ok(Text(number.to_string()))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Text, E> {
                Ok(Text(number.to_string()))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Text, E> {
                Ok(Text(number.to_string()))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }
        }
        deserializer.deserialize_any(Scalar)
    }
}

/// An identifier: a text, or a number that is carried exactly. Anything else is empty, and so fits no kind.
struct Id(String);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Json::deserialize(deserializer)?.id().unwrap_or_default()))
    }
}

/// An array, a single object in its place, or null.
fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct OneOrMany<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMany<T> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array or an object")
        }
        fn visit_unit<E>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }
        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<T>, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map)).map(|one| vec![one])
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut many = Vec::new();
            while let Some(one) = seq.next_element()? {
                many.push(one);
            }
            Ok(many)
        }
    }
    deserializer.deserialize_any(OneOrMany(PhantomData))
}
