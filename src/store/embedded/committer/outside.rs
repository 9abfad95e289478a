//! Checks what can change outside the gateway: the host's clock, the file's path, and the record.

use std::{
    fs::Metadata,
    io,
    os::unix::fs::MetadataExt as _,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{Committer, LossKind, Record};
use crate::{
    config::record_path,
    store::{
        Loss, StoreError,
        embedded::{
            clock::Clocks, file, loss::log_loss, record::FoundRecord, tables::StoreIdentity,
        },
    },
};

/// The shortest time between two writes of the record.
const RECORD_EVERY: Duration = Duration::from_secs(1);

impl Committer {
    pub(super) fn check_outside(&mut self) {
        let clocks = Clocks::now();
        if let Some(jump) = clocks.jump_since(&self.clocks) {
            tracing::warn!(
                by = format_args!("{jump:#}"),
                "the host's clock was set, or the host was suspended; check the clock; nothing is \
                 deleted or given up because of it"
            );
        }
        self.clocks = clocks;
        self.check_file();
        self.check_space();
        if Instant::now() >= self.due.record {
            self.write_record();
        }
    }

    pub(super) fn loss(&self) -> Option<LossKind> {
        self.shared.state().loss.as_ref().map(|(kind, _)| *kind)
    }

    /// Checks whether the store's path still leads to the open file.
    pub(super) fn check_file(&mut self) {
        let known = self.loss();
        if known.is_some_and(|known| !known.is_live()) {
            return;
        }
        let found = match self.file.path.metadata() {
            Ok(named) => match self.file.handle.metadata() {
                Ok(open) if is_same(&named, &open) => None,
                Ok(_) => Some(LossKind::Replaced),
                Err(_) => return,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(LossKind::Removed),
            Err(_) => return,
        };
        if found == known {
            return;
        }
        let loss = found.map(|kind| (kind, log_loss(kind, &self.file.path)));
        if loss.is_none() {
            tracing::info!(path = %self.file.path.display(), "the store's file is back");
        }
        self.shared.state().loss = loss;
    }

    /// Writes the record if it is out of date.
    pub(super) fn write_record(&mut self) {
        // Only the former record shows a loss at the start, so it must stay.
        if self.loss().is_some_and(|kind| !kind.is_live()) {
            return;
        }
        let record = Record::of(self.shared.epoch(), &self.tail);
        self.due.record = Instant::now() + RECORD_EVERY;
        // The record is read again, because it may have been removed or changed.
        let written = match Record::find(&self.file.path) {
            FoundRecord::Record(found) if found == record => Ok(()),
            _ => record.write(&self.file.path),
        };
        let path = record_path(&self.file.path);
        let unprotected = match written {
            Ok(()) => {
                self.recorded = Some(record);
                None
            }
            Err(error) => Some(format!(
                "the record {} cannot be written ({error}), so an older copy of the store may go \
                 unnoticed at the next start; make it possible to write this file",
                path.display()
            )),
        };
        let before = std::mem::replace(&mut self.shared.state().unprotected, unprotected.clone());
        match (before, unprotected) {
            (None, Some(why)) => {
                tracing::warn!(why, "the store is not protected against older copies");
            }
            (Some(_), None) => {
                let path = path.display();
                tracing::info!(%path, "the record of the store can be written again");
            }
            _ => {}
        }
    }

    /// See [`Store::accept_loss`](crate::store::Store::accept_loss).
    pub(super) fn accept(&mut self, restored: bool) -> Result<Option<Loss>, StoreError> {
        self.check_file();
        let loss = self.shared.state().loss.clone();
        match loss.as_ref().map(|(kind, _)| kind) {
            None if !restored => return Ok(None),
            Some(LossKind::Replaced) => {
                return Err(StoreError::Unavailable(
                    "restart the gateway, then accept the loss".into(),
                ));
            }
            Some(LossKind::Removed) => {
                self.put_back().map_err(StoreError::unavailable)?;
                self.shared.drop_database();
                self.reopen(Instant::now(), super::FIRST_RETRY);
                self.check_file();
            }
            None
            | Some(
                LossKind::Missing | LossKind::Older { .. } | LossKind::Other | LossKind::Unrecorded,
            ) => {
                let mut new_identity = None;
                self.write(|txn, _| {
                    new_identity = Some(StoreIdentity::begin(txn)?);
                    Ok(true)
                })?;
                if let Some(identity) = new_identity {
                    self.begin(identity);
                }
            }
        }
        let noticed = Timestamp::now();
        let restore =
            || restored.then(|| Loss { what: "a backup was restored".to_owned(), noticed });
        Ok(loss.map(|(_, loss)| loss).or_else(restore))
    }

    fn begin(&mut self, identity: StoreIdentity) {
        {
            let mut state = self.shared.state();
            state.identity = identity;
            state.loss = None;
        }
        self.write_record();
        // Wakes the followers of the former epoch, so that they end.
        self.publish.send_replace(self.tail.sequence);
    }

    /// Writes the removed file again. Nothing is lost.
    pub(super) fn put_back(&self) -> io::Result<()> {
        file::put_back(&self.file.handle, &self.file.path)?;
        tracing::warn!(
            path = %self.file.path.display(),
            "the store's file was removed; the gateway wrote it again"
        );
        Ok(())
    }
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}
