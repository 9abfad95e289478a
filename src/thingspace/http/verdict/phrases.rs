//! Finds phrases in texts for people that say that an order may have been executed, and recognizes
//! plain refusals.

use std::{borrow::Cow, collections::HashSet, sync::LazyLock};

use super::mention::{has_uuid, words};

/// Phrases that say that an order, or a part of it, was accepted.
const ACCEPTED: [&[&str]; 14] = [
    &["accepted"],
    &["queued"],
    &["enqueued"],
    &["submitted"],
    &["acknowledged"],
    &["successfully"],
    &["in", "progress"],
    &["inprogress"],
    &["in", "process"],
    &["processed"],
    &["partially"],
    &["partly"],
    &["partial", "success"],
    &["on", "hold"],
];

const TIMED_OUT: [&[&str]; 7] = [
    &["time", "out"],
    &["timed", "out"],
    &["timedout"],
    &["etimedout"],
    &["deadline", "exceeded"],
    &["no", "response"],
    &["not", "respond"],
];

/// Functions of JavaScript, which do not mean that a call timed out.
const SCRIPTED: [&str; 2] = ["settimeout", "cleartimeout"];

/// The words with which Verizon, WSO2, Apigee, AWS, Azure, Kong, Envoy, nginx, Apache, Tomcat and
/// Cloudflare refuse a token or too many calls. None of them says what happened to an order.
static REFUSAL_WORDS: LazyLock<HashSet<&str>> = LazyLock::new(|| {
    "a about access account after again allowed amount an and another any apache api app \
        application are aren arrest as at auth authenticate authenticated authentication \
        authorization authorized available bad basic be bearer because been before being blank \
        browser but by call calls can cannot center client cloudflare code com concurrent \
        configured consumer contact correct could couldn credential credentials day default \
        denied description developer did didn do document does doesn down due during either \
        envoy error exceed exceeded exceeding exceeds expected expired expires expiry fail \
        failed fails failure few first for forbidden found from full given grant has hasn have \
        haven header hour how http identifier if in include incoming incorrect insufficient \
        invalid ip is isn issue issuer it its jwt key lacks later limit limited limiting limits \
        ll local log logged login longer make making many maximum message method millisecond \
        milliseconds minute minutes missing moment month more must need needs nginx no not now \
        number of on oops openresty or our out over page parameter password per permission \
        permissions permitted please policy port privilege privileges provide provided quota \
        rate re reached refresh refused reload replenished report request requested requests \
        require required requires resource retry role scheme scope second seconds security \
        server service session sign signature slow so some soon spike status subscribe \
        subscribed subscription such supplied supply sure suspended target temporarily than that \
        the then there this throttle throttled throttling time to token tokens tomcat too \
        traffic try type ubuntu unable unauthenticated unauthorised unauthorize unauthorized \
        understand unsupported until unusual upstream usage user username using valid validate \
        validated validation ve verification verify verizon version via view violation volume \
        wait was wasn we were when while who will with within without wrong you your"
        .split_ascii_whitespace()
        .collect()
});

/// Sentences of refusals with words that could also describe what happened to an order.
const REFUSAL_SENTENCES: [&str; 3] = [
    "the request has not been applied",
    "the user has sent too many requests",
    "you have sent too many requests",
];

/// Words that deny the phrase after them, except in "not … yet". "t" is the end of "can't".
const DENIALS: [&str; 5] = ["not", "never", "cannot", "t", "longer"];

/// Words that may stand between a denial and its phrase.
const BETWEEN: [&str; 3] = ["be", "been", "being"];

/// Returns whether a text says that an order was accepted or is being executed.
pub(super) fn says_accepted(words: &[String]) -> bool {
    ACCEPTED
        .iter()
        .any(|phrase| ends(words, phrase).any(|end| !is_denied(words, end - phrase.len(), end)))
}

/// Returns whether a text mentions a time-out, even to deny it.
pub(super) fn says_timed_out(words: &[String]) -> bool {
    let mentions_timeout =
        |word: &String| word.contains("timeout") && !SCRIPTED.contains(&word.as_str());
    words.iter().any(mentions_timeout)
        || TIMED_OUT.iter().any(|phrase| ends(words, phrase).next().is_some())
}

/// Returns whether a text is empty, or says only that a token or the rate is refused.
pub(super) fn is_plain_refusal(text: &str) -> bool {
    let mut text = visible(text).to_lowercase();
    for sentence in REFUSAL_SENTENCES {
        text = text.replace(sentence, "");
    }
    let is_address = |word: &&str| word.starts_with('/') || word.contains("://");
    text.split_whitespace()
        .filter(|word| !is_address(word) && !has_uuid(word))
        .flat_map(words)
        .filter(|word| word.chars().count() > 1 && !word.starts_with(|c: char| c.is_ascii_digit()))
        .all(|word| REFUSAL_WORDS.contains(word.as_str()))
}

/// Returns the visible text of an HTML page, or any other text unchanged.
fn visible(text: &str) -> Cow<'_, str> {
    const HIDDEN: [(&str, &str); 4] =
        [("<!--", "-->"), ("<script", "</script>"), ("<style", "</style>"), ("<", ">")];
    let lower = text.to_ascii_lowercase();
    if !["<html", "<!doctype html"].iter().any(|begin| lower.trim_start().starts_with(begin)) {
        return text.into();
    }
    let mut shown = String::new();
    let mut at = 0;
    while let Some(begin) = lower[at..].find('<').map(|begin| at + begin) {
        shown.push_str(&text[at..begin]);
        shown.push(' ');
        let rest = &lower[begin..];
        let end = HIDDEN
            .iter()
            .find(|(start, _)| rest.starts_with(start))
            .and_then(|(_, end)| rest.find(end).map(|at| begin + at + end.len()));
        let Some(end) = end else { return text.into() };
        at = end;
    }
    shown.push_str(&text[at..]);
    shown.into()
}

/// Returns the index after each occurrence of a phrase.
fn ends<'a>(words: &'a [String], phrase: &'a [&'a str]) -> impl Iterator<Item = usize> + 'a {
    let found =
        words.windows(phrase.len()).enumerate().filter(move |(_, window)| *window == phrase);
    found.map(move |(at, _)| at + phrase.len())
}

fn is_denied(words: &[String], begin: usize, end: usize) -> bool {
    let before = words[..begin].iter().rev().find(|word| !BETWEEN.contains(&word.as_str()));
    let is_only_delayed = words.get(end).is_some_and(|word| word == "yet");
    !is_only_delayed && before.is_some_and(|word| DENIALS.contains(&word.as_str()))
}
