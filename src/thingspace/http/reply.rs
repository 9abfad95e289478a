//! The reply to one request, read within bounds, or why there is none.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        CONTENT_ENCODING, CONTENT_LOCATION, LOCATION, RETRY_AFTER, WARNING, WWW_AUTHENTICATE,
    },
};
use rustix::io::Errno;

use super::breaker::LONGEST_RETRY_AFTER;

/// The header with a request's id. `X-Request-Id` is something else; see
/// [`evidence`](super::verdict).
const REQUEST_ID: HeaderName = HeaderName::from_static("requestid");

/// A reply with any status.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) retry_after: Option<Duration>,
    /// The addresses in `Location` and `Content-Location`.
    pub(crate) locations: Vec<String>,
    /// The values of headers named `requestId`.
    pub(crate) request_ids: Vec<String>,
    /// The texts for people in `WWW-Authenticate` and `Warning`.
    pub(crate) notes: Vec<String>,
    /// `None`: cut, too long, or in an encoding that cannot be decoded.
    pub(crate) body: Option<Bytes>,
    /// The body is incomplete: the connection broke, or it took too long.
    pub(crate) cut: bool,
}

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// There was no connection, so nothing was sent.
    #[error("{0}")]
    NotConnected(String),
    /// This process can open no more files, so nothing was sent. This says nothing about the host.
    #[error("no file could be opened")]
    NoDescriptor,
    /// The request may have arrived.
    #[error("{0}")]
    NoAnswer(String),
    /// The host's breaker is open for at least this long, so nothing was sent.
    #[error("the breaker is open")]
    BreakerOpen(Duration),
}

impl Reply {
    /// Reads a body of at most `limit` bytes after decompression. A longer one is not kept.
    pub(super) async fn read(mut response: reqwest::Response, limit: usize) -> Self {
        let headers = response.headers();
        let retry_after = headers.get(RETRY_AFTER).and_then(retry_after);
        let locations = values(headers, &[LOCATION, CONTENT_LOCATION]);
        let request_ids = values(headers, &[REQUEST_ID]);
        let notes = values(headers, &[WWW_AUTHENTICATE, WARNING]);
        // reqwest removes this header when it decodes a body.
        let is_encoded =
            headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity");
        let (mut body, mut is_too_long, mut cut) = (BytesMut::new(), false, false);
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() <= limit => {
                    body.extend_from_slice(&chunk);
                    continue;
                }
                Ok(Some(_)) => is_too_long = true,
                Ok(None) => {}
                Err(_) => cut = true,
            }
            break;
        }
        let body = (!cut && !is_too_long && !is_encoded).then(|| body.freeze());
        Self { status: response.status(), retry_after, locations, request_ids, notes, body, cut }
    }
}

impl SendError {
    /// Classifies an error. reqwest reports DNS errors, refused connections, failed handshakes and
    /// the connect time-out as "connect", but not the time-out of the whole call, even if it
    /// expires while connecting.
    pub(super) fn from_reqwest(error: &reqwest::Error) -> Self {
        let mut root: &dyn std::error::Error = error;
        while let Some(source) = root.source() {
            root = source;
        }
        let code = root.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        // Only opening a socket fails with these errors, so nothing was sent.
        let no_descriptor = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
        if code.is_some_and(|code| no_descriptor.contains(&code)) {
            Self::NoDescriptor
        } else if error.is_connect() {
            Self::NotConnected(format!("no connection: {root}"))
        } else if error.is_builder() {
            Self::NotConnected("the request could not be built".to_owned())
        } else if error.is_timeout() {
            Self::NoAnswer("no answer in time".to_owned())
        } else {
            Self::NoAnswer(format!("connection broke: {root}"))
        }
    }

    /// Returns the value of `error.type` in a span.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::NotConnected(_) => "not_connected",
            Self::NoDescriptor => "no_descriptor",
            Self::NoAnswer(_) => "no_answer",
            Self::BreakerOpen(_) => "breaker_open",
        }
    }
}

fn values(headers: &HeaderMap, names: &[HeaderName]) -> Vec<String> {
    let named = headers.iter().filter(|(name, _)| names.contains(name));
    named.map(|(_, value)| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
}

/// Reads seconds or an HTTP date. Returns at most [`LONGEST_RETRY_AFTER`].
fn retry_after(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    let wait = if let Ok(seconds) = text.parse() {
        Duration::from_secs(seconds)
    } else {
        let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
        date.duration_since(jiff::Timestamp::now()).try_into().unwrap_or(Duration::ZERO)
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_and_bounded() {
        let parse = |text: &str| retry_after(&HeaderValue::from_str(text).unwrap());
        assert_eq!(parse("0"), Some(Duration::ZERO));
        assert_eq!(parse("17"), Some(Duration::from_secs(17)));
        assert_eq!(parse("86400"), Some(LONGEST_RETRY_AFTER));
        assert_eq!(parse("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(parse("Tue, 01 Jan 2999 00:00:00 GMT"), Some(LONGEST_RETRY_AFTER));
        for junk in ["", "-1", "soon", "1.5"] {
            assert_eq!(parse(junk), None, "{junk}");
        }
    }
}
