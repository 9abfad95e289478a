//! Request ids that a text mentions, as in "accepted with request id 4711".

use uuid::Uuid;

/// The most characters between "request" and "id", for example in `request_id` or `request> <id`.
const MAX_BETWEEN: usize = 3;

const UUID_CHARS: usize = 36;

/// Returns the words with a digit after the mention of a request id. One of them is the id.
pub(super) fn mentioned(text: &str) -> Vec<String> {
    let text: String = unescaped(text).chars().map(narrow).collect();
    let lower = text.to_ascii_lowercase();
    let mention = lower.match_indices("req").find_map(|(at, _)| end_of_mention(&lower, at));
    let words =
        mention.map(|end| text[end..].split(|c: char| !c.is_ascii_alphanumeric() && c != '-'));
    let has_digit = |word: &&str| word.bytes().any(|byte| byte.is_ascii_digit());
    words.into_iter().flatten().filter(has_digit).map(str::to_owned).collect()
}

/// Returns whether a text contains a UUID. Every known request id is a UUID or a number.
pub(super) fn has_uuid(text: &str) -> bool {
    let text: String = unescaped(text).chars().map(narrow).collect();
    let is_in_word = |at: usize| text.as_bytes().get(at).is_some_and(u8::is_ascii_alphanumeric);
    (0..text.len().saturating_sub(UUID_CHARS - 1)).any(|at| {
        let uuid = text.get(at..at + UUID_CHARS).and_then(|uuid| Uuid::try_parse(uuid).ok());
        uuid.is_some_and(|uuid| !uuid.is_nil())
            && !is_in_word(at.wrapping_sub(1))
            && !is_in_word(at + UUID_CHARS)
    })
}

/// Returns the end of "request id", "reqId" or "request identifier" if one begins at `at`.
fn end_of_mention(lower: &str, at: usize) -> Option<usize> {
    let rest = &lower[at..];
    let rest = rest.strip_prefix("request").or_else(|| rest.strip_prefix("req"))?;
    let id = rest.char_indices().take(MAX_BETWEEN + 1).find(|(_, c)| c.is_alphanumeric())?.0;
    let rest = rest[id..].strip_prefix("id")?;
    let rest = ["entifier", "s"].iter().find_map(|end| rest.strip_prefix(end)).unwrap_or(rest);
    (!rest.starts_with(char::is_alphabetic)).then(|| lower.len() - rest.len())
}

/// Converts full-width letters and digits to ASCII. Some keyboards write them.
pub(super) fn narrow(c: char) -> char {
    const WIDE: u32 = '！' as u32 - '!' as u32;
    match c {
        '！'..='～' => char::from_u32(c as u32 - WIDE).unwrap_or(c),
        c => c,
    }
}

pub(super) fn words(text: &str) -> Vec<String> {
    let text: String = unescaped(text).chars().map(narrow).flat_map(char::to_lowercase).collect();
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Replaces characters that are escaped as in JSON (`\u0041`).
fn unescaped(text: &str) -> String {
    let mut parts = text.split("\\u");
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..4).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        match code.and_then(char::from_u32) {
            Some(c) => {
                all.push(c);
                all.push_str(&part[4..]);
            }
            None => all.push_str(part),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_mentions_a_request_id_in_many_ways() {
        for text in [
            "requestId r-1",
            "Request ID: r-1",
            "REQUEST_ID=r-1",
            "the reqId is r-1.",
            "accepted (request-id \"r-1\")",
            "<request><id>r-1</id>",
            "request identifier r-1",
            "request ids r-1",
            "\\u0072equestId r-1",
            "ｒｅｑｕｅｓｔＩｄ：ｒ－１",
            "a request, whose requestId is r-1",
        ] {
            assert_eq!(mentioned(text), ["r-1"], "{text}");
        }
        assert_eq!(mentioned("requestId r-1 for device 8914"), ["r-1", "8914"]);
    }

    #[test]
    fn a_uuid_is_found_in_a_text() {
        const UUID: &str = "0f8fad5b-d9cb-469f-a165-70867728950E";
        for text in [
            UUID,
            &format!("Your request {UUID} is pending"),
            &format!("({UUID})"),
            &format!("é{UUID}."),
        ] {
            assert!(has_uuid(text), "{text}");
        }
        for text in [
            "",
            "0f8fad5b-d9cb-469f-a165-70867728950",
            &format!("x{UUID}"),
            &format!("{UUID}0"),
            "0f8fad5bd9cb469fa16570867728950e",
            "00000000-0000-0000-0000-000000000000",
            "0f8fad5b-d9cb-469f-a165-7086772é950e",
        ] {
            assert!(!has_uuid(text), "{text}");
        }
    }

    #[test]
    fn other_texts_mention_no_request_id() {
        for text in [
            "",
            "the request 12345 cannot be carried out",
            "the request identified by 12345",
            "requestId is required",
            "12345 is no requestId",
            "requests idle for 300 s",
            "\\u00",
            "req",
        ] {
            assert_eq!(mentioned(text), [""; 0], "{text}");
        }
    }
}
