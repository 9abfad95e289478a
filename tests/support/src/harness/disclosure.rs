//! Promise 7 of the README: no password and no identity of a device is in what operators can read.

/// Passwords and secrets of the simulator.
const SECRETS: [&str; 2] = ["simulator-password", "simulator-secret"];

/// What device identities look like: their number of digits, and the first ones. The devices of the
/// tests are such; see [`super::device`].
const IDENTITIES: [(&str, usize, &str); 3] =
    [("an EID", 32, "89"), ("an ICCID", 20, "89"), ("an IMEI", 15, "49")];

/// Panics if a line of a log, a page or a metric, or what a collector got, discloses something.
#[track_caller]
pub fn assert_discloses_nothing<'a>(lines: impl IntoIterator<Item = &'a str>) {
    for line in lines {
        if let Some(what) = disclosed(line) {
            panic!("{what} is disclosed: {line}");
        }
    }
}

/// Returns what a line discloses.
fn disclosed(line: &str) -> Option<&'static str> {
    if SECRETS.iter().any(|secret| line.contains(secret)) {
        return Some("a secret");
    }
    line.split(|character: char| !character.is_ascii_digit()).find_map(|digits| {
        IDENTITIES.iter().find_map(|(what, length, beginning)| {
            (digits.len() == *length && digits.starts_with(beginning)).then_some(*what)
        })
    })
}
