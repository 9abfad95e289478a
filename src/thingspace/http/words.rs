//! Words in answers that stand for success, for no value, or for an id.

use crate::{identity::RequestId, thingspace::StatusClass};

/// Words that programs write in place of a value.
const NO_VALUE: [&str; 10] =
    ["null", "undefined", "none", "nil", "nan", "na", "true", "false", "empty", "unknown"];

/// Words of success that ThingSpace does not use as a status.
const SUCCESS: [&str; 8] =
    ["ok", "accepted", "created", "received", "placed", "ordered", "done", "true"];

/// The length of the shortest id, according to Verizon's SDK.
const MIN_ID_CHARS: usize = 3;

/// The smallest number that may be an id. A smaller one may be an HTTP status.
pub(crate) const MIN_ID_NUMBER: u64 = 1_000;

/// Returns the letters and digits of a text, in lower case.
pub(crate) fn plain(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// Returns whether a text stands for no value: it is empty, a word such as "null", or zeros, for
/// example a UUID of zeros.
pub(crate) fn is_no_value(text: &str) -> bool {
    let letters = plain(text);
    let is_number_below_one = letters.bytes().all(|byte| byte == b'0') || text.trim() == "-1";
    is_number_below_one || NO_VALUE.contains(&letters.as_str())
}

/// Returns whether a text says that a call succeeded, or was accepted and waits. The text is a word
/// of success, or begins with a 2xx status, as in "200 OK".
pub(crate) fn is_success(text: &str) -> bool {
    let succeeded_or_waits = matches!(
        StatusClass::of(text),
        StatusClass::Succeeded | StatusClass::Pending | StatusClass::Waiting
    );
    let number = text.trim().split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    let is_2xx = number.parse().is_ok_and(|number: u16| (200..300).contains(&number));
    succeeded_or_waits || is_2xx || SUCCESS.contains(&plain(text).as_str())
}

/// Returns whether ThingSpace may have given this id. Every known id is a UUID or a number. So a
/// word without a digit is no id, and neither is a number that may be an HTTP status.
pub(crate) fn is_id(text: &str) -> bool {
    let is_small_number = text.parse().is_ok_and(|number: u64| number < MIN_ID_NUMBER);
    text.len() >= MIN_ID_CHARS
        && RequestId::parse(text).is_ok()
        && text.bytes().any(|byte| byte.is_ascii_digit())
        && !is_small_number
        && !is_no_value(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_uuid_a_number_or_another_word_with_a_digit() {
        let longest = "1".repeat(64);
        for id in ["86c83330-4bf5-4235-9c4e-a83f93aeae4c", "r-1", "1000", "01a", "A1-", &longest] {
            assert!(is_id(id), "{id}");
        }
        let too_long = "1".repeat(65);
        for word in [
            "",
            "error",
            "Failed",
            "not-found",
            "N-A",
            "x1",
            "a_1",
            "a 1",
            "400",
            "0999",
            "-1",
            "000-000",
            &too_long,
        ] {
            assert!(!is_id(word), "{word}");
        }
    }

    #[test]
    fn success_is_a_word_or_a_2xx() {
        for text in
            ["Success", "IN PROGRESS", "ok", "202", "200 OK", "201-Created", "200.0", "on hold"]
        {
            assert!(is_success(text), "{text}");
        }
        for text in ["", "Failed", "400", "2000", "20", "no success", "2xx", "bad request"] {
            assert!(!is_success(text), "{text}");
        }
    }
}
