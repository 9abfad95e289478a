//! When a caller stops waiting, counted from when its call arrived.
//!
//! An answer leaves ahead of the caller's deadline, so that it arrives. tonic has a timer of its
//! own for the same header, which nothing inside its server can hide from it, and which answers
//! CANCELLED where DEADLINE_EXCEEDED is due; it is the second reason to be early. Its response
//! future asks ours first, and only then its timer, so whoever is ready by the clock, with time to
//! spare for a thread that stands still in between, is always first.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

/// How long before a caller's deadline the answer leaves: a tenth of the time, within these bounds.
/// A call that has no more than the least is answered only if it can be at once.
const MOST_AHEAD: Duration = Duration::from_millis(200);
const LEAST_AHEAD: Duration = Duration::from_millis(20);

/// Of what an answer is ahead, the part that a service may take to give its own before it is given
/// for it.
const GRACE: u32 = 4;

/// The deadline of a call; an extension of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deadline {
    /// When the service answers.
    pub(super) answer: Instant,
    /// When it is answered for it.
    pub(super) cut: Instant,
}

impl Deadline {
    /// The deadline that the headers of a call set, which arrived now.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let (time, now) = (timeout(headers)?, Instant::now());
        let ahead = ahead(time);
        let cut_ahead = ahead.saturating_sub(ahead / GRACE);
        Some(Self {
            answer: now + time.saturating_sub(ahead),
            cut: now + time.saturating_sub(cut_ahead),
        })
    }
}

/// Of the time there is for a call, what may pass before its answer leaves.
pub(super) fn before(time: Duration) -> Duration {
    time.saturating_sub(ahead(time))
}

fn ahead(time: Duration) -> Duration {
    (time / 10).clamp(LEAST_AHEAD, MOST_AHEAD)
}

/// `grpc-timeout`, as the gRPC protocol over HTTP/2 writes it: at most 8 digits and a unit.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
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
            .map(|value| {
                HeaderMap::from_iter([(http::HeaderName::from_static("grpc-timeout"), value)])
            })
            .unwrap_or_default()
    }

    #[test]
    fn timeouts_of_callers() {
        assert_eq!(timeout(&headers("1S")), Some(Duration::from_secs(1)));
        assert_eq!(timeout(&headers("99999999H")), Some(Duration::from_hours(99_999_999)));
        assert_eq!(timeout(&headers("250m")), Some(Duration::from_millis(250)));
        assert_eq!(timeout(&headers("0n")), Some(Duration::ZERO));
        for wrong in ["", "S", "1", "123456789S", "-1S", "1x", "1é"] {
            assert_eq!(timeout(&headers(wrong)), None, "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_leaves_ahead_of_time() {
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
            assert_eq!(Deadline::of(&headers(text)), Some(expected), "{text}");
        }
    }
}
