//! Phrases in texts for people that say that an order may have been carried out.

/// An order that was taken on.
const ACCEPTED: [&[&str]; 12] = [
    &["accepted"],
    &["queued"],
    &["enqueued"],
    &["submitted"],
    &["acknowledged"],
    &["successfully"],
    &["in", "progress"],
    &["inprogress"],
    &["in", "process"],
    &["being", "processed"],
    &["be", "processed"],
    &["on", "hold"],
];

/// An answer that somebody did not wait for.
const TIMED_OUT: [&[&str]; 6] = [
    &["timeout"],
    &["timeouts"],
    &["time", "out"],
    &["timed", "out"],
    &["timedout"],
    &["deadline", "exceeded"],
];

/// What denies the phrase after it. "Not yet" and "not only" deny nothing.
/// The "t" is that of "can't".
const DENIALS: [&str; 5] = ["not", "never", "cannot", "t", "longer"];

/// What may stand between a denial and its phrase.
const BETWEEN: [&str; 3] = ["be", "been", "being"];

/// Whether an order was accepted, or is being carried out, by a text of these words.
pub(super) fn says_accepted(words: &[String]) -> bool {
    ACCEPTED
        .iter()
        .any(|phrase| ends(words, phrase).any(|end| !is_denied(words, end - phrase.len(), end)))
}

/// Whether a text of these words speaks of a time-out. One that denies it is believed neither way.
pub(super) fn says_timed_out(words: &[String]) -> bool {
    TIMED_OUT.iter().any(|phrase| ends(words, phrase).next().is_some())
}

/// Where a phrase ends.
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
