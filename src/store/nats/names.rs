//! What things are called on NATS: streams, subjects and the tokens in them.
//!
//! All begin with the prefix, so that several gateways can share an account. A token holds any
//! name: letters, digits and hyphens stand for themselves, every other byte is `_` and two
//! hexadecimal digits.

use std::fmt::Write as _;

use crate::store::{CellLife, CellName, LogClass, LogName};

/// The streams and subjects of one gateway.
#[derive(Debug, Clone)]
pub(super) struct Names {
    /// Logs, for as long as events are kept.
    pub(super) events: String,
    /// Permanent cells.
    pub(super) cells: String,
    /// Retained cells.
    pub(super) keys: String,
    prefix: String,
}

impl Names {
    pub(super) fn new(prefix: &str) -> Self {
        let stream = |kind| format!("{prefix}_{kind}");
        Self {
            events: stream("events"),
            cells: stream("cells"),
            keys: stream("keys"),
            prefix: prefix.to_owned(),
        }
    }

    /// The streams, in the order in which they are told apart everywhere.
    pub(super) fn streams(&self) -> [&str; 3] {
        [&self.events, &self.cells, &self.keys]
    }

    /// What a stream takes.
    pub(super) fn all_of(&self, stream: &str) -> String {
        let Self { prefix, .. } = self;
        match stream {
            stream if stream == self.events => format!("{prefix}.ev.>"),
            stream if stream == self.cells => format!("{prefix}.cell.>"),
            _ => format!("{prefix}.key.>"),
        }
    }

    /// On which gateways ask each other for the record. No stream takes it.
    pub(super) fn record_requests(&self) -> String {
        format!("{}.record", self.prefix)
    }

    /// The newest message of this subject, which is no log, is the report.
    pub(super) fn report(&self) -> String {
        format!("{}.ev.store", self.prefix)
    }

    pub(super) fn inbox(&self) -> String {
        format!("_INBOX.{}", self.prefix)
    }

    pub(super) fn log(&self, log: &LogName) -> String {
        let class = match log.class {
            LogClass::Request => 'r',
            LogClass::Order => 'o',
        };
        format!("{}.ev.{class}.{}", self.prefix, token(&log.id))
    }

    /// The log that a subject of the stream of events stands for.
    pub(super) fn to_log(&self, subject: &str) -> Option<LogName> {
        let rest = subject.strip_prefix(&self.prefix)?.strip_prefix(".ev.")?;
        let (class, id) = rest.split_once('.')?;
        let class = match class {
            "r" => LogClass::Request,
            "o" => LogClass::Order,
            _ => return None,
        };
        Some(LogName { class, id: name(id)? })
    }

    /// The stream and the subject of a cell.
    pub(super) fn cell(&self, cell: &CellName) -> (&str, String) {
        let (stream, kind) = match cell.life {
            CellLife::Permanent => (&self.cells, "cell"),
            CellLife::Retained => (&self.keys, "key"),
        };
        (stream, format!("{}.{kind}.{}", self.prefix, token(&cell.name)))
    }
}

fn token(name: &str) -> String {
    let mut token = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            token.push(byte.into());
        } else {
            write!(token, "_{byte:02x}").expect("writing to a String does not fail");
        }
    }
    // A token has at least one character; no name begins so.
    if token.is_empty() { "_".to_owned() } else { token }
}

fn name(token: &str) -> Option<String> {
    if token == "_" {
        return Some(String::new());
    }
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'_' => {
                let digit = |byte: u8| {
                    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
                };
                16 * digit(rest.next()?)? + digit(rest.next()?)?
            }
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
        let names = Names::new("gw");
        assert_eq!(names.log(&LogName::request("24da9f9c-1")), "gw.ev.r.24da9f9c-1");
        assert_eq!(
            names.cell(&CellName::permanent("guard/a.b")),
            ("gw_cells", "gw.cell.guard_2fa_2eb".to_owned())
        );
        assert_eq!(names.cell(&CellName::retained("")), ("gw_keys", "gw.key._".to_owned()));
        assert_eq!(names.all_of("gw_events"), "gw.ev.>");
    }

    #[test]
    fn foreign_subjects_are_no_logs() {
        let names = Names::new("gw");
        for foreign in [
            "gw",
            "gw.ev.r",
            "gw.ev.x.1",
            "gx.ev.r.1",
            "gw.ev.r.a.b",
            "gw.ev.r.a_2",
            "gw.ev.r._ff",
            "gw.ev.r.ä",
        ] {
            assert_eq!(names.to_log(foreign), None, "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn every_name_has_a_token_of_its_own(id: String, other: String) {
            let names = Names::new("gw");
            let log = LogName::order(&id);
            let subject = names.log(&log);
            prop_assert!(subject.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)));
            prop_assert_eq!(names.to_log(&subject), Some(log));
            prop_assert_eq!(token(&id) == token(&other), id == other);
        }
    }
}
