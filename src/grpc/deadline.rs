//! The deadline of a call, counted from its arrival.
//!
//! The gateway answers some time before the caller's deadline, so that the answer arrives in time.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

/// The bounds of the margin, which is a tenth of the call's time. A call with less time than the
/// minimum is answered only if that is possible at once.
const MAX_MARGIN: Duration = Duration::from_millis(200);
const MIN_MARGIN: Duration = Duration::from_millis(20);

/// The middleware answers if the service has not answered after a quarter of the margin.
const GRACE_DIVISOR: u32 = 4;

const TIMEOUT: &str = "grpc-timeout";

/// The deadline of a call. It is in the extensions of the call's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deadline {
    /// When the service answers.
    pub(super) answer: Instant,
    /// When the middleware answers in place of the service.
    pub(super) cut: Instant,
}

impl Deadline {
    /// Returns the deadline of a call that arrives now with these headers.
    pub(super) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let (time, now) = (timeout(headers)?, Instant::now());
        let margin = margin(time);
        let cut_margin = margin.saturating_sub(margin / GRACE_DIVISOR);
        Some(Self {
            answer: now + time.saturating_sub(margin),
            cut: now + time.saturating_sub(cut_margin),
        })
    }
}

/// Returns the time of a call minus the margin.
pub(super) fn without_margin(time: Duration) -> Duration {
    time.saturating_sub(margin(time))
}

fn margin(time: Duration) -> Duration {
    (time / 10).clamp(MIN_MARGIN, MAX_MARGIN)
}

/// Whether a call has a deadline that cannot be read. Such a call is refused, as grpc-go does: the
/// gateway would not know when its caller stops waiting.
pub(super) fn is_malformed(headers: &HeaderMap) -> bool {
    headers.contains_key(TIMEOUT) && timeout(headers).is_none()
}

/// Returns the value of `grpc-timeout`: at most 8 digits and a unit (PROTOCOL-HTTP2.md, "Timeout").
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let mut values = headers.get_all(TIMEOUT).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_hours(number)),
        "M" => Some(Duration::from_mins(number)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(text: &str) -> HeaderMap {
        text.parse()
            .map(|value| HeaderMap::from_iter([(http::HeaderName::from_static(TIMEOUT), value)]))
            .unwrap_or_default()
    }

    #[test]
    fn timeouts_of_callers() {
        assert_eq!(timeout(&headers("1S")), Some(Duration::from_secs(1)));
        assert_eq!(timeout(&headers("99999999H")), Some(Duration::from_hours(99_999_999)));
        assert_eq!(timeout(&headers("250m")), Some(Duration::from_millis(250)));
        assert_eq!(timeout(&headers("0n")), Some(Duration::ZERO));
        for wrong in ["", "S", "1", "123456789S", "-1S", "+1S", "1 S", "1x", "1é"] {
            assert_eq!(timeout(&headers(wrong)), None, "{wrong}");
            assert!(is_malformed(&headers(wrong)), "{wrong}");
        }
        let mut twice = headers("1S");
        assert!(!is_malformed(&twice) && !is_malformed(&HeaderMap::new()));
        twice.append(TIMEOUT, "1S".parse().unwrap());
        assert!(is_malformed(&twice));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_leaves_before_the_deadline() {
        let cases = [
            ("0n", 0, 0),
            ("1m", 0, 0),
            ("15m", 0, 0),
            ("20m", 0, 5),
            ("100m", 80, 85),
            ("1S", 900, 925),
            ("10S", 9_800, 9_850),
            ("1H", 3_599_800, 3_599_850),
        ];
        for (text, answer, cut) in cases {
            let after = |milliseconds| Instant::now() + Duration::from_millis(milliseconds);
            let expected = Deadline { answer: after(answer), cut: after(cut) };
            assert_eq!(Deadline::from_headers(&headers(text)), Some(expected), "{text}");
        }
    }
}
