//! A value that is made from files, and made again when the files change.
//!
//! Files that cannot be used never replace the value in use. The log says so once for each change,
//! and says when the files can be used again.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};

use aws_lc_rs::digest::{self, SHA256};
use secrecy::zeroize::Zeroizing;
use tokio::{task::spawn_blocking, time::sleep};
use tracing::{info, warn};

use crate::{
    lock::{self, lock},
    secret_file,
};

/// How often files are read. Kubernetes updates mounted files within about a minute.
const INTERVAL: Duration = Duration::from_secs(5);

/// The largest file, in bytes.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 20;

/// Makes the value from the content of the files, in their order. An error says which file cannot
/// be used, and why.
type Make<T> = dyn Fn(&[Zeroizing<Vec<u8>>]) -> Result<T, String> + Send + Sync;

/// A value that follows its files.
pub(crate) struct Reloaded<T> {
    files: Vec<PathBuf>,
    make: Arc<Make<T>>,
    /// The digest of the files that were read last, usable or not.
    digest: Mutex<Vec<u8>>,
    current: RwLock<Arc<T>>,
}

impl<T> fmt::Debug for Reloaded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloaded").field("files", &self.files).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Reloaded<T> {
    /// Reads the files for the first time.
    pub(crate) async fn load(
        files: Vec<PathBuf>,
        make: impl Fn(&[Zeroizing<Vec<u8>>]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let make: Arc<Make<T>> = Arc::new(make);
        let (digest, value) = read(files.clone(), Arc::clone(&make), None).await?;
        let value = value.ok_or("the files cannot be read")??;
        let current = RwLock::new(Arc::new(value));
        Ok(Self { files, make, digest: Mutex::new(digest), current })
    }

    /// Reads a file for the first time. An error of `make` completes "FILE …".
    pub(crate) async fn load_one(
        file: PathBuf,
        make: impl Fn(&[u8]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let shown = file.display().to_string();
        let make = move |contents: &[Zeroizing<Vec<u8>>]| {
            make(&contents[0]).map_err(|why| format!("{shown} {why}"))
        };
        Self::load(vec![file], make).await
    }

    pub(crate) fn current(&self) -> Arc<T> {
        Arc::clone(&lock::read(&self.current))
    }

    /// Follows the files. Never ends.
    pub(crate) async fn follow(&self) {
        let mut unreadable = None;
        loop {
            sleep(INTERVAL).await;
            let known = lock(&self.digest).clone();
            let (digest, value) =
                match read(self.files.clone(), Arc::clone(&self.make), Some(known)).await {
                    Ok(read) => read,
                    // The file is gone, for example while it is replaced.
                    Err(why) => {
                        if unreadable.replace(why.clone()).as_ref() != Some(&why) {
                            warn!("the last content stays in use: {why}");
                        }
                        continue;
                    }
                };
            unreadable = None;
            *lock(&self.digest) = digest;
            match value {
                None => {}
                Some(Ok(value)) => {
                    *lock::write(&self.current) = Arc::new(value);
                    info!(files = ?self.files, "the new content of these files is in use");
                }
                Some(Err(why)) => warn!("the last content stays in use: {why}"),
            }
        }
    }
}

/// Reads the files. Returns their digest, and the value unless the digest is `known`.
async fn read<T: Send + 'static>(
    files: Vec<PathBuf>,
    make: Arc<Make<T>>,
    known: Option<Vec<u8>>,
) -> Result<(Vec<u8>, Option<Result<T, String>>), String> {
    let read = spawn_blocking(move || {
        let mut contents = Vec::with_capacity(files.len());
        let mut all = digest::Context::new(&SHA256);
        for file in &files {
            let bytes = secret_file::bounded(file, MAX_FILE_BYTES)
                .map_err(|why| format!("{} {why}", file.display()))?;
            all.update(digest::digest(&SHA256, &bytes).as_ref());
            contents.push(bytes);
        }
        let digest = all.finish().as_ref().to_vec();
        let value = (known.as_ref() != Some(&digest)).then(|| make(&contents));
        Ok((digest, value))
    });
    read.await.map_err(|_| "the files cannot be read while the gateway stops".to_owned())?
}
