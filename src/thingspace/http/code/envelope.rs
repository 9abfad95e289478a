//! Reads the code out of each of the seven known envelopes.
//!
//! | envelope | written by |
//! |---|---|
//! | `{"errorCode", "errorMessage"}`, the code in words | ThingSpace |
//! | the same, with an HTTP status or a word as the code | the eSIM API, other products |
//! | `{"faultResponse": {"faultcode", …}}`, as in a failed callback | ThingSpace |
//! | `{"fault": {"code", …}}` | the API manager |
//! | `{"code", …}`, without the wrapping | the API manager |
//! | `<am:fault><am:code>…`, in XML | the API manager |
//! | `{"error", "error_description"}` | the authorization server, sister services |
//!
//! The content type and the case of names do not matter. A number counts as a text. An envelope
//! with two codes counts as one without a code. A body that is neither a JSON object nor the API
//! manager's XML has none.

use crate::thingspace::http::{body::ReplyBody, json::Json, object::Object};

/// The namespaces of the API manager (WSO2) begin with this: `…/security`, `…/throttling`.
const API_MANAGER: &str = "http://wso2.org/apimanager";

/// A code, and whether the API manager wrote it.
pub(super) struct FoundCode {
    pub(super) text: String,
    pub(super) by_api_manager: bool,
}

/// Returns the code of the first envelope that has one, in the order of the table above.
pub(super) fn first(body: &ReplyBody<'_>) -> Option<FoundCode> {
    let envelopes = envelopes(body.object.as_ref(), body.text);
    envelopes.into_iter().find(|envelope| !envelope.codes.is_empty())?.code()
}

/// Returns the codes of all envelopes in an object or, if there is none, in a text. `None` stands
/// for different codes, or for something that is no code.
pub(super) fn all(object: Option<&Object<'_>>, text: &str) -> Vec<Option<FoundCode>> {
    let mut all = Vec::new();
    for envelope in envelopes(object, text) {
        let has_other = envelope.has_other;
        if !envelope.codes.is_empty() {
            all.push(envelope.code());
        }
        if has_other {
            all.push(None);
        }
    }
    if object.is_some_and(|object| contradicts(object, &all)) {
        all.push(None);
    }
    all
}

/// Returns whether an undocumented list of errors beside the code contains other codes.
fn contradicts(object: &Object<'_>, found: &[Option<FoundCode>]) -> bool {
    let is_found = |text: &String| found.iter().flatten().any(|found| found.text == text.trim());
    object.elements(&["errors", "faults"]).any(|error| {
        let object = serde_json::from_str::<Object<'_>>(error.get()).ok();
        let codes = object.map(|error| error.texts(&["code", "errorCode", "faultcode"]).collect());
        let codes: Vec<_> = codes.unwrap_or_default();
        if codes.is_empty() { Json::of(error).has_content() } else { !codes.iter().all(is_found) }
    })
}

struct Envelope {
    codes: Vec<String>,
    /// Whether it also contains something that is no code.
    has_other: bool,
    by_api_manager: bool,
}

impl Envelope {
    fn new(texts: impl IntoIterator<Item = String>, has_other: bool, by_api_manager: bool) -> Self {
        let texts = texts.into_iter().map(|text| text.trim().to_owned());
        let mut codes: Vec<_> = texts.filter(|text| !text.is_empty()).collect();
        codes.dedup();
        Self { codes, has_other, by_api_manager }
    }

    /// Returns the code if there is exactly one.
    fn code(self) -> Option<FoundCode> {
        let [text] = <[String; 1]>::try_from(self.codes).ok()?;
        Some(FoundCode { text, by_api_manager: self.by_api_manager })
    }
}

fn envelopes(object: Option<&Object<'_>>, text: &str) -> Vec<Envelope> {
    if let Some(object) = object {
        vec![
            direct(object, "errorCode", false),
            wrapped(object, "faultResponse", "faultcode", false),
            wrapped(object, "fault", "code", true),
            direct(object, "code", true),
            direct(object, "error", false),
        ]
    } else if text.starts_with('<') {
        let code = xml(text);
        let has_other = code.is_none() && text.contains(API_MANAGER);
        vec![Envelope::new(code.map(str::to_owned), has_other, true)]
    } else {
        Vec::new()
    }
}

/// Reads the code in a field of the body.
fn direct(root: &Object<'_>, name: &str, by_api_manager: bool) -> Envelope {
    let has_other = root
        .values(&[name])
        .any(|value| value.get().starts_with(['{', '[']) && Json::of(value).has_content());
    Envelope::new(root.texts(&[name]), has_other, by_api_manager)
}

/// Reads the code in an object in a field of the body.
fn wrapped(root: &Object<'_>, wrapper: &str, name: &str, by_api_manager: bool) -> Envelope {
    let (mut codes, mut has_other) = (Vec::new(), false);
    for value in root.elements(&[wrapper]) {
        let object = serde_json::from_str::<Object<'_>>(value.get()).ok();
        let found: Vec<_> =
            object.iter().flat_map(|object| object.texts(&[name]).collect::<Vec<_>>()).collect();
        has_other |=
            found.iter().all(|text| text.trim().is_empty()) && Json::of(value).has_content();
        codes.extend(found);
    }
    Envelope::new(codes, has_other, by_api_manager)
}

/// Reads the code of a fault of the API manager. Other XML and HTML has none.
fn xml(text: &str) -> Option<&str> {
    let root = match text.strip_prefix("<?xml") {
        Some(rest) => rest.split_once("?>")?.1.trim_start(),
        None => text,
    };
    let (head, inside) = root.strip_prefix('<')?.split_once('>')?;
    let name = head.split_ascii_whitespace().next()?;
    let prefix =
        name.strip_suffix("fault").filter(|prefix| prefix.is_empty() || prefix.ends_with(':'))?;
    if !head.contains(API_MANAGER) || !root.ends_with(&format!("</{name}>")) {
        return None;
    }
    let (begin, end) = (format!("<{prefix}code>"), format!("</{prefix}code>"));
    let (code, rest) = inside.split_once(&begin)?.1.split_once(&end)?;
    (!rest.contains(&begin)).then(|| code.trim())
}
