//! Names of the streams and subjects on NATS.
//!
//! All names begin with the prefix, so that several deployments can share an account of NATS. The
//! name of a log or cell is encoded as one token of a subject: letters, digits and hyphens stand
//! for themselves, and every other byte is `_` and two hexadecimal digits.

use std::fmt::Write as _;

use crate::store::{CellLife, CellName, LogName};

/// The names of the streams and subjects of one deployment.
#[derive(Debug, Clone)]
pub(super) struct NatsNames {
    /// The stream of logs.
    pub(super) events: String,
    /// The stream of permanent cells.
    pub(super) cells: String,
    /// The stream of retained cells.
    pub(super) keys: String,
    prefix: String,
}

impl NatsNames {
    pub(super) fn new(prefix: &str) -> Self {
        let stream = |kind| format!("{prefix}_{kind}");
        Self {
            events: stream("events"),
            cells: stream("cells"),
            keys: stream("keys"),
            prefix: prefix.to_owned(),
        }
    }

    /// Returns the streams, in the order of their indexes; see [`EVENTS`](super::record::EVENTS).
    pub(super) fn streams(&self) -> [&str; 3] {
        [&self.events, &self.cells, &self.keys]
    }

    /// Returns the wildcard subject of a stream.
    pub(super) fn all_of(&self, stream: &str) -> String {
        let kind = match stream {
            stream if stream == self.events => "ev",
            stream if stream == self.cells => "cell",
            _ => "key",
        };
        format!("{}.{kind}.>", self.prefix)
    }

    /// Returns the subject on which a gateway that starts requests the record from the running
    /// ones. No stream stores it.
    pub(super) fn record_requests(&self) -> String {
        format!("{}.record", self.prefix)
    }

    /// Returns the subject of reports, in the stream of events. It is no log.
    pub(super) fn report(&self) -> String {
        format!("{}.ev.store", self.prefix)
    }

    pub(super) fn inbox(&self) -> String {
        format!("_INBOX.{}", self.prefix)
    }

    /// Returns the subject of a log.
    pub(super) fn log(&self, log: &LogName) -> String {
        let log = LogName { class: log.class, id: to_token(&log.id) };
        format!("{}.ev.{}", self.prefix, log.encode())
    }

    /// Returns the log of a subject; `None` if the subject is not that of a log.
    pub(super) fn to_log(&self, subject: &str) -> Option<LogName> {
        let log = LogName::decode(subject.strip_prefix(&self.prefix)?.strip_prefix(".ev.")?)?;
        Some(LogName { class: log.class, id: from_token(&log.id)? })
    }

    /// Returns the stream and the subject of a cell.
    pub(super) fn cell(&self, cell: &CellName) -> (&str, String) {
        let (stream, kind) = match cell.life {
            CellLife::Permanent => (&self.cells, "cell"),
            CellLife::Retained => (&self.keys, "key"),
        };
        (stream, format!("{}.{kind}.{}", self.prefix, to_token(&cell.name)))
    }
}

fn to_token(name: &str) -> String {
    let mut token = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            token.push(byte.into());
        } else {
            write!(token, "_{byte:02x}").expect("writing to a String does not fail");
        }
    }
    // NATS allows no empty token. No other name is encoded as a single `_`.
    if token.is_empty() { "_".to_owned() } else { token }
}

fn from_token(token: &str) -> Option<String> {
    if token == "_" {
        return Some(String::new());
    }
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.bytes();
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16)?).ok();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'_' => 16 * digit(rest.next()?)? + digit(rest.next()?)?,
            byte if byte.is_ascii_alphanumeric() || byte == b'-' => byte,
            _ => return None,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn subjects_are_readable() {
        let names = NatsNames::new("gw");
        assert_eq!(names.log(&LogName::request("24da9f9c-1")), "gw.ev.r.24da9f9c-1");
        assert_eq!(
            names.cell(&CellName::permanent("guard/a.b")),
            ("gw_cells", "gw.cell.guard_2fa_2eb".to_owned())
        );
        assert_eq!(names.cell(&CellName::retained("")), ("gw_keys", "gw.key._".to_owned()));
        assert_eq!(names.all_of("gw_events"), "gw.ev.>");
    }

    #[test]
    fn other_subjects_are_no_logs() {
        let names = NatsNames::new("gw");
        for other in [
            "gw",
            "gw.ev.r",
            "gw.ev.x.1",
            "gx.ev.r.1",
            "gw.ev.r.a.b",
            "gw.ev.r.a_2",
            "gw.ev.r._ff",
            "gw.ev.r.ä",
        ] {
            assert_eq!(names.to_log(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn every_name_has_a_token_of_its_own(id: String, other: String) {
            let names = NatsNames::new("gw");
            let log = LogName::order(&id);
            let subject = names.log(&log);
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            prop_assert!(subject.bytes().all(is_plain));
            prop_assert_eq!(names.to_log(&subject), Some(log));
            prop_assert_eq!(to_token(&id) == to_token(&other), id == other);
        }
    }
}
