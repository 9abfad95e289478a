//! Error codes: found in any of ThingSpace's envelopes, and what they mean.
//!
//! The message beside a code is never looked at: it is dynamic, and may quote the request.

mod envelope;
pub(crate) mod table;

use self::table::Row;
use super::{body::Body, object::Object, words};
use crate::thingspace::{Refusal, RefusalKind};

const MAX_CODE_CHARS: usize = 128;

/// A longer text is no code, in bytes. The longest one has a service plan's name in it.
const MAX_CODE_BYTES: usize = 512;

/// A word with so many digits names a device or is a token: an MDN has 10, the API manager's codes
/// have 6.
const MASKED_FROM_DIGITS: usize = 8;

/// What says, after the service's name, how a call failed.
const CLASSES: [&str; 4] =
    ["input_invalid.", "request_failed.", "request_onhold.", "request_cancelled."];

/// An error code as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Code {
    text: String,
    /// The number that the API manager says it is.
    number: Option<u32>,
}

/// What all envelopes of a body say together.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Nothing,
    /// Only codes of success, such as `200` or `false`.
    Success,
    One(Code),
    /// Different codes, or one that cannot be read.
    Contradictory,
}

impl Said {
    pub(crate) fn of(body: &Body<'_>) -> Self {
        Self::of_all(envelope::all(body))
    }

    pub(crate) fn of_object(object: &Object<'_>) -> Self {
        Self::of_all(envelope::all_in(object))
    }

    fn of_all(all: Vec<Option<envelope::Found>>) -> Self {
        let mut said = Self::Nothing;
        for found in all {
            let next = match found {
                Some(found) if is_success(&found.text) => Self::Success,
                found => {
                    let code = found.filter(|found| is_code(&found.text)).and_then(Code::of);
                    code.map_or(Self::Contradictory, Self::One)
                }
            };
            said = match said {
                Self::Nothing => next,
                said if said == next => said,
                _ => Self::Contradictory,
            };
        }
        said
    }
}

/// Whether a text in a code's place says that there is no error.
fn is_success(code: &str) -> bool {
    let is = |word: &str| code.eq_ignore_ascii_case(word);
    let is_zero = code.parse().is_ok_and(|number: u16| number == 0);
    is_zero || is("false") || words::is_success(code) && !is("true")
}

/// Whether a text in a code's place can be one: not a number with a sign, a fraction or an
/// exponent, nor a word such as "null".
fn is_code(text: &str) -> bool {
    let is_integer = text.bytes().all(|byte| byte.is_ascii_digit());
    (is_integer || text.parse::<f64>().is_err()) && !words::is_no_value(text)
}

impl Code {
    /// `None`: no readable error envelope, or one without a code.
    pub(crate) fn first(body: &Body<'_>) -> Option<Self> {
        envelope::first(body).and_then(Self::of)
    }

    fn of(found: envelope::Found) -> Option<Self> {
        let number = found.text.parse().ok().filter(|_| found.by_api_manager);
        let code = Self { text: found.text, number };
        (code.text.len() <= MAX_CODE_BYTES && !shown(&code.text).is_empty()).then_some(code)
    }

    /// What it means with an HTTP status.
    pub(crate) fn row(&self, http: u16) -> &'static Row {
        table::row(&name(&self.text).0, self.number, http)
    }

    /// ThingSpace proper looked at the call, not only its API manager or its authorization server.
    pub(crate) fn is_from_thingspace(&self) -> bool {
        name(&self.text).1
    }

    /// The API manager answered in ThingSpace's stead.
    pub(crate) fn is_from_api_manager(&self) -> bool {
        self.number.is_some()
    }

    /// Neither ThingSpace nor its API manager writes it: an HTTP status, or a word of its own.
    pub(crate) fn is_general(&self) -> bool {
        !self.is_from_thingspace() && !self.is_from_api_manager()
    }

    pub(crate) fn refusal(&self, kind: RefusalKind, status: u16) -> Refusal {
        Refusal { kind, code: shown(&self.text), status }
    }
}

/// A code without the name of the service, in lower case, and whether it has a class. Several
/// services use the same codes, with the same meanings.
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

/// A code as it may be shown: short, and of nothing but what codes are made of. What is no code but
/// an identity or a token, for which a text in a code's place has room, is masked.
pub(crate) fn shown(code: &str) -> String {
    let in_word = |c: char| c.is_ascii_alphanumeric() || c == '-';
    // As it would be read: what is left out joins what is before and behind it.
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

/// What a refusal means, for people.
pub(crate) fn meaning(kind: RefusalKind, code: &str, http: u16) -> &'static str {
    let number = code.parse().ok().filter(|_| kind == RefusalKind::TurnedAway);
    table::row(&name(code).0, number, http).meaning
}

/// A number of the API manager's own (900906, no such path; 700700, API blocked; …): ThingSpace
/// proper saw nothing, nor did it look at anybody's password. The fault for "wrong authentication"
/// is not among them: whose, it does not say.
pub(crate) fn is_by_api_manager(refusal: &Refusal) -> bool {
    refusal.kind == RefusalKind::TurnedAway && refusal.code.len() == 6
}

/// ThingSpace's documents do not say how it answers for an unknown request: a code that names the
/// request, or a 404 of ThingSpace itself that is not about the account. A 404 of the API manager
/// (a wrong path) says nothing.
pub(crate) fn says_unknown_request(refusal: &Refusal) -> bool {
    match refusal.kind {
        RefusalKind::RequestNotFound => true,
        RefusalKind::TurnedAway | RefusalKind::AccountNotFound | RefusalKind::AccountForbidden => {
            false
        }
        _ => refusal.status == 404,
    }
}

#[cfg(test)]
mod tests;
