//! Notices that the store is missing, is an older copy, or is another store. At the start, its
//! record shows that. While the file is in use, the committer checks its path.

use std::path::Path;

use jiff::Timestamp;

use super::{
    record::{FoundRecord, Record},
    tables::{StoreIdentity, Tail},
};
use crate::{config::record_path, store::Loss};

/// What happened to the store, and when it was noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LossKind {
    /// At the start: the file was missing, and an empty one was created.
    Missing,
    /// At the start: the file ends before the point that it had reached.
    Older { ended: u64, ends: u64 },
    /// At the start: the file is another store.
    Other,
    /// At the start: the record beside the file is missing or unreadable, so that nothing shows
    /// where the store ended.
    Unrecorded,
    /// While in use: the file was removed. This process still has all of it.
    Removed,
    /// While in use: another file is at the store's path.
    Replaced,
}

/// Compares a store that was just opened with its record, and logs a loss.
pub(super) fn find_loss(
    path: &Path,
    identity: &StoreIdentity,
    tail: &Tail,
) -> Option<(LossKind, Loss)> {
    let found = Record::find(path);
    if let FoundRecord::Unreadable(reason) = &found {
        let path = record_path(path);
        tracing::warn!(path = %path.display(), reason, "cannot read the record of the store");
    }
    let kind = LossKind::at_start(&found, identity.epoch, tail, identity.recorded);
    if kind.is_none() && tail.commit == 0 && matches!(found, FoundRecord::None) {
        tracing::warn!(
            path = %path.display(),
            "created a new store; if there was one before, its idempotency keys are unknown"
        );
    }
    kind.map(|kind| (kind, log_loss(kind, path)))
}

/// Logs a loss, and returns it with a sentence for operators.
pub(super) fn log_loss(kind: LossKind, path: &Path) -> Loss {
    let what = kind.sentence(path);
    tracing::error!(
        loss = what,
        "the store lacks something that it had; every call is refused until the file is put back, \
         or until an operator runs `thingspace-gateway store accept-loss`"
    );
    Loss { what, noticed: Timestamp::now() }
}

impl LossKind {
    /// Returns what the record shows of a store that was just opened. `recorded`: the store says
    /// that it had a record.
    pub(super) fn at_start(
        found: &FoundRecord,
        epoch: u64,
        tail: &Tail,
        recorded: bool,
    ) -> Option<Self> {
        let is_new = tail.commit == 0;
        match *found {
            FoundRecord::None => recorded.then_some(Self::Unrecorded),
            FoundRecord::Unreadable(_) => {
                Some(if is_new { Self::Missing } else { Self::Unrecorded })
            }
            FoundRecord::Record(Record { epoch: known, .. }) if known != epoch => {
                Some(if is_new { Self::Missing } else { Self::Other })
            }
            FoundRecord::Record(Record { commit, sequence, .. }) => (commit > tail.commit)
                .then_some(Self::Older { ended: sequence, ends: tail.sequence }),
        }
    }

    /// Returns whether the loss was noticed while the file was in use. Such a loss ends when the
    /// file is back.
    pub(super) fn is_live(self) -> bool {
        matches!(self, Self::Removed | Self::Replaced)
    }

    /// Returns a sentence for operators, without a full stop.
    fn sentence(self, path: &Path) -> String {
        let path = path.display();
        match self {
            Self::Missing => {
                format!("the store {path} was missing at the start: its idempotency keys are lost")
            }
            Self::Older { ended, ends } => format!(
                "the store {path} was put back to an older copy: it ended at event {ended} and now \
                 ends at {ends}, so later idempotency keys are lost"
            ),
            Self::Other => format!(
                "the store {path} is not the one that the gateway used last: the idempotency keys \
                 of that store are lost"
            ),
            Self::Unrecorded => format!(
                "the store {path} may be an older copy: the record beside it, which says where the \
                 store ended, is missing or cannot be read"
            ),
            Self::Removed => format!(
                "the store {path} was removed while the gateway was running; the gateway still has \
                 all of it: put the file back, or accept the loss, and the gateway writes it again"
            ),
            Self::Replaced => format!(
                "another file has taken the place of the store {path} while the gateway was \
                 running: put the right file back, or restart the gateway to use this one"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_shows_what_happened_to_a_store() {
        let tail = |commit| Tail {
            commit,
            sequence: 10 * commit,
            time: Timestamp::UNIX_EPOCH,
            version: 0,
            swept: 0,
            bytes: 0,
        };
        let record = |epoch, commit| FoundRecord::Record(Record::of(epoch, &tail(commit)));
        let table = [
            (FoundRecord::None, 0, Some(LossKind::Unrecorded)),
            (FoundRecord::None, 5, Some(LossKind::Unrecorded)),
            (FoundRecord::Unreadable(String::new()), 0, Some(LossKind::Missing)),
            (FoundRecord::Unreadable(String::new()), 5, Some(LossKind::Unrecorded)),
            (record(1, 0), 0, None),
            (record(1, 4), 5, None),
            (record(1, 5), 5, None),
            (record(1, 6), 5, Some(LossKind::Older { ended: 60, ends: 50 })),
            (record(2, 5), 5, Some(LossKind::Other)),
            (record(2, 5), 0, Some(LossKind::Missing)),
            (record(2, 0), 0, Some(LossKind::Missing)),
        ];
        for (found, commit, expected) in table {
            assert_eq!(
                LossKind::at_start(&found, 1, &tail(commit), true),
                expected,
                "{found:?}, {commit}"
            );
            // A new store, or one of an older gateway, has never had a record.
            let expected = expected.filter(|_| !matches!(found, FoundRecord::None));
            assert_eq!(
                LossKind::at_start(&found, 1, &tail(commit), false),
                expected,
                "{found:?}, {commit}"
            );
        }
    }
}
