//! Where a code stands: in each of the seven envelopes in which somebody met one.
//!
//! | envelope | whose |
//! |---|---|
//! | `{"errorCode", "errorMessage"}`, the code in words | ThingSpace |
//! | the same, the code being the HTTP status or a bare word | its eSIM pages, its other products |
//! | `{"faultResponse": {"faultcode", …}}`, the shape of a failed callback | ThingSpace |
//! | `{"fault": {"code", …}}` | the API manager |
//! | `{"code", …}`, its fields unwrapped | the API manager |
//! | `<am:fault><am:code>…`, in XML | the API manager |
//! | `{"error", "error_description"}` | the authorization server, wrapped calls of sister services |
//!
//! The content type is not believed, nor is the case of names. What is written as a number is a
//! text all the same, and a byte that is no UTF-8 spoils only the text it stands in. Whatever says
//! two things in one place, is no object, or is neither JSON nor the API manager's XML has no code.

use serde_json::value::RawValue;

use crate::thingspace::http::{body::Body, json::Json, object::Object};

/// The namespaces of the API manager (WSO2): its own, `…/security`, `…/throttling`.
const API_MANAGER: &str = "http://wso2.org/apimanager";

/// A code, and who says so.
pub(super) struct Found {
    pub(super) text: String,
    pub(super) by_api_manager: bool,
}

/// The code of the first envelope that has one, in the order of the table above.
pub(super) fn first(body: &Body<'_>) -> Option<Found> {
    let Place { says, by_api_manager, .. } =
        places(body).into_iter().find(|place| !matches!(place.says, Says::Nothing))?;
    match says {
        Says::One(text) => Some(Found { text, by_api_manager }),
        Says::Several | Says::Nothing => None,
    }
}

/// What every envelope says; `None` stands for one that says two things, or something that is no
/// code.
pub(super) fn all(body: &Body<'_>) -> Vec<Option<Found>> {
    body.object.as_ref().map_or_else(|| found(places(body)), all_in)
}

/// The same of an object.
pub(super) fn all_in(object: &Object<'_>) -> Vec<Option<Found>> {
    let mut all = found(places_in(object));
    if contradicts(object, &all) {
        all.push(None);
    }
    all
}

fn found(places: Vec<Place>) -> Vec<Option<Found>> {
    let mut all = Vec::new();
    for Place { says, unreadable, by_api_manager } in places {
        match says {
            Says::Nothing => {}
            Says::One(text) => all.push(Some(Found { text, by_api_manager })),
            Says::Several => all.push(None),
        }
        if unreadable {
            all.push(None);
        }
    }
    all
}

/// Whether a list of errors beside the code says something else. Nobody documented such lists.
fn contradicts(object: &Object<'_>, found: &[Option<Found>]) -> bool {
    let is_found = |text: &String| found.iter().flatten().any(|found| found.text == text.trim());
    object.elements(&["errors", "faults"]).any(|error| {
        let object = serde_json::from_str::<Object<'_>>(error.get()).ok();
        let codes = |error: &Object<'_>| {
            error.texts(&["code", "errorCode", "faultcode"]).collect::<Vec<_>>()
        };
        let codes = object.as_ref().map(codes).unwrap_or_default();
        if codes.is_empty() { says_something(error) } else { !codes.iter().all(is_found) }
    })
}

/// A place for a code.
struct Place {
    says: Says,
    /// It also holds something that is no code.
    unreadable: bool,
    by_api_manager: bool,
}

/// What stands in a place.
enum Says {
    Nothing,
    One(String),
    Several,
}

fn places(body: &Body<'_>) -> Vec<Place> {
    if let Some(object) = &body.object {
        return places_in(object);
    }
    if !body.text.starts_with('<') {
        return Vec::new();
    }
    let code = xml(body.text);
    let unreadable = code.is_none() && body.text.contains(API_MANAGER);
    vec![Place { says: only(code.map(str::to_owned)), unreadable, by_api_manager: true }]
}

fn places_in(object: &Object<'_>) -> Vec<Place> {
    vec![
        direct(object, "errorCode", false),
        wrapped(object, "faultResponse", "faultcode", false),
        wrapped(object, "fault", "code", true),
        direct(object, "code", true),
        direct(object, "error", false),
    ]
}

/// A code in a field of the body.
fn direct(root: &Object<'_>, name: &str, by_api_manager: bool) -> Place {
    let unreadable = root
        .values(&[name])
        .any(|value| value.get().starts_with(['{', '[']) && says_something(value));
    Place { says: only(root.texts(&[name])), unreadable, by_api_manager }
}

/// A code in an object in a field of the body.
fn wrapped(root: &Object<'_>, wrapper: &str, name: &str, by_api_manager: bool) -> Place {
    let mut texts = Vec::new();
    let mut unreadable = false;
    for value in root.elements(&[wrapper]) {
        let object = serde_json::from_str::<Object<'_>>(value.get()).ok();
        let found: Vec<_> =
            object.iter().flat_map(|object| object.texts(&[name]).collect::<Vec<_>>()).collect();
        unreadable |= found.iter().all(|text| text.trim().is_empty()) && says_something(value);
        texts.extend(found);
    }
    Place { says: only(texts), unreadable, by_api_manager }
}

/// Whether there is anything in a value but nulls, empty texts, lists and objects.
fn says_something(value: &RawValue) -> bool {
    Json::of(value).says_something()
}

fn only(texts: impl IntoIterator<Item = String>) -> Says {
    texts.into_iter().fold(Says::Nothing, |says, text| match (says, text.trim()) {
        (says, "") => says,
        (Says::Nothing, text) => Says::One(text.to_owned()),
        (Says::One(said), text) if said == text => Says::One(said),
        _ => Says::Several,
    })
}

/// The code of a fault of the API manager. Nothing else in XML or HTML has one.
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
