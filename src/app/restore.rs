//! The command `store restore`: replaces the embedded store with a backup, while no gateway runs.

use std::{io::Write, path::PathBuf};

use anyhow::{Context as _, bail};
use tokio::net::UnixStream;

use crate::store::embedded::{self, Restored};

/// Restores a backup, unless a gateway runs, and prints what to do next.
pub async fn restore(
    backup: PathBuf,
    (store, socket): (PathBuf, PathBuf),
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    // The lock of the store's file does not show every gateway: if the file was removed while a
    // gateway runs, that gateway has locked only the removed file.
    if UnixStream::connect(&socket).await.is_ok() {
        bail!("a gateway answers on {}: stop it first", socket.display());
    }
    let file = store.clone();
    let restored = tokio::task::spawn_blocking(move || embedded::restore(&backup, &file)).await?;
    let Restored { sequence, replaced } = restored.context("nothing was restored")?;
    let store = store.display();
    writeln!(
        out,
        "{store} is now a copy of the backup, up to event {sequence}. Later events are lost."
    )?;
    if let Some(replaced) = &replaced {
        writeln!(out, "The previous file is now {}.", replaced.display())?;
    }
    writeln!(
        out,
        "Logins stay stopped until `thingspace-gateway unblock NAME --force`. docs/operations.md \
         says what else to do."
    )?;
    Ok(())
}
