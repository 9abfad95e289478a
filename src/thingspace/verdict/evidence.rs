//! What the body of an answer to an order says, besides its error code: request ids, and words of success.
//!
//! An id is looked for in every spelling and place, because an order that has one exists. It is *carried* only in the
//! documented place: under `requestId` in the outermost object, as a text or as an exact number.

use crate::{
    identity::RequestId,
    thingspace::{StatusClass, json::Json, wire},
};

/// How many levels of JSON inside a JSON text are read.
const MAX_NESTED_TEXTS: u8 = 3;

/// Words that programs write in place of a value they do not have.
const NO_VALUE: [&str; 10] =
    ["null", "undefined", "none", "nil", "nan", "na", "true", "false", "empty", "unknown"];

/// Words of success that are not status words of ThingSpace's.
const SUCCESS: [&str; 8] = ["ok", "accepted", "created", "received", "placed", "ordered", "done", "true"];

/// The request ids of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ids {
    None,
    One(RequestId),
    /// Something looks like a request id, but it is not certain which id ThingSpace gave.
    Doubtful,
}

/// What a body says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Evidence {
    pub(super) ids: Ids,
    /// A word of success.
    pub(super) success: bool,
}

/// `None`: a body that begins as JSON and cannot be read, so that anything may stand in it.
pub(super) fn read(body: &[u8], locations: &[String]) -> Option<Evidence> {
    let text = String::from_utf8_lossy(body);
    let text = text.trim_start_matches('\u{feff}').trim();
    let mut claims = Claims::default();
    match serde_json::from_str(text) {
        Ok(json) => claims.root(&json),
        Err(_) if text.starts_with(['{', '[', '"']) => return None,
        Err(_) => claims.plain_text(text),
    }
    for location in locations {
        claims.location(location);
    }
    Some(Evidence { success: claims.success, ids: claims.ids() })
}

/// Whether a text stands for no value: empty, a word such as "null", or zeros, as in a UUID of zeros.
fn is_no_value(text: &str) -> bool {
    let letters = plain(text);
    let is_number_below_one = letters.bytes().all(|byte| byte == b'0') || text.trim() == "-1";
    is_number_below_one || NO_VALUE.contains(&letters.as_str())
}

/// Whether a field is named `requestId`, in any case and with any punctuation.
pub(in crate::thingspace) fn is_request_id(key: &str) -> bool {
    plain(key) == "requestid"
}

/// Only the letters and digits, in lower case.
fn plain(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// Everything in an answer that looks like a request id.
#[derive(Default)]
struct Claims {
    /// Those in the documented place, each `None` if it cannot be carried exactly.
    documented: Vec<Option<RequestId>>,
    /// Those elsewhere, each `None` if it is no text and no exact number.
    elsewhere: Vec<Option<String>>,
    success: bool,
}

/// Where a value stands.
#[derive(Clone, Copy)]
struct Place {
    /// Objects around it.
    depth: u8,
    /// It is in a field whose name speaks of a request.
    in_request: bool,
    /// Texts of JSON around it.
    nested_texts: u8,
}

impl Claims {
    fn root(&mut self, json: &Json) {
        match json {
            Json::Text(text) => self.text_value(text, Place { depth: 0, in_request: true, nested_texts: 0 }),
            // HTTP statuses are written as bare numbers, too.
            Json::Exact(0..1_000) | Json::Null | Json::Bool(_) => {}
            Json::Exact(_) | Json::Inexact => self.elsewhere.push(None),
            Json::List(_) => self.walk(json, Place { depth: 1, in_request: false, nested_texts: 0 }),
            Json::Fields(_) => self.walk(json, Place { depth: 0, in_request: false, nested_texts: 0 }),
        }
    }

    fn walk(&mut self, json: &Json, place: Place) {
        match json {
            Json::List(values) => values.iter().for_each(|value| self.walk(value, place)),
            Json::Fields(fields) => {
                // An identifier of a device has its kind beside it.
                let is_device = fields.iter().any(|(key, _)| plain(key) == "kind");
                for (key, value) in fields {
                    self.field(&plain(key), value, place, is_device);
                }
            }
            Json::Text(text) => self.nested(text, place),
            Json::Null | Json::Bool(_) | Json::Exact(_) | Json::Inexact => {}
        }
    }

    fn field(&mut self, name: &str, value: &Json, place: Place, is_device: bool) {
        let in_root = place.depth == 0 && place.nested_texts == 0;
        if in_root && matches!(name, "status" | "success") {
            self.success |= is_success(value);
        }
        let is_id = name == "id" && !is_device && (place.depth <= 1 || place.in_request);
        if in_root && name == "requestid" {
            if value.says_something() {
                self.documented.push(carried(value));
            }
        } else if name.contains("requestid") || is_id {
            if value.says_something() {
                self.elsewhere.push(value.id());
            }
        } else {
            let in_request = name.starts_with("request");
            let inner = Place { depth: place.depth.saturating_add(1), in_request, ..place };
            match value {
                Json::Text(text) => self.text_value(text, inner),
                value => self.walk(value, inner),
            }
        }
    }

    /// A text in a place that is not named as an id's.
    fn text_value(&mut self, text: &str, place: Place) {
        if place.in_request && is_id_like(text) {
            self.elsewhere.push(Some(text.to_owned()));
        } else {
            self.nested(text, place);
        }
    }

    /// JSON that was written into a text.
    fn nested(&mut self, text: &str, place: Place) {
        let text = text.trim();
        if place.nested_texts >= MAX_NESTED_TEXTS || !text.starts_with(['{', '[']) {
            return;
        }
        match serde_json::from_str::<Json>(text) {
            Ok(json) => self.walk(&json, Place { nested_texts: place.nested_texts + 1, ..place }),
            Err(_) => self.plain_text(text),
        }
    }

    /// XML, HTML or a text.
    fn plain_text(&mut self, text: &str) {
        if plain(text).contains("requestid") || is_id_like(text) {
            self.elsewhere.push(None);
        }
    }

    /// An address of a request, in a header.
    fn location(&mut self, location: &str) {
        let segments: Vec<_> = location.split(['/', '?', '#', '&', '=']).map(plain).collect();
        let names_one = |pair: &[String]| {
            matches!(pair[0].as_str(), "request" | "requests" | "requestid") && !pair[1].is_empty()
        };
        if let Some(at) = segments.windows(2).position(names_one) {
            let id = location.split(['/', '?', '#', '&', '=']).nth(at + 1);
            self.elsewhere.push(id.map(str::to_owned));
        }
    }

    /// The one id that everything in the answer agrees on.
    fn ids(self) -> Ids {
        let Self { documented, elsewhere, .. } = self;
        let Some(first) = documented.first() else {
            return if elsewhere.is_empty() { Ids::None } else { Ids::Doubtful };
        };
        let same = |id: &RequestId| {
            documented.iter().all(|other| other.as_ref() == Some(id))
                && elsewhere.iter().all(|other| other.as_deref() == Some(id.as_str()))
        };
        match first {
            Some(id) if same(id) => Ids::One(id.clone()),
            _ => Ids::Doubtful,
        }
    }
}

/// The id that a value carries exactly.
pub(in crate::thingspace) fn carried(value: &Json) -> Option<RequestId> {
    let text = value.id().filter(|text| !is_no_value(text))?;
    RequestId::parse(&text).ok()
}

/// Whether a text could be an id: one word with a digit in it, longer than an HTTP status.
fn is_id_like(text: &str) -> bool {
    let text = text.trim();
    text.len() > 3
        && RequestId::parse(text).is_ok()
        && text.bytes().any(|byte| byte.is_ascii_digit())
        && !is_no_value(text)
}

fn is_success(value: &Json) -> bool {
    match value {
        Json::Bool(value) => *value,
        Json::Exact(number) => (200..300).contains(number),
        Json::Text(text) => {
            let waits_or_succeeded = matches!(
                wire::class(text),
                StatusClass::Succeeded | StatusClass::Pending | StatusClass::Waiting
            );
            let is_2xx = text.trim().parse().is_ok_and(|number: u16| (200..300).contains(&number));
            waits_or_succeeded || is_2xx || SUCCESS.contains(&plain(text).as_str())
        }
        Json::Null | Json::Inexact | Json::List(_) | Json::Fields(_) => false,
    }
}
