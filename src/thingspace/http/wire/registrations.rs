//! The registrations of callbacks.

use bytes::Bytes;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use super::{Text, json, one_or_many};
use crate::thingspace::{Registration, Target, http::body::Body, sha256};

/// The body of a registration.
pub(crate) fn registration(service: &str, target: &Target<'_>) -> Bytes {
    #[derive(Serialize)]
    struct Body<'a> {
        name: &'a str,
        url: &'a str,
        username: &'a str,
        password: &'a str,
    }
    json(&Body {
        name: service,
        url: target.url.expose_secret(),
        username: target.username,
        password: target.password.expose_secret(),
    })
}

/// The answer to a listing. ThingSpace gives the passwords in clear; they are not kept.
pub(crate) fn registrations(body: &Body<'_>) -> Option<Vec<Registration>> {
    #[derive(Deserialize)]
    struct Body(#[serde(deserialize_with = "one_or_many")] Vec<Entry>);
    #[derive(Deserialize)]
    struct Entry {
        #[serde(rename = "serviceName")]
        service_name: Option<Text>,
        name: Option<Text>,
        url: Option<Text>,
        username: Option<Text>,
        password: Option<Text>,
    }
    fn text(value: Option<Text>) -> String {
        value.map(|text| text.0).unwrap_or_default()
    }
    let Body(entries) = serde_json::from_str(body.text).ok()?;
    let registration = |entry: Entry| {
        let service = entry.service_name.or(entry.name)?.0;
        Some(Registration {
            service,
            url: text(entry.url).into(),
            username: text(entry.username),
            password: entry.password.map(|password| sha256(&password.0)),
        })
    };
    // One without its service would hide that the service is taken.
    entries.into_iter().map(registration).collect()
}

/// The answer to a registration, and to its end: the service's name.
pub(crate) fn registered(body: &Body<'_>, service: &str) -> Option<()> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(rename = "serviceName", alias = "name")]
        service: Text,
    }
    let body: Body = serde_json::from_str(body.text).ok()?;
    body.service.0.eq_ignore_ascii_case(service).then_some(())
}
