//! Durations in the configuration: `"250ms"`, `"1m 30s"`, `"30d"`, never a bare number. A day has
//! 24 hours.

use std::time::Duration;

use jiff::{Span, SpanRelativeTo, fmt::friendly::SpanPrinter};
use serde::{Deserialize, Deserializer, Serializer, de::Error};

pub(super) fn serialize<S: Serializer>(
    duration: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&show(*duration))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).ok_or_else(|| {
        D::Error::custom(format!(
            "{text:?} is not a duration; write it with a unit, for example \"25s\" or \"72h\""
        ))
    })
}

pub(crate) fn parse(text: &str) -> Option<Duration> {
    let span: Span = text.parse().ok()?;
    span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?.try_into().ok()
}

/// Formats a duration with its largest units: `1h 30m`, and `1m` for 60 seconds.
pub(crate) fn show(duration: Duration) -> String {
    SpanPrinter::new().unsigned_duration_to_string(&duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_no_bare_numbers() {
        for (text, seconds) in
            [("25s", 25), ("1m 30s", 90), ("72h", 259_200), ("30d", 2_592_000), ("0s", 0)]
        {
            let duration = Duration::from_secs(seconds);
            assert_eq!(parse(text), Some(duration), "{text}");
            assert_eq!(parse(&show(duration)), Some(duration), "{text}");
        }
        for wrong in ["", "5", "-5s", "5 parsecs", "1mo", "1y"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
