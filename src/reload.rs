//! A value that is made from files, and made again when the files change.
//!
//! Files that cannot be used never replace the value in use. The log says so once for each change,
//! and says when the files can be used again.

mod watched;

use std::{
    fmt,
    future::pending,
    path::PathBuf,
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};

use aws_lc_rs::digest::{self, SHA256, SHA256_OUTPUT_LEN};
use jiff::Timestamp;
use secrecy::zeroize::Zeroizing;
use tokio::{task::spawn_blocking, time::sleep};
use tracing::{info, warn};

use crate::{lock, secret_file};
pub(crate) use watched::{REFUSED, USED, WatchedFiles, count_reload, refused_files};

/// How often files are read. Kubernetes updates mounted files within about a minute.
const INTERVAL: Duration = Duration::from_secs(5);

/// The largest file, in bytes.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 20;

type Digest = [u8; SHA256_OUTPUT_LEN];

/// Makes the value from the content of the files, in their order. An error says which file cannot
/// be used, and why.
type Make<T> = dyn Fn(&[Zeroizing<Vec<u8>>]) -> Result<T, String> + Send + Sync;

/// A value that follows its files.
pub(crate) struct Reloaded<T> {
    watched: WatchedFiles,
    files: Vec<PathBuf>,
    make: Arc<Make<T>>,
    state: RwLock<ReloadedState<T>>,
    /// Why the newest content is not in use. `None`: it is.
    problem: Mutex<Option<String>>,
}

struct ReloadedState<T> {
    /// The digest of the content that is in use.
    digest: Digest,
    value: Arc<T>,
    since: Timestamp,
}

/// Which version of some credentials is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UsedVersion {
    /// Since when it is in use. `None`: there is none.
    pub(crate) since: Option<Timestamp>,
    /// Why the newest version is not in use. `None`: it is.
    pub(crate) problem: Option<String>,
}

impl<T> fmt::Debug for Reloaded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloaded").field("files", &self.files).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Reloaded<T> {
    /// Reads the files for the first time. `name` says in metrics what they are.
    pub(crate) async fn load(
        name: &'static str,
        files: Vec<PathBuf>,
        make: impl Fn(&[Zeroizing<Vec<u8>>]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let make: Arc<Make<T>> = Arc::new(make);
        let state = read(files.clone(), Arc::clone(&make), None).await?;
        let state = RwLock::new(state.expect("no content is in use yet"));
        let watched = WatchedFiles::new(name);
        Ok(Self { watched, files, make, state, problem: Mutex::default() })
    }

    /// Reads a file for the first time. An error of `make` completes "FILE …".
    pub(crate) async fn load_one(
        name: &'static str,
        file: PathBuf,
        make: impl Fn(&[u8]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let shown = file.display().to_string();
        let make = move |contents: &[Zeroizing<Vec<u8>>]| {
            make(&contents[0]).map_err(|why| format!("{shown} {why}"))
        };
        Self::load(name, vec![file], make).await
    }

    pub(crate) fn current(&self) -> Arc<T> {
        Arc::clone(&lock::read(&self.state).value)
    }

    /// Returns which content is in use.
    pub(crate) fn used(&self) -> UsedVersion {
        let since = Some(lock::read(&self.state).since);
        UsedVersion { since, problem: lock::lock(&self.problem).clone() }
    }

    /// Follows the files. Never ends.
    pub(crate) async fn follow(&self) {
        if self.files.is_empty() {
            return pending().await;
        }
        let mut last_failure = None;
        loop {
            sleep(INTERVAL).await;
            match self.refresh().await {
                Err(why) => {
                    if last_failure.as_ref() != Some(&why) {
                        count_reload(self.watched.kind, REFUSED);
                        warn!("the last content stays in use: {why}");
                    }
                    last_failure = Some(why);
                }
                Ok(true) => {
                    count_reload(self.watched.kind, USED);
                    info!(files = ?self.files, "the new content of these files is in use");
                    last_failure = None;
                }
                Ok(false) => {
                    if last_failure.take().is_some() {
                        info!(files = ?self.files, "these files have the content in use again");
                    }
                }
            }
        }
    }

    /// Reads the files again. Returns whether they have new content, which is then in use. Content
    /// that cannot be used is tried again each time, because a certificate may become valid.
    pub(crate) async fn refresh(&self) -> Result<bool, String> {
        let in_use = lock::read(&self.state).digest;
        let new = read(self.files.clone(), Arc::clone(&self.make), Some(in_use)).await;
        *lock::lock(&self.problem) = new.as_ref().err().cloned();
        self.watched.set_refused(new.is_err());
        let new = new?;
        let is_new = new.is_some();
        if let Some(new) = new {
            *lock::write(&self.state) = new;
        }
        Ok(is_new)
    }
}

/// Reads the files. Returns `None` if their digest is that of the content in use.
async fn read<T: Send + Sync + 'static>(
    files: Vec<PathBuf>,
    make: Arc<Make<T>>,
    in_use: Option<Digest>,
) -> Result<Option<ReloadedState<T>>, String> {
    let read = spawn_blocking(move || {
        let mut contents = Vec::with_capacity(files.len());
        let mut all = digest::Context::new(&SHA256);
        for file in &files {
            let bytes = secret_file::bounded(file, MAX_FILE_BYTES)
                .map_err(|why| format!("{} {why}", file.display()))?;
            all.update(digest::digest(&SHA256, &bytes).as_ref());
            contents.push(bytes);
        }
        let mut digest = Digest::default();
        digest.copy_from_slice(all.finish().as_ref());
        if in_use == Some(digest) {
            return Ok(None);
        }
        let value = Arc::new(make(&contents)?);
        Ok(Some(ReloadedState { digest, value, since: Timestamp::now() }))
    });
    read.await.map_err(|_| "the files cannot be read while the gateway stops".to_owned())?
}
