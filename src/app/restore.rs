//! `store restore`: puts a backup in the place of the embedded store, while no gateway runs.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use tokio::net::UnixStream;

use crate::store::embedded::{self, Restored};

/// Restores a backup, unless a gateway runs, and prints what is to be done next.
pub async fn restore(
    backup: PathBuf,
    (store, socket): (PathBuf, PathBuf),
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    // A gateway may run whose file was removed, and that file has no lock.
    if UnixStream::connect(&socket).await.is_ok() {
        bail!("a gateway answers on {}: stop it first", socket.display());
    }
    let name = store.clone();
    let restored = tokio::task::spawn_blocking(move || embedded::restore(&backup, &name)).await?;
    let restored = restored.context("nothing was restored")?;
    tell(out, &store, &restored)
}

fn tell(out: &mut dyn Write, store: &Path, restored: &Restored) -> anyhow::Result<()> {
    let store = store.display();
    writeln!(
        out,
        "{store} is the backup now, up to event {}. What came later is forgotten.",
        restored.sequence
    )?;
    if let Some(replaced) = &restored.replaced {
        writeln!(out, "The file that was there is {}.", replaced.display())?;
    }
    writeln!(
        out,
        "Logins stay stopped until `thingspace-gateway unblock NAME --force`. docs/operations.md says what else to do."
    )?;
    Ok(())
}
