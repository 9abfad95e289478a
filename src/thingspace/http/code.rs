//! Error codes: where a reply contains them, and what they mean. A *general code* is neither
//! ThingSpace's own nor its API manager's: an HTTP status or a word.
//!
//! Never reads the message beside a code, because it is dynamic and may quote the request.

mod envelope;
pub(crate) mod table;

use self::table::Row;
use super::{body::ReplyBody, object::Object, words};
use crate::thingspace::{Refusal, RefusalKind};

const MAX_CODE_CHARS: usize = 128;

/// A longer text is no code. The longest code contains the name of a service plan.
const MAX_CODE_BYTES: usize = 512;

/// A word with this many digits may be an identity of a device or a token. An MDN has 10 digits,
/// and the API manager's codes have 6.
const MASKED_FROM_DIGITS: usize = 8;

/// The part of ThingSpace's codes that follows the name of the service.
const CLASSES: [&str; 4] =
    ["input_invalid.", "request_failed.", "request_onhold.", "request_cancelled."];

/// An error code as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Code {
    text: String,
    /// The number, if the API manager wrote it.
    number: Option<u32>,
}

/// The error codes in all envelopes of a body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ErrorCodes {
    None,
    /// Only codes of success, such as `200` or `false`.
    Success,
    One(Code),
    /// Different codes, or something that is no code in the place of one.
    Contradictory,
}

impl ErrorCodes {
    pub(crate) fn of(body: &ReplyBody<'_>) -> Self {
        Self::read(body.object.as_ref(), body.text)
    }

    /// Reads the codes in an object or, if there is none, in a text.
    pub(super) fn read(object: Option<&Object<'_>>, text: &str) -> Self {
        let mut summary = Self::None;
        for found in envelope::all(object, text) {
            let next = match found {
                Some(found) if is_success(&found.text) => Self::Success,
                found => {
                    let code = found.filter(|found| is_code(&found.text)).and_then(Code::of);
                    code.map_or(Self::Contradictory, Self::One)
                }
            };
            summary = match summary {
                Self::None => next,
                summary if summary == next => summary,
                _ => Self::Contradictory,
            };
        }
        summary
    }
}

/// Returns whether a text in the place of a code says that there is no error.
fn is_success(code: &str) -> bool {
    let is = |word: &str| code.eq_ignore_ascii_case(word);
    let is_zero = code.parse().is_ok_and(|number: u16| number == 0);
    is_zero || is("false") || words::is_success(code) && !is("true")
}

/// Returns whether a text can be a code: no number with a sign, a fraction or an exponent, and no
/// word such as "null".
fn is_code(text: &str) -> bool {
    let is_integer = text.bytes().all(|byte| byte.is_ascii_digit());
    (is_integer || text.parse::<f64>().is_err()) && !words::is_no_value(text)
}

impl Code {
    pub(crate) fn first(body: &ReplyBody<'_>) -> Option<Self> {
        envelope::first(body).and_then(Self::of)
    }

    fn of(found: envelope::FoundCode) -> Option<Self> {
        let number = found.text.parse().ok().filter(|_| found.by_api_manager);
        let code = Self { text: found.text, number };
        (code.text.len() <= MAX_CODE_BYTES && !shown(&code.text).is_empty()).then_some(code)
    }

    pub(crate) fn row(&self, http: u16) -> &'static Row {
        table::row(&name(&self.text).0, self.number, http)
    }

    /// Returns whether ThingSpace itself wrote the code, not its API manager or authorization
    /// server.
    pub(crate) fn is_from_thingspace(&self) -> bool {
        name(&self.text).1
    }

    pub(crate) fn is_from_api_manager(&self) -> bool {
        self.number.is_some()
    }

    pub(crate) fn is_general(&self) -> bool {
        !self.is_from_thingspace() && !self.is_from_api_manager()
    }

    pub(crate) fn refusal(&self, kind: RefusalKind, status: u16) -> Refusal {
        Refusal { kind, code: shown(&self.text), status }
    }
}

/// Returns a code without the name of the service, in lower case, and whether it has one of
/// [`CLASSES`]. Several services use the same codes with the same meanings.
fn name(code: &str) -> (String, bool) {
    let lower = code.to_ascii_lowercase();
    let starts = |at: usize| {
        at == 0 || !matches!(lower.as_bytes()[at - 1], b'_' | b'a'..=b'z' | b'0'..=b'9')
    };
    let class = CLASSES.iter().filter_map(|class| lower.find(class)).filter(|at| starts(*at)).min();
    let name = match class {
        Some(at) => &lower[at..],
        None => lower.split_once('.').map_or(lower.as_str(), |(_service, rest)| rest),
    };
    (name.to_owned(), class.is_some())
}

/// Returns a code as it may be shown: cut, with only the characters of codes, and with `_` in place
/// of identities and tokens.
pub(crate) fn shown(code: &str) -> String {
    let in_word = |c: char| c.is_ascii_alphanumeric() || c == '-';
    // Digits that other characters separate are masked as one word.
    let code: String = code.chars().filter(|c| in_word(*c) || matches!(c, '.' | '_')).collect();
    let mut masked = String::with_capacity(code.len());
    for word in code.split_inclusive(|c| !in_word(c)) {
        let digits = word.bytes().filter(u8::is_ascii_digit).count();
        if digits < MASKED_FROM_DIGITS {
            masked.push_str(word);
        } else {
            masked.push('_');
            masked.push_str(word.trim_start_matches(in_word));
        }
    }
    masked.truncate(MAX_CODE_CHARS);
    masked
}

/// Returns the meaning of a refusal, for people.
pub(crate) fn meaning(kind: RefusalKind, code: &str, http: u16) -> &'static str {
    let number = code.parse().ok().filter(|_| kind == RefusalKind::NotForwarded);
    table::row(&name(code).0, number, http).meaning
}

/// Returns whether the API manager refused the call with a number of its own (900906, no such path;
/// 700700, API blocked; …). Then ThingSpace did not see the call and checked no password. The fault
/// for "wrong authentication" is none of these: it does not say whose authentication is wrong.
pub(crate) fn is_by_api_manager(refusal: &Refusal) -> bool {
    refusal.kind == RefusalKind::NotForwarded && refusal.code.len() == 6
}

/// Returns whether ThingSpace says that it does not know the request. Its documents name no code
/// for that. So a code about the request counts, and a 404 that does not concern the account. A 404
/// of the API manager means a wrong path.
pub(crate) fn says_unknown_request(refusal: &Refusal) -> bool {
    match refusal.kind {
        RefusalKind::RequestNotFound => true,
        RefusalKind::NotForwarded
        | RefusalKind::AccountNotFound
        | RefusalKind::AccountForbidden => false,
        _ => refusal.status == 404,
    }
}

#[cfg(test)]
mod tests;
