//! Reads the credential files.
//!
//! The files of one set do not change at the same moment: a mounted Secret may be swapped between
//! two reads, and a person writes a user name first and then a password. ThingSpace would reject a
//! login with a mixture of old and new. So two reads in a row must agree, and a change while the
//! gateway runs must be stable for a while.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use secrecy::SecretString;

use super::{
    error::{LoginError, Problem},
    secrets::{CredentialSecrets, Hosts, RawSecrets},
};
use crate::{
    config::CredentialsConfig,
    reload::{USED, count_reload},
    secret_file,
};

/// What the files are, for metrics.
pub(super) const FILES: &str = "credentials";

/// The pause between two reads after a change.
const STABLE_FOR: Duration = Duration::from_secs(1);

/// How often the files are read again until two reads agree.
const READS: u32 = 10;

/// How often the files are tried before an error is reported, because they may just be changing.
const TRIES: u32 = 3;

/// The pause between these attempts.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Files {
    paths: CredentialsConfig,
    hosts: Hosts,
    current: tokio::sync::Mutex<Option<Arc<CredentialSecrets>>>,
    /// Passwords that must not be used for logins.
    callbacks: OnceLock<CallbackPasswords>,
}

/// The passwords that ThingSpace sends in callbacks.
#[derive(Clone)]
pub(crate) struct CallbackPasswords {
    /// The file of the current password.
    pub(crate) file: Option<PathBuf>,
    /// Returns whether ThingSpace sends a password, or did recently.
    pub(crate) sends: Arc<dyn Fn(&SecretString) -> bool + Send + Sync>,
}

impl fmt::Debug for CallbackPasswords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallbackPasswords").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Files {
    pub(super) fn new(paths: CredentialsConfig, hosts: Hosts) -> Self {
        Self { paths, hosts, current: tokio::sync::Mutex::default(), callbacks: OnceLock::new() }
    }

    pub(super) fn name(&self) -> &str {
        &self.paths.name
    }

    /// Refuses these passwords for logins.
    pub(super) fn refuse(&self, callbacks: CallbackPasswords) {
        // A second call would pass the same passwords: the configuration is read once.
        let _ = self.callbacks.set(callbacks);
    }

    /// Returns what the files contain.
    pub(super) async fn secrets(&self) -> Result<Arc<CredentialSecrets>, LoginError> {
        let mut current = self.current.lock().await;
        if let Some(CallbackPasswords { file: Some(file), .. }) = self.callbacks.get()
            && secret_file::same(&self.paths.password_file, file).await
        {
            return Err(self.refused(&format_args!("the password in {}", file.display())));
        }
        let mut raw = self.read(Duration::ZERO).await?;
        if let Some(known) = &*current {
            if *known.raw() != raw {
                raw = self.read(STABLE_FOR).await?;
            }
            if *known.raw() == raw {
                return Ok(Arc::clone(known));
            }
        }
        if let Some(callbacks) = self.callbacks.get()
            && (callbacks.sends)(raw.password())
        {
            return Err(self.refused(&"a present or recent password of callbacks"));
        }
        let hosts = self.hosts.clone();
        let derived =
            tokio::task::spawn_blocking(move || CredentialSecrets::derive(raw, &hosts)).await;
        let secrets =
            derived.map_err(|_| LoginError::unavailable("the gateway is being stopped"))?;
        if current.is_some() {
            count_reload(FILES, USED);
        }
        Ok(Arc::clone(current.insert(Arc::new(secrets))))
    }

    fn refused(&self, what: &dyn fmt::Display) -> LoginError {
        let file = self.paths.password_file.display();
        Problem::FileUnusable(format!(
            "{file} contains {what}, which ThingSpace sends in callbacks; write another password"
        ))
        .into()
    }

    /// Returns the contents on which two reads in a row agree, with this pause between them.
    async fn read(&self, pause: Duration) -> Result<RawSecrets, LoginError> {
        let mut raw = self.read_once().await?;
        for _ in 0..READS {
            tokio::time::sleep(pause).await;
            let again = self.read_once().await?;
            if again == raw {
                return Ok(raw);
            }
            raw = again;
        }
        Err(LoginError::unavailable("the credential files keep changing"))
    }

    async fn read_once(&self) -> Result<RawSecrets, LoginError> {
        let mut read = RawSecrets::read(&self.paths).await;
        for _ in 1..TRIES {
            if read.is_ok() {
                break;
            }
            tokio::time::sleep(PAUSE).await;
            read = RawSecrets::read(&self.paths).await;
        }
        read.map_err(|reason| Problem::FileUnusable(reason).into())
    }
}
