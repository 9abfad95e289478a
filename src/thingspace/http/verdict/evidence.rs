//! What the body of an answer to an order says, besides its error code: request ids, and words of
//! success.
//!
//! An id is looked for in every spelling and place, texts for people included, because an order
//! that has one exists. It is *carried* only in the documented place: under `requestId` in the
//! outermost object, as a text or as an exact number.
//!
//! A header counts only if it is named exactly `requestId`. `X-Request-Id` and its kin are written
//! by proxies and API managers into every answer, for tracing. They say nothing about an order.

use super::{
    mention::{has_uuid, mentioned, narrow, words},
    phrases::{is_plain_refusal, says_accepted, says_timed_out},
};
use crate::{
    identity::RequestId,
    thingspace::http::{
        json::Json,
        transport::Reply,
        words::{self as word, MIN_ID_NUMBER, is_id, plain},
    },
};

/// How many levels of JSON inside a JSON text are read.
const MAX_NESTED_TEXTS: u8 = 3;

/// The places in a text at which JSON may begin that are looked at.
const MAX_EMBEDDED: usize = 16;

/// Parts of the names of fields that hold request ids.
const ID_NAMES: [&str; 2] = ["requestid", "reqid"];

/// Names of fields that say how a call went, and how such names end.
const STATUS_NAMES: [&str; 5] = ["success", "successful", "accepted", "outcome", "message"];
const STATUS_ENDS: [&str; 5] = ["status", "state", "result", "statuscode", "responsecode"];

/// Names of fields whose texts are not for people.
const MACHINE_NAMES: [&str; 9] =
    ["timestamp", "time", "date", "path", "instance", "uri", "url", "method", "host"];

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
    /// A word of success, or a text that speaks of acceptance.
    pub(super) success: bool,
    /// A text quotes a UUID, which may be a request's id.
    pub(super) quotes_uuid: bool,
    pub(super) texts: Texts,
}

/// The texts for people. The greatest of what they say counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Texts {
    /// Each is the plain refusal of a token or of a rate.
    #[default]
    PlainRefusals,
    Others,
    /// One speaks of a time-out.
    TimedOut,
}

/// `None`: a body that begins as JSON and cannot be read, so that anything may stand in it.
pub(super) fn read(text: &str, reply: &Reply) -> Option<Evidence> {
    let mut claims = Claims::default();
    match serde_json::from_str(text) {
        Ok(json) => claims.root(&json),
        Err(_) if text.starts_with(['{', '[', '"']) => return None,
        Err(_) => claims.plain_text(text),
    }
    for location in &reply.locations {
        claims.location(location);
    }
    for id in reply.request_ids.iter().filter(|id| !id.trim().is_empty()) {
        claims.elsewhere.push(Some(id.trim().to_owned()));
    }
    let Claims { success, quotes_uuid, texts, .. } = claims;
    Some(Evidence { ids: claims.ids(), success, quotes_uuid, texts })
}

/// Whether a field is named `requestId`, in any case and with any punctuation.
pub(crate) fn is_request_id(key: &str) -> bool {
    plain(key) == "requestid"
}

/// Everything in an answer that looks like a request id.
#[derive(Default)]
struct Claims {
    /// Those in the documented place, each `None` if it cannot be carried exactly.
    documented: Vec<Option<RequestId>>,
    /// Those elsewhere, each `None` if it is no text and no exact number.
    elsewhere: Vec<Option<String>>,
    /// Of each text that mentions a request id: the words one of which is the id.
    mentions: Vec<Vec<String>>,
    success: bool,
    quotes_uuid: bool,
    texts: Texts,
}

/// Where a value stands.
#[derive(Clone, Copy, Default)]
struct Place {
    /// Objects around it.
    depth: u8,
    /// It is in a field whose name speaks of a request.
    in_request: bool,
    /// It is in a field that is named as the id of something else: of a trace, for example.
    in_other_id: bool,
    /// It is in a field whose texts are not for people.
    in_machine_field: bool,
    /// Texts of JSON around it.
    nested_texts: u8,
}

impl Claims {
    fn root(&mut self, json: &Json) {
        match json {
            Json::Text(text) => {
                self.success |= word::is_success(text);
                self.text_value(text, Place { in_request: true, ..Place::default() });
            }
            // HTTP statuses are written as bare numbers, too.
            Json::Exact(0..MIN_ID_NUMBER) | Json::Null | Json::Bool(_) => {}
            Json::Exact(_) | Json::Inexact => self.elsewhere.push(None),
            Json::List(_) => self.walk(json, Place { depth: 1, ..Place::default() }),
            Json::Fields(_) => self.walk(json, Place::default()),
        }
    }

    fn walk(&mut self, json: &Json, place: Place) {
        match json {
            Json::List(values) => values.iter().for_each(|value| self.walk(value, place)),
            Json::Fields(fields) => {
                // An identifier of a device has its kind beside it.
                let is_device = fields.iter().any(|(key, _)| plain(key) == "kind");
                for (key, value) in fields {
                    self.field(key, value, place, is_device);
                }
            }
            Json::Text(text) => self.text(text, place),
            Json::Null | Json::Bool(_) | Json::Exact(_) | Json::Inexact => {}
        }
    }

    fn field(&mut self, key: &str, value: &Json, place: Place, is_device: bool) {
        let in_root = place.depth == 0 && place.nested_texts == 0;
        let name = plain(&key.chars().map(narrow).collect::<String>());
        if STATUS_NAMES.contains(&&*name) || STATUS_ENDS.iter().any(|end| name.ends_with(end)) {
            self.success |= is_success_value(value);
        }
        let is_plain_id = name == "id" && !is_device && (place.depth <= 1 || place.in_request);
        if in_root && is_request_id(key) {
            if value.says_something() {
                self.documented.push(carried(value).filter(|id| is_id(id.as_str())));
            }
        } else if ID_NAMES.iter().any(|part| name.contains(part)) || is_plain_id {
            if value.says_something() {
                self.elsewhere.push(value.id());
            }
        } else {
            let in_request = name.starts_with("request");
            let in_other_id = name.ends_with("id") && !name.ends_with("orderid");
            let in_machine_field = MACHINE_NAMES.contains(&&*name);
            let depth = place.depth.saturating_add(1);
            let inner = Place { depth, in_request, in_other_id, in_machine_field, ..place };
            match value {
                Json::Text(text) => self.text_value(text, inner),
                value => self.walk(value, inner),
            }
        }
    }

    /// A text in a place that is not named as an id's.
    fn text_value(&mut self, text: &str, place: Place) {
        if place.in_request && is_id(text.trim()) {
            self.elsewhere.push(Some(text.to_owned()));
        } else {
            self.text(text, place);
        }
    }

    /// A text, which may have JSON in it or speak of a request id.
    fn text(&mut self, text: &str, place: Place) {
        let mentioned = mentioned(text);
        if !mentioned.is_empty() {
            self.mentions.push(mentioned);
        }
        self.phrases(text);
        self.quotes_uuid |= !place.in_other_id && has_uuid(text);
        let is_machine_text =
            place.in_machine_field || place.in_other_id && !text.contains(char::is_whitespace);
        if !is_machine_text && !is_plain_refusal(text) {
            self.texts = self.texts.max(Texts::Others);
        }
        if place.nested_texts >= MAX_NESTED_TEXTS {
            return;
        }
        let inner = Place { nested_texts: place.nested_texts + 1, ..place };
        let mut rest = text;
        for _ in 0..MAX_EMBEDDED {
            let Some(at) = rest.find(['{', '[']) else { return };
            let mut values = serde_json::Deserializer::from_str(&rest[at..]).into_iter::<Json>();
            if let Some(Ok(json)) = values.next() {
                self.walk(&json, inner);
                rest = &rest[at + values.byte_offset()..];
            } else {
                rest = &rest[at + 1..];
            }
        }
    }

    /// XML, HTML or a text.
    fn plain_text(&mut self, text: &str) {
        if plain(text).contains("requestid") || !mentioned(text).is_empty() || is_id(text.trim()) {
            self.elsewhere.push(None);
        }
        self.quotes_uuid |= has_uuid(text);
        self.success |= word::is_success(text);
        if !is_plain_refusal(text) {
            self.texts = self.texts.max(Texts::Others);
        }
        self.phrases(text);
    }

    /// What a text for people says of the order.
    fn phrases(&mut self, text: &str) {
        let words = words(text);
        self.success |= says_accepted(&words);
        if says_timed_out(&words) {
            self.texts = Texts::TimedOut;
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
        let Self { documented, elsewhere, mentions, .. } = self;
        let Some(first) = documented.first() else {
            return if elsewhere.is_empty() && mentions.is_empty() {
                Ids::None
            } else {
                Ids::Doubtful
            };
        };
        let same = |id: &RequestId| {
            documented.iter().all(|other| other.as_ref() == Some(id))
                && elsewhere.iter().all(|other| other.as_deref() == Some(id.as_str()))
                && mentions.iter().all(|words| words.iter().any(|word| word == id.as_str()))
        };
        match first {
            Some(id) if same(id) => Ids::One(id.clone()),
            _ => Ids::Doubtful,
        }
    }
}

/// The id that a value carries exactly. Whether ThingSpace may have given it is another question;
/// see [`is_id`].
pub(crate) fn carried(value: &Json) -> Option<RequestId> {
    let text = value.id().filter(|text| !word::is_no_value(text))?;
    RequestId::parse(&text).ok()
}

fn is_success_value(value: &Json) -> bool {
    match value {
        Json::Bool(value) => *value,
        Json::Exact(number) => (200..300).contains(number),
        Json::Text(text) => word::is_success(text),
        Json::Null | Json::Inexact | Json::List(_) | Json::Fields(_) => false,
    }
}
