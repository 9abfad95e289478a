//! What no success has beside it, in an answer, a sub-request or a callback: an error code, a
//! fault, or a field that says failure.

use super::{code::Said, wire, words::plain};
use crate::thingspace::{Object, StatusClass};

/// Fields that say how something went.
const OUTCOMES: [&str; 5] = ["status", "state", "result", "outcome", "profileStatus"];

/// Whether a JSON object has something that denies a success.
pub(crate) fn denies_success(object: &str) -> bool {
    let has_code = !matches!(Said::read(object.as_bytes()), Said::Nothing | Said::Success);
    has_code || serde_json::from_str(object).is_ok_and(|object| says_failure(&object))
}

fn says_failure(object: &Object<'_>) -> bool {
    let is_failure =
        |word: String| wire::class(&word) == StatusClass::Failed || plain(&word) == "notdownloaded";
    object.texts(&OUTCOMES).any(is_failure)
        || object.texts(&["success"]).any(|word| plain(&word) == "false")
}
