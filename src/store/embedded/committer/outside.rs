//! What happens to the store from outside: its clock, its file and the record beside it.

use std::{
    fs::Metadata,
    io,
    os::unix::fs::MetadataExt as _,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{Committer, Kind, Record};
use crate::store::{
    Loss, StoreError,
    embedded::{clock::Clocks, file, record::Found, record_path, report, tables::Incarnation},
};

/// How often the record is written at most.
const RECORD_EVERY: Duration = Duration::from_secs(1);

impl Committer {
    /// Looks at everything outside the file.
    pub(super) fn look(&mut self) {
        let clocks = Clocks::now();
        if let Some(jump) = clocks.jump_since(&self.clocks) {
            tracing::warn!(
                by = format_args!("{jump:#}"),
                "the host's clock was set, or the host was suspended; if the clock is wrong, shown times \
                 are wrong, and nothing is deleted or given up because of it"
            );
        }
        self.clocks = clocks;
        self.check_file();
        self.look_at_space();
        if Instant::now() >= self.due.record {
            self.record();
        }
    }

    pub(super) fn loss(&self) -> Option<Kind> {
        self.shared.state().loss.as_ref().map(|(kind, _)| *kind)
    }

    /// Looks whether the file that is open is still the one that has the store's name.
    pub(super) fn check_file(&mut self) {
        let known = self.loss();
        if known.is_some_and(|known| !known.is_live()) {
            return;
        }
        let found = match self.file.path.metadata() {
            Ok(named) => match self.file.handle.metadata() {
                Ok(open) if is_same(&named, &open) => None,
                Ok(_) => Some(Kind::Replaced),
                Err(_) => return,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(Kind::Removed),
            Err(_) => return,
        };
        if found == known {
            return;
        }
        let loss = found.map(|kind| (kind, report(kind, &self.file.path)));
        if loss.is_none() {
            tracing::info!(path = %self.file.path.display(), "the store's file is back");
        }
        self.shared.state().loss = loss;
    }

    /// Writes the record if it is out of date.
    pub(super) fn record(&mut self) {
        // After a start with a loss, the record of before tells what is lost. A file that was
        // removed or replaced while it is open is known here to its end.
        if self.loss().is_some_and(|kind| !kind.is_live()) {
            return;
        }
        let record = Record::of(self.shared.epoch(), &self.tail);
        self.due.record = Instant::now() + RECORD_EVERY;
        // It is read again because somebody may have removed or changed it.
        let written = match Record::find(&self.file.path) {
            Found::Record(found) if found == record => Ok(()),
            _ => record.write(&self.file.path),
        };
        let path = record_path(&self.file.path);
        let unprotected = match written {
            Ok(()) => {
                self.recorded = Some(record);
                None
            }
            Err(error) => Some(format!(
                "the record {} cannot be written ({error}), so an older copy of the store may go unnoticed at \
                 the next start; make it possible to write this file",
                path.display()
            )),
        };
        let before = std::mem::replace(&mut self.shared.state().unprotected, unprotected.clone());
        match (before, unprotected) {
            (None, Some(why)) => {
                tracing::warn!(why, "the store is not protected against older copies");
            }
            (Some(_), None) => {
                tracing::info!(path = %path.display(), "the record of the store is written again");
            }
            _ => {}
        }
    }

    /// An operator accepts a loss.
    pub(super) fn accept(&mut self, restored: bool) -> Result<Option<Loss>, StoreError> {
        self.check_file();
        let lost = self.shared.state().loss.clone();
        match lost.as_ref().map(|(kind, _)| kind) {
            None if !restored => return Ok(None),
            Some(Kind::Replaced) => {
                return Err(StoreError::Unavailable(
                    "restart the gateway, then accept the loss".into(),
                ));
            }
            Some(Kind::Removed) => {
                self.put_back().map_err(|error| StoreError::Unavailable(error.to_string()))?;
                self.shared.drop_database();
                self.reopen(Instant::now(), super::FIRST_RETRY);
                self.check_file();
            }
            None | Some(Kind::Missing | Kind::Older { .. } | Kind::Other | Kind::Unrecorded) => {
                let mut begun = None;
                self.write(|txn, _| {
                    begun = Some(Incarnation::begin(txn)?);
                    Ok(true)
                })?;
                if let Some(incarnation) = begun {
                    self.begin(incarnation);
                }
            }
        }
        let noticed = Timestamp::now();
        let restored =
            || restored.then(|| Loss { what: "a backup was restored".to_owned(), noticed });
        Ok(lost.map(|(_, loss)| loss).or_else(restored))
    }

    fn begin(&mut self, incarnation: Incarnation) {
        {
            let mut state = self.shared.state();
            state.incarnation = incarnation;
            state.loss = None;
        }
        self.record();
        // Followers of the former epoch notice.
        self.publish.send_replace(self.tail.sequence);
    }

    /// Writes the file, which was removed, in its old place. Nothing is lost.
    pub(super) fn put_back(&self) -> io::Result<()> {
        file::put_back(&self.file.handle, &self.file.path)?;
        tracing::warn!(path = %self.file.path.display(), "the store was removed and is put back");
        Ok(())
    }
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}
