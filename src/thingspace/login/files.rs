//! What the credential files hold, once it has settled.
//!
//! Files never change all at the same moment: a mounted Secret may be swapped between two reads,
//! and a person writes a user name and then a password. A mixture of old and new would be one wrong
//! login. So two reads in a row must agree, and a change while the gateway runs must rest for a
//! while.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use secrecy::SecretString;

use super::secrets::{Hosts, Raw, Secrets};
use crate::{config::CredentialsConfig, secret_file};

/// How long a change must rest.
const REST: Duration = Duration::from_secs(1);

/// How often one is looked at before it is given up for this time.
const LOOKS: u32 = 10;

/// How often a file that cannot be read is tried before it is reported: it may be being written.
const TRIES: u32 = 3;

/// Between these tries.
const PAUSE: Duration = Duration::from_millis(100);

const CHANGING: Unread = Unread::Passing("the credential files keep changing");

/// Why there are no secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unread {
    /// Which file, and why. An operator has to act.
    Unreadable(String),
    /// It passes without action.
    Passing(&'static str),
}

#[derive(Debug)]
pub(super) struct Files {
    paths: CredentialsConfig,
    hosts: Hosts,
    settled: tokio::sync::Mutex<Option<Arc<Secrets>>>,
    /// What must not log in.
    sent: OnceLock<Sent>,
}

/// The passwords that ThingSpace sends in callbacks.
#[derive(Clone)]
pub struct Sent {
    /// The file of the password that it shall send.
    pub file: Option<PathBuf>,
    /// Whether it sends a password, or did until a short while ago.
    pub sends: Arc<dyn Fn(&SecretString) -> bool + Send + Sync>,
}

impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sent").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Files {
    pub(super) fn new(paths: CredentialsConfig, hosts: Hosts) -> Self {
        Self { paths, hosts, settled: tokio::sync::Mutex::default(), sent: OnceLock::new() }
    }

    pub(super) fn name(&self) -> &str {
        &self.paths.name
    }

    /// From now on a password that ThingSpace sends is refused.
    pub(super) fn keep_apart_from(&self, sent: Sent) {
        // They are the configuration's callbacks, which do not change.
        let _ = self.sent.set(sent);
    }

    /// What they hold; or why that cannot be said.
    pub(super) async fn secrets(&self) -> Result<Arc<Secrets>, Unread> {
        let mut settled = self.settled.lock().await;
        if let Some(Sent { file: Some(file), .. }) = self.sent.get()
            && secret_file::same(&self.paths.password_file, file).await
        {
            return Err(self.is_sent(&format_args!("the password in {}", file.display())));
        }
        let mut raw = self.read().await?;
        if let Some(known) = &*settled {
            if *known.raw() != raw {
                raw = self.at_rest(raw).await?;
            }
            if *known.raw() == raw {
                return Ok(Arc::clone(known));
            }
        }
        if let Some(sent) = self.sent.get()
            && (sent.sends)(raw.password())
        {
            return Err(self.is_sent(&"an earlier or the present password of callbacks"));
        }
        let hosts = self.hosts.clone();
        let derived = tokio::task::spawn_blocking(move || Secrets::derive(raw, &hosts)).await;
        let secrets =
            Arc::new(derived.map_err(|_| Unread::Passing("the gateway is being stopped"))?);
        Ok(Arc::clone(settled.insert(secrets)))
    }

    fn is_sent(&self, what: &dyn fmt::Display) -> Unread {
        let login = self.paths.password_file.display();
        Unread::Unreadable(format!(
            "{login} holds {what}, which ThingSpace sends in callbacks; write another one"
        ))
    }

    /// What they hold when they have stopped changing.
    async fn at_rest(&self, mut raw: Raw) -> Result<Raw, Unread> {
        for _ in 0..LOOKS {
            tokio::time::sleep(REST).await;
            let again = self.read().await?;
            if again == raw {
                return Ok(raw);
            }
            raw = again;
        }
        Err(CHANGING)
    }

    /// What two reads in a row agree on.
    async fn read(&self) -> Result<Raw, Unread> {
        let mut raw = self.read_once().await?;
        for _ in 0..LOOKS {
            let again = self.read_once().await?;
            if again == raw {
                return Ok(raw);
            }
            raw = again;
        }
        Err(CHANGING)
    }

    async fn read_once(&self) -> Result<Raw, Unread> {
        let mut read = Raw::read(&self.paths).await;
        for _ in 1..TRIES {
            if read.is_ok() {
                break;
            }
            tokio::time::sleep(PAUSE).await;
            read = Raw::read(&self.paths).await;
        }
        read.map_err(Unread::Unreadable)
    }
}
