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
//! The content type is not believed, nor is the case of names. What is written as a number is a text all the same, and a
//! byte that is no UTF-8 spoils only the text it stands in. Whatever says two things in one place, is no object, or is neither
//! JSON nor the API manager's XML has no code.

use crate::thingspace::Object;

/// The namespaces of the API manager (WSO2): its own, `…/security`, `…/throttling`.
const API_MANAGER: &str = "http://wso2.org/apimanager";

/// A code, and who says so.
pub(super) struct Found {
    pub(super) text: String,
    pub(super) by_api_manager: bool,
}

pub(super) fn read(body: &[u8]) -> Option<Found> {
    let text = String::from_utf8_lossy(body);
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.starts_with('<') {
        return xml(text).map(|code| Found { text: code.to_owned(), by_api_manager: true });
    }
    let root: Object<'_> = serde_json::from_str(text).ok()?;
    let (fault, failed) = (root.objects(&["fault"]), root.objects(&["faultResponse"]));
    let places = [
        (only(root.texts(&["errorCode"])), false),
        (only(failed.iter().flat_map(|fault| fault.texts(&["faultcode"]))), false),
        (only(fault.iter().flat_map(|fault| fault.texts(&["code"]))), true),
        (only(root.texts(&["code"])), true),
        (only(root.texts(&["error"])), false),
    ];
    let (place, by_api_manager) = places.into_iter().find(|(place, _)| !matches!(place, Place::Empty))?;
    match place {
        Place::Says(text) => Some(Found { text, by_api_manager }),
        Place::Disputed | Place::Empty => None,
    }
}

/// What stands in one place.
enum Place {
    Empty,
    Says(String),
    Disputed,
}

fn only(texts: impl Iterator<Item = String>) -> Place {
    texts.fold(Place::Empty, |place, text| match (place, text.trim()) {
        (place, "") => place,
        (Place::Empty, text) => Place::Says(text.to_owned()),
        (Place::Says(said), text) if said == text => Place::Says(said),
        _ => Place::Disputed,
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
    let prefix = name.strip_suffix("fault").filter(|prefix| prefix.is_empty() || prefix.ends_with(':'))?;
    if !head.contains(API_MANAGER) || !root.ends_with(&format!("</{name}>")) {
        return None;
    }
    let (begin, end) = (format!("<{prefix}code>"), format!("</{prefix}code>"));
    let (code, rest) = inside.split_once(&begin)?.1.split_once(&end)?;
    (!rest.contains(&begin)).then(|| code.trim())
}
