//! The audit log: who did what, from where, about which account, and with which outcome.
//!
//! - There is one line, with the target [`AUDIT`], for each order, each denied call, each settled
//!   order, and each operator command that changes or discloses something.
//! - No filter removes a line ([`super::init`]).
//! - A fact has the same field in every line. A field that does not apply is left out.
//! - No line has a token, a password, or the identity of a device. Of a static token a line has the
//!   beginning of the hash.

use std::fmt::Display;

use tracing::info;

/// The target of audit lines.
pub(crate) const AUDIT: &str = "audit";

/// What was done, by whom, and about what.
#[derive(Debug, Clone, Default)]
pub(crate) struct AuditEntry {
    /// The name of a caller, `operator:UID`, or `gateway` for what it does by itself. `None`: the
    /// caller is not authenticated.
    pub(crate) caller: Option<String>,
    /// The beginning of the hash of the static token with which a caller proved its identity.
    pub(crate) token: Option<String>,
    /// IP address and port, or `unix` for the control socket.
    pub(crate) address: Option<String>,
    /// The group and the process of an operator.
    pub(crate) gid: Option<u32>,
    pub(crate) pid: Option<i32>,
    /// The method of the API that was called.
    pub(crate) method: Option<&'static str>,
    /// The command of an operator, with its options.
    pub(crate) command: Option<String>,
    pub(crate) account: Option<String>,
    /// The number of devices.
    pub(crate) devices: Option<usize>,
    /// The name of a set of credentials.
    pub(crate) credentials: Option<String>,
    pub(crate) order_id: Option<String>,
    pub(crate) request_id: Option<String>,
    /// The id of a callback in quarantine.
    pub(crate) callback: Option<u64>,
    /// The number of calls that the line stands for.
    pub(crate) times: Option<u64>,
}

impl AuditEntry {
    /// Writes the line of something that has ended.
    pub(crate) fn write(&self, what: &str, outcome: &str, reason: Option<&dyn Display>) {
        info!(
            target: AUDIT,
            caller = self.caller.as_deref(),
            token = self.token.as_deref(),
            address = self.address.as_deref(),
            gid = self.gid,
            pid = self.pid,
            method = self.method,
            command = self.command.as_deref(),
            account = self.account.as_deref(),
            devices = self.devices,
            credentials = self.credentials.as_deref(),
            order.id = self.order_id.as_deref(),
            request.id = self.request_id.as_deref(),
            callback = self.callback,
            times = self.times,
            outcome,
            // Not as `Display`, which the text format does not quote.
            reason = reason.map(ToString::to_string).as_deref(),
            "{what}"
        );
    }

    /// Begins something whose line is written at its end.
    pub(crate) fn begin(self, what: &'static str) -> PendingEntry {
        PendingEntry { entry: self, what, outcome: ABANDONED, reason: None }
    }
}

/// The outcome of something whose caller left before the end. It may still be done.
const ABANDONED: &str = "abandoned";

/// Writes its line when it is dropped, so that there is also a line if the caller leaves early.
#[derive(Debug)]
#[must_use]
pub(crate) struct PendingEntry {
    pub(crate) entry: AuditEntry,
    what: &'static str,
    outcome: &'static str,
    reason: Option<String>,
}

impl PendingEntry {
    /// Writes the line.
    pub(crate) fn end(mut self, outcome: &'static str, reason: Option<String>) {
        self.outcome = outcome;
        self.reason = reason;
    }
}

impl Drop for PendingEntry {
    fn drop(&mut self) {
        let reason = self.reason.as_ref().map(|reason| reason as &dyn Display);
        self.entry.write(self.what, self.outcome, reason);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Write},
        sync::{Arc, Mutex},
    };

    use super::*;
    use crate::lock::lock;

    #[derive(Debug, Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Otherwise a reader of the text could take a reason for further fields.
    #[test]
    fn the_text_of_a_reason_is_quoted() {
        let (written, reason) = (Shared::default(), "no such outcome=placed");
        let writer = written.clone();
        let log = tracing_subscriber::fmt().with_ansi(false);
        let log = log.with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(log, || {
            AuditEntry::default().write("a call was denied", "denied", Some(&reason));
        });
        let line = String::from_utf8(lock(&written.0).clone()).unwrap();
        assert!(line.contains(r#"reason="no such outcome=placed""#), "{line}");
    }
}
