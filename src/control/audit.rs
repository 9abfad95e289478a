//! The audit lines of commands that change or disclose something.

use axum::{extract::connect_info::Connected, serve::IncomingStream};
use tokio::net::{UnixListener, unix::UCred};

use super::CommandError;
use crate::telemetry::{AuditEntry, PendingEntry};

/// The outcomes of a command.
pub(super) const DONE: &str = "done";
pub(super) const UNCHANGED: &str = "unchanged";
const FAILED: &str = "failed";

/// The process that sent a command, as the kernel reports it (`SO_PEERCRED`). `None` if it does
/// not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operator(Option<UCred>);

impl Connected<IncomingStream<'_, UnixListener>> for Operator {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok())
    }
}

impl Operator {
    /// Begins a command, whose line is written at its end. `flags` are options and whether they are
    /// set.
    pub(super) fn begin(
        self,
        command: &str,
        flags: &[(&str, bool)],
        about: AuditEntry,
    ) -> PendingCommand {
        let set = flags.iter().filter(|(_, is_set)| *is_set).map(|(flag, _)| *flag);
        let words: Vec<_> = [command].into_iter().chain(set).collect();
        let caller =
            self.0.map_or_else(|| "operator".to_owned(), |peer| format!("operator:{}", peer.uid()));
        let entry = AuditEntry {
            caller: Some(caller),
            address: Some("unix".to_owned()),
            gid: self.0.map(|peer| peer.gid()),
            pid: self.0.and_then(|peer| peer.pid()),
            command: Some(words.join(" ")),
            ..about
        };
        PendingCommand(entry.begin("an operator ran a command"))
    }
}

/// A command that is being carried out.
#[derive(Debug)]
#[must_use]
pub(super) struct PendingCommand(PendingEntry);

impl PendingCommand {
    /// Adds what the command turned out to be about.
    pub(super) fn about(&mut self) -> &mut AuditEntry {
        &mut self.0.entry
    }

    /// Writes the line. `outcome` is that of a command that did not fail.
    pub(super) fn end<T>(
        self,
        result: Result<T, CommandError>,
        outcome: impl FnOnce(&T) -> &'static str,
    ) -> Result<T, CommandError> {
        match &result {
            Ok(done) => self.0.end(outcome(done), None),
            Err(CommandError(_, why)) => self.0.end(FAILED, Some(why.clone())),
        }
        result
    }
}
