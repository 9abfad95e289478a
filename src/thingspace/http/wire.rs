//! ThingSpace's JSON: read tolerantly, written strictly.
//!
//! Unknown fields are ignored, fields that are documented in several ways are read in all of them,
//! and a value that would be believed (a token, a request id) is checked. Nothing here keeps or
//! shows a message of ThingSpace.

mod registrations;
mod status;

use std::{fmt, marker::PhantomData, time::Duration};

use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

pub(crate) use registrations::{registered, registration, registrations};
pub(crate) use status::status;

use super::body::Body;
use crate::identity::{Device, IdentifierKind};
use crate::thingspace::{Order, StatusClass};

const MAX_TOKEN_BYTES: usize = 4096;
/// ThingSpace says an hour; whoever says more than a day is not believed.
const MAX_LIFETIME_SECONDS: u64 = 86_400;

/// A bearer as it was issued.
#[derive(Debug)]
pub(crate) struct Bearer {
    pub(crate) token: SecretString,
    pub(crate) expires_in: Option<Duration>,
}

/// The body of a download order: the devices' EID, ICCID and IMEI, in this order as in Verizon's
/// example.
pub(crate) fn order(order: &Order) -> Bytes {
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
        let ids = device.present().filter(|(kind, _)| *kind != IdentifierKind::Mdn);
        Entry {
            device_ids: ids.map(|(kind, id)| Id { kind: kind.as_str(), id: id.as_str() }).collect(),
        }
    }
    json(&Body {
        devices: order.devices.iter().map(entry).collect(),
        account_name: order.account.as_str(),
        service_plan: &order.service_plan,
    })
}

/// The body of a login.
pub(crate) fn login(username: &SecretString, password: &SecretString) -> Bytes {
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
pub(crate) fn bearer(body: &Body<'_>) -> Option<Bearer> {
    #[derive(Deserialize)]
    struct Body {
        access_token: SecretString,
        #[serde(default)]
        token_type: Option<Text>,
        #[serde(default)]
        expires_in: Option<Text>,
    }
    let body: Body = serde_json::from_str(body.text).ok()?;
    let is_bearer = body.token_type.is_none_or(|kind| kind.0.eq_ignore_ascii_case("bearer"));
    let seconds = body.expires_in.and_then(|seconds| seconds.0.parse::<u64>().ok());
    let expires_in = seconds.map(|seconds| Duration::from_secs(seconds.min(MAX_LIFETIME_SECONDS)));
    (is_bearer && is_token(&body.access_token))
        .then_some(Bearer { token: body.access_token, expires_in })
}

/// The answer to a login. A lifetime beside it is ignored: what some documents invent is not what
/// ThingSpace does.
pub(crate) fn session(body: &Body<'_>) -> Option<SecretString> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        session_token: SecretString,
    }
    let body: Body = serde_json::from_str(body.text).ok()?;
    is_token(&body.session_token).then_some(body.session_token)
}

fn is_token(token: &SecretString) -> bool {
    let token = token.expose_secret();
    (1..=MAX_TOKEN_BYTES).contains(&token.len())
        && token.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A status word, in any case and with any punctuation (`In Progress`, `IN_PROGRESS`).
pub(crate) fn class(word: &str) -> StatusClass {
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
pub(crate) struct Text(pub(crate) String);

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

/// An array, a single object in its place, or null.
fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
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
