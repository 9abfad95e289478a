//! The bodies of ThingSpace's API.
//!
//! Unknown fields are ignored, every documented form of a field is read, and tokens and ids are
//! checked. Never keeps or shows a message of ThingSpace.

mod registrations;
mod status;

use std::time::Duration;

use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

pub(crate) use registrations::{registered, registration, registrations};
pub(crate) use status::status;

use super::{body::ReplyBody, object::Object};
use crate::{
    identity::{Device, IdentifierKind},
    thingspace::Order,
};

const MAX_TOKEN_BYTES: usize = 4096;
/// The longest lifetime that is used. ThingSpace documents an hour.
const MAX_LIFETIME_SECONDS: u64 = 86_400;

/// An issued bearer token.
#[derive(Debug)]
pub(crate) struct IssuedBearer {
    pub(crate) token: SecretString,
    pub(crate) expires_in: Option<Duration>,
}

/// Writes an order. It names devices by EID, ICCID and IMEI, in this order, as Verizon's example
/// does.
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

/// Reads the answer to a token request.
pub(crate) fn bearer(body: &ReplyBody<'_>) -> Option<IssuedBearer> {
    let object = body.object.as_ref()?;
    let is_bearer = object.texts(&["token_type"]).all(|kind| kind.eq_ignore_ascii_case("bearer"));
    let seconds = object.text(&["expires_in"]).and_then(|seconds| seconds.parse::<u64>().ok());
    let expires_in = seconds.map(|seconds| Duration::from_secs(seconds.min(MAX_LIFETIME_SECONDS)));
    token(object, "access_token")
        .filter(|_| is_bearer)
        .map(|token| IssuedBearer { token, expires_in })
}

/// Reads the answer to a login. A lifetime in it is ignored: a session ends after a time without
/// calls.
pub(crate) fn session(body: &ReplyBody<'_>) -> Option<SecretString> {
    token(body.object.as_ref()?, "sessionToken")
}

fn token(object: &Object<'_>, name: &str) -> Option<SecretString> {
    let token: String = serde_json::from_str(object.only(name)?.get()).ok()?;
    let is_token = (1..=MAX_TOKEN_BYTES).contains(&token.len())
        && token.bytes().all(|byte| byte.is_ascii_graphic());
    is_token.then(|| token.into())
}
