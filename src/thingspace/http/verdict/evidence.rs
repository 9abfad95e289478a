//! What the reply to an order says besides its error code: request ids, and texts.
//!
//! ThingSpace gives an id only to an order that it accepts. So ids are searched for in every
//! spelling and place, also in texts for people. An id is accepted only from the documented place:
//! `requestId` in the outermost object, as a text or as an exact number.
//!
//! Among the headers, `requestId`, `Location` and `Content-Location` can hold an id.
//! `WWW-Authenticate` and `Warning` hold texts for people. `X-Request-Id` and similar headers are
//! ignored: proxies and API managers add them to every reply, for tracing.

use super::{
    mention::{has_uuid, mentioned, narrow, words},
    phrases::{is_plain_refusal, says_accepted, says_timed_out},
};
use crate::{
    identity::RequestId,
    thingspace::http::{
        json::Json,
        reply::Reply,
        words::{self as word, MIN_ID_NUMBER, is_id, plain},
    },
};

/// How many levels of JSON inside the texts of other JSON are read.
const MAX_NESTED_TEXTS: u8 = 3;

/// How many places in a text are tried as the beginning of JSON.
const MAX_EMBEDDED: usize = 16;

/// Parts of the names of fields that hold request ids.
const ID_NAMES: [&str; 2] = ["requestid", "reqid"];

/// Names, and ends of names, of fields that say how a call went.
const STATUS_NAMES: [&str; 5] = ["success", "successful", "accepted", "outcome", "message"];
const STATUS_ENDS: [&str; 5] = ["status", "state", "result", "statuscode", "responsecode"];

/// Names of fields whose texts are written for programs.
const MACHINE_NAMES: [&str; 9] =
    ["timestamp", "time", "date", "path", "instance", "uri", "url", "method", "host"];

/// The request ids in a reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RequestIds {
    None,
    One(RequestId),
    /// Something looks like a request id, but it is not certain which id ThingSpace gave.
    Doubtful,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Evidence {
    pub(super) ids: RequestIds,
    /// There is a word of success, or a text that mentions acceptance.
    pub(super) success: bool,
    /// A text quotes a UUID, which may be the id of a request.
    pub(super) quotes_uuid: bool,
    pub(super) texts: Texts,
}

/// What the texts for people say. If they differ, the greatest value counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Texts {
    /// Each text is a plain refusal.
    #[default]
    PlainRefusals,
    /// A text says something else.
    Others,
    /// A text mentions a time-out.
    TimedOut,
}

/// Reads a body and the headers. Returns `None` if the body begins like JSON but is not valid JSON,
/// because then it may contain anything.
pub(super) fn read(text: &str, reply: &Reply) -> Option<Evidence> {
    let mut findings = Findings::default();
    match serde_json::from_str(text) {
        Ok(json) => findings.root(&json),
        Err(_) if text.starts_with(['{', '[', '"']) => return None,
        Err(_) => findings.plain_text(text),
    }
    for location in &reply.locations {
        findings.location(location);
    }
    for id in reply.request_ids.iter().filter(|id| !id.trim().is_empty()) {
        findings.elsewhere.push(Some(id.trim().to_owned()));
    }
    for note in &reply.notes {
        findings.note(note);
    }
    let Findings { success, quotes_uuid, texts, .. } = findings;
    Some(Evidence { ids: findings.ids(), success, quotes_uuid, texts })
}

/// Returns whether a field is named `requestId`, in any case and with any punctuation.
pub(crate) fn is_request_id(key: &str) -> bool {
    plain(key) == "requestid"
}

/// What was found so far. The first three fields hold possible request ids.
#[derive(Default)]
struct Findings {
    /// Ids in the documented place. `None`: the value is not exact.
    documented: Vec<Option<RequestId>>,
    /// Ids in other places. `None`: the value is neither a text nor an exact number.
    elsewhere: Vec<Option<String>>,
    /// For each text that mentions a request id: its words, one of which is the id.
    mentions: Vec<Vec<String>>,
    success: bool,
    quotes_uuid: bool,
    texts: Texts,
}

/// Where a value is.
#[derive(Clone, Copy, Default)]
struct Context {
    /// The number of objects around it.
    depth: u8,
    /// Whether the name of its field begins with "request".
    in_request: bool,
    /// Whether its field is the id of something else, for example of a trace.
    in_other_id: bool,
    /// Whether its field is for programs.
    in_machine_field: bool,
    /// The number of JSON texts around it.
    nested_texts: u8,
}

impl Findings {
    fn root(&mut self, json: &Json) {
        match json {
            Json::Text(text) => {
                self.success |= word::is_success(text);
                self.text_value(text, Context { in_request: true, ..Context::default() });
            }
            // A small number may be an HTTP status.
            Json::Exact(0..MIN_ID_NUMBER) | Json::Null | Json::Bool(_) => {}
            Json::Exact(_) | Json::Inexact => self.elsewhere.push(None),
            Json::List(_) => self.walk(json, Context { depth: 1, ..Context::default() }),
            Json::Fields(_) => self.walk(json, Context::default()),
        }
    }

    fn walk(&mut self, json: &Json, context: Context) {
        match json {
            Json::List(values) => values.iter().for_each(|value| self.walk(value, context)),
            Json::Fields(fields) => {
                // The id of a device has its kind beside it.
                let is_device = fields.iter().any(|(key, _)| plain(key) == "kind");
                for (key, value) in fields {
                    self.field(key, value, context, is_device);
                }
            }
            Json::Text(text) => self.text(text, context),
            Json::Null | Json::Bool(_) | Json::Exact(_) | Json::Inexact => {}
        }
    }

    fn field(&mut self, key: &str, value: &Json, context: Context, is_device: bool) {
        let in_root = context.depth == 0 && context.nested_texts == 0;
        let name = plain(&key.chars().map(narrow).collect::<String>());
        if STATUS_NAMES.contains(&&*name) || STATUS_ENDS.iter().any(|end| name.ends_with(end)) {
            self.success |= is_success_value(value);
        }
        let is_plain_id = name == "id" && !is_device && (context.depth <= 1 || context.in_request);
        if in_root && is_request_id(key) {
            if value.has_content() {
                self.documented.push(exact_id(value).filter(|id| is_id(id.as_str())));
            }
        } else if ID_NAMES.iter().any(|part| name.contains(part)) || is_plain_id {
            if value.has_content() {
                self.elsewhere.push(value.id());
            }
        } else {
            let in_request = name.starts_with("request");
            let in_other_id = name.ends_with("id") && !name.ends_with("orderid");
            let in_machine_field = MACHINE_NAMES.contains(&&*name);
            let depth = context.depth.saturating_add(1);
            let inner = Context { depth, in_request, in_other_id, in_machine_field, ..context };
            match value {
                Json::Text(text) => self.text_value(text, inner),
                value => self.walk(value, inner),
            }
        }
    }

    /// Reads a text in a field that is not named like an id.
    fn text_value(&mut self, text: &str, context: Context) {
        if context.in_request && is_id(text.trim()) {
            self.elsewhere.push(Some(text.to_owned()));
        } else {
            self.text(text, context);
        }
    }

    /// Reads a text, which may contain JSON or mention a request id.
    fn text(&mut self, text: &str, context: Context) {
        self.mention(text);
        self.phrases(text, context);
        if context.nested_texts >= MAX_NESTED_TEXTS {
            return;
        }
        let inner = Context { nested_texts: context.nested_texts + 1, ..context };
        let mut rest = text;
        for _ in 0..MAX_EMBEDDED {
            let Some(begin) = rest.find(['{', '[']) else { return };
            rest = &rest[begin..];
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Json>();
            if let Some(Ok(json)) = values.next() {
                self.walk(&json, inner);
                rest = &rest[values.byte_offset()..];
            } else {
                rest = &rest[1..];
            }
        }
    }

    /// Reads a body that is not JSON: XML, HTML or a text.
    fn plain_text(&mut self, text: &str) {
        if plain(text).contains("requestid") || !mentioned(text).is_empty() || is_id(text.trim()) {
            self.elsewhere.push(None);
        }
        self.success |= word::is_success(text);
        self.phrases(text, Context::default());
    }

    /// Notes what a text says to people.
    fn phrases(&mut self, text: &str, context: Context) {
        let words = words(text);
        self.success |= says_accepted(&words);
        self.quotes_uuid |= !context.in_other_id && has_uuid(text);
        let is_for_programs =
            context.in_machine_field || context.in_other_id && !text.contains(char::is_whitespace);
        if says_timed_out(&words) {
            self.texts = Texts::TimedOut;
        } else if !is_for_programs && !is_plain_refusal(text) {
            self.texts = self.texts.max(Texts::Others);
        }
    }

    /// Adds the request id that a text mentions.
    fn mention(&mut self, text: &str) {
        self.mentions.extend(Some(mentioned(text)).filter(|words| !words.is_empty()));
    }

    /// Reads a text in a header. Only ids and acceptance count, because a realm may have any name.
    fn note(&mut self, note: &str) {
        self.mention(note);
        self.success |= says_accepted(&words(note));
    }

    /// Reads an address in a header. The address of a request contains its id.
    fn location(&mut self, location: &str) {
        let segments: Vec<_> = location.split(['/', '?', '#', '&', '=']).map(plain).collect();
        let names_request = |pair: &[String]| {
            matches!(pair[0].as_str(), "request" | "requests" | "requestid") && !pair[1].is_empty()
        };
        if let Some(at) = segments.windows(2).position(names_request) {
            let id = location.split(['/', '?', '#', '&', '=']).nth(at + 1);
            self.elsewhere.push(id.map(str::to_owned));
        }
    }

    /// Returns the id on which everything in the reply agrees.
    fn ids(self) -> RequestIds {
        let Self { documented, elsewhere, mentions, .. } = self;
        let Some(first) = documented.first() else {
            return if elsewhere.is_empty() && mentions.is_empty() {
                RequestIds::None
            } else {
                RequestIds::Doubtful
            };
        };
        let same = |id: &RequestId| {
            documented.iter().all(|other| other.as_ref() == Some(id))
                && elsewhere.iter().all(|other| other.as_deref() == Some(id.as_str()))
                && mentions.iter().all(|words| words.iter().any(|word| word == id.as_str()))
        };
        match first {
            Some(id) if same(id) => RequestIds::One(id.clone()),
            _ => RequestIds::Doubtful,
        }
    }
}

/// Returns the id in a value that is a text or an exact number. [`is_id`] says whether ThingSpace
/// may have given it.
pub(crate) fn exact_id(value: &Json) -> Option<RequestId> {
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
