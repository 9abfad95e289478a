//! The body of an answer or a callback, parsed once.

use super::{
    code::ErrorCodes,
    json::Json,
    object::Object,
    verdict::is_request_id,
    words::{is_no_value, is_success, plain},
};
use crate::{
    identity::{AccountName, RequestId},
    thingspace::StatusClass,
};

/// Fields that contradict a success if they contain a word of failure.
const OUTCOMES: [&str; 8] = [
    "status",
    "state",
    "result",
    "outcome",
    "requestStatus",
    "subRequestStatus",
    "deviceStatus",
    "downloadStatus",
];

/// Fields with a text that says why a request failed. A success has none.
const REASONS: [&str; 4] = ["errorMessage", "errorDescription", "faultString", "failureReason"];

/// The text of a body, and its JSON object if it contains one.
pub(crate) struct ReplyBody<'a> {
    /// The text, without a byte order mark and white space around it.
    pub(crate) text: &'a str,
    pub(crate) object: Option<Object<'a>>,
}

impl<'a> ReplyBody<'a> {
    pub(crate) fn parse(text: &'a str) -> Self {
        let text = text.trim_start_matches('\u{feff}').trim();
        Self { text, object: serde_json::from_str(text).ok() }
    }
}

/// An object and its parts about the same device: `deviceResponse`, and `deviceProfileResponse`
/// inside or beside it.
pub(crate) struct DeviceParts<'o, 'a> {
    whole: &'o Object<'a>,
    pub(crate) responses: Vec<Object<'a>>,
    pub(crate) profiles: Vec<Object<'a>>,
}

impl<'o, 'a> DeviceParts<'o, 'a> {
    pub(crate) fn of(whole: &'o Object<'a>) -> Self {
        let responses = whole.objects(&["deviceResponse"]);
        let profiles = std::iter::once(whole).chain(&responses);
        let profiles = profiles.flat_map(|part| part.objects(&["deviceProfileResponse"])).collect();
        Self { whole, responses, profiles }
    }

    /// Returns the object itself and its parts.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Object<'a>> {
        std::iter::once(self.whole).chain(&self.responses).chain(&self.profiles)
    }

    /// Returns whether no part names another account.
    pub(crate) fn are_of_account(&self, account: &AccountName) -> bool {
        self.all().all(|part| part.is_of_account(account))
    }

    /// Returns whether no part names another request.
    pub(crate) fn are_of_request(&self, request: &RequestId) -> bool {
        let names_it =
            |id: Json| id.id().is_some_and(|id| id.eq_ignore_ascii_case(request.as_str()));
        self.all()
            .flat_map(|part| part.values_where(is_request_id))
            .all(|id| names_it(Json::of(id)))
    }

    /// Returns whether a part contradicts a success: by an error code, a fault, the reason for a
    /// failure, or a field that says failure.
    pub(crate) fn deny_success(&self) -> bool {
        self.all().any(|part| {
            let codes = ErrorCodes::read(Some(part), "");
            !matches!(codes, ErrorCodes::None | ErrorCodes::Success) || says_failure(part)
        })
    }
}

fn says_failure(object: &Object<'_>) -> bool {
    object.texts(&OUTCOMES).any(|word| StatusClass::of(&word) == StatusClass::Failed)
        || object.texts(&["profileStatus"]).any(|word| is_profile_failure(&word))
        || object.texts(&["success", "isSuccess"]).any(|word| plain(&word) == "false")
        || object.texts(&REASONS).any(|text| !is_no_reason(&text))
}

fn is_no_reason(text: &str) -> bool {
    is_no_value(text) || is_success(text) || matches!(&*plain(text), "noerror" | "noerrors")
}

/// Returns whether a word says that a profile was not downloaded: `NOT_DOWNLOADED`,
/// `DOWNLOAD_FAILED`, …
fn is_profile_failure(word: &str) -> bool {
    let word = plain(word);
    StatusClass::of(&word) == StatusClass::Failed
        || ["notdownload", "fail", "error"].iter().any(|failure| word.contains(failure))
}
