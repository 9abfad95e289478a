//! What the store has forgotten, and how that is recognised.

use std::path::Path;

use super::{
    record::{Found, Record},
    tables::Tail,
};

/// Ways in which the store can have forgotten something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// At start: the file was gone, and an empty one was made.
    Missing,
    /// At start: the file ends before the point that it had reached.
    Older { ended: u64, ends: u64 },
    /// At start: the file is another store.
    Other,
    /// At start: the record that was kept beside the file is gone or unreadable, so nothing says
    /// how far the store went.
    Unrecorded,
    /// The file was removed under this process, which still has all of it.
    Removed,
    /// The file under the store's name is another one than this process has open.
    Replaced,
}

impl Kind {
    /// Compares a store that has just been opened with the record beside it. `recorded`: the store
    /// says that it had one.
    pub(super) fn at_start(found: &Found, epoch: u64, tail: &Tail, recorded: bool) -> Option<Self> {
        let is_new = tail.commit == 0;
        match *found {
            Found::None => recorded.then_some(Self::Unrecorded),
            Found::Unreadable(_) => Some(if is_new { Self::Missing } else { Self::Unrecorded }),
            Found::Record(Record { epoch: known, .. }) if known != epoch => {
                Some(if is_new { Self::Missing } else { Self::Other })
            }
            Found::Record(Record { commit, sequence, .. }) => (commit > tail.commit)
                .then_some(Self::Older { ended: sequence, ends: tail.sequence }),
        }
    }

    /// Whether this process noticed it while it had the file open, so that it can pass again.
    pub(super) fn is_live(self) -> bool {
        matches!(self, Self::Removed | Self::Replaced)
    }

    /// A sentence for operators, without an end point.
    pub(super) fn sentence(self, path: &Path) -> String {
        let path = path.display();
        match self {
            Self::Missing => {
                format!(
                    "the store {path} was missing at the start: the idempotency keys in it are forgotten"
                )
            }
            Self::Older { ended, ends } => format!(
                "the store {path} was put back to an older copy: it ended at event {ended} and now ends at \
                 {ends}, so later idempotency keys are forgotten"
            ),
            Self::Other => format!(
                "the store {path} is another one than the gateway used last: the idempotency keys in that \
                 one are forgotten"
            ),
            Self::Unrecorded => format!(
                "the store {path} may be an older copy: the record beside it, which says how far the store \
                 went, is missing or cannot be read"
            ),
            Self::Removed => format!(
                "the store {path} was removed while the gateway was running, which still has all of it: put \
                 the file back, or accept the loss and the gateway writes it again"
            ),
            Self::Replaced => format!(
                "another file has taken the place of the store {path} while the gateway was running: put \
                 the right one back, or restart the gateway to use this one"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn what_a_record_says_of_a_store() {
        let tail = |commit| Tail {
            commit,
            sequence: 10 * commit,
            time: Timestamp::UNIX_EPOCH,
            version: 0,
            swept: 0,
            bytes: 0,
        };
        let record = |epoch, commit| Found::Record(Record::of(epoch, &tail(commit)));
        let table = [
            (Found::None, 0, Some(Kind::Unrecorded)),
            (Found::None, 5, Some(Kind::Unrecorded)),
            (Found::Unreadable(String::new()), 0, Some(Kind::Missing)),
            (Found::Unreadable(String::new()), 5, Some(Kind::Unrecorded)),
            (record(1, 0), 0, None),
            (record(1, 4), 5, None),
            (record(1, 5), 5, None),
            (record(1, 6), 5, Some(Kind::Older { ended: 60, ends: 50 })),
            (record(2, 5), 5, Some(Kind::Other)),
            (record(2, 5), 0, Some(Kind::Missing)),
            (record(2, 0), 0, Some(Kind::Missing)),
        ];
        for (found, commit, expected) in table {
            assert_eq!(
                Kind::at_start(&found, 1, &tail(commit), true),
                expected,
                "{found:?}, {commit}"
            );
            // A new store, and one of an older gateway, never had a record.
            let expected = expected.filter(|_| !matches!(found, Found::None));
            assert_eq!(
                Kind::at_start(&found, 1, &tail(commit), false),
                expected,
                "{found:?}, {commit}"
            );
        }
    }
}
