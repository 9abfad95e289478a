//! The bodies of requests and answers about registrations of callbacks.

use bytes::Bytes;
use secrecy::ExposeSecret;
use serde::Serialize;

use super::json;
use crate::thingspace::{
    Registration, Target,
    http::{body::ReplyBody, object::Object},
    sha256,
};

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

/// Reads a list of registrations. ThingSpace sends the passwords; only a digest of each is kept.
pub(crate) fn registrations(body: &ReplyBody<'_>) -> Option<Vec<Registration>> {
    let list = || serde_json::from_str::<Option<Vec<Object<'_>>>>(body.text).ok();
    let registration = |entry: &Object<'_>| {
        let text = |name| entry.text(&[name]);
        Some(Registration {
            service: text("serviceName").or(text("name"))?,
            url: text("url").unwrap_or_default().into(),
            username: text("username").unwrap_or_default(),
            password: text("password").map(|password| sha256(&password)),
        })
    };
    // If one entry has no service, the list as a whole cannot be used.
    match &body.object {
        Some(one) => registration(one).map(|one| vec![one]),
        None => list()?.unwrap_or_default().iter().map(registration).collect(),
    }
}

/// Checks that the answer to a registration or deregistration names this service and no other.
pub(crate) fn registered(body: &ReplyBody<'_>, service: &str) -> Option<()> {
    let mut names = body.object.as_ref()?.texts(&["serviceName", "name"]).peekable();
    names.peek()?;
    names.all(|name| name.eq_ignore_ascii_case(service)).then_some(())
}
