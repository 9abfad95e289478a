//! Operator commands for a running gateway: JSON over HTTP/1 on a Unix socket.
//!
//! Only the user that runs the gateway can open the socket (0600 from its first moment), so whoever
//! can has its rights anyway: there is no other authentication. A socket left behind by a dead
//! process is replaced; one that somebody answers on is not. Nothing here decides anything: it
//! calls the domain and says what that said.

mod callbacks;
pub mod client;
mod logins;
mod orders;
mod quarantine;
mod status;
mod store;

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::SocketAddr,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::DefaultBodyLimit,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    callbacks::{Callbacks, registration::Registration},
    requests::Requests,
    thingspace::Client,
};

/// Of a command, in bytes.
const MAX_BODY: usize = 64 << 10;

/// How long commands under way may take to finish once the gateway ends.
const GOODBYE: Duration = Duration::from_secs(1);

/// What commands are about.
#[derive(Debug, Clone)]
struct Subject {
    requests: Requests,
    client: Client,
    /// If they are taken.
    callbacks: Option<Callbacks>,
    /// If it is known how ThingSpace reaches them.
    registration: Option<Registration>,
    instance: Arc<Instance>,
}

/// Which gateway this is, for people.
#[derive(Debug)]
pub struct Instance {
    /// The file or the servers of its store.
    pub store: String,
    /// Its configuration file.
    pub config: Option<PathBuf>,
    /// Cancelled when the drain begins.
    pub drain: CancellationToken,
}

/// A socket that is not served yet. It is removed when this is gone.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    socket: Removed,
    router: Router,
}

#[derive(Debug)]
struct Removed {
    path: PathBuf,
    /// Of the socket, by which it is told from what somebody else may have put in its place.
    identity: Identity,
}

impl Drop for Removed {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity) {
            // Gone already is as good.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Device and inode of a file.
type Identity = (u64, u64);

fn identity(metadata: &fs::Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

/// Removes a socket that a dead process left behind. Anything else at the path stays, and is an
/// error.
async fn make_way(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it exists and is no socket"));
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another gateway answers on it")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        // Somebody may be listening: their queue is full, or we may not ask.
        Err(error) => Err(error),
    }
}

/// Renames a file, unless something has the new name.
fn rename_to_nothing(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // The file system cannot; the path was looked at before.
            Err(Errno::INVAL | Errno::NOSYS) => {}
            renamed => return Ok(renamed?),
        }
    }
    fs::rename(from, to)
}

impl Control {
    pub async fn bind(
        path: PathBuf,
        instance: Instance,
        requests: Requests,
        client: Client,
        callbacks: Option<Callbacks>,
        registration: Option<Registration>,
    ) -> io::Result<Self> {
        check_length(&path)?;
        make_way(&path).await?;
        // Nobody else can enter the folder, so there is no moment at which others could open the
        // socket.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let scratch = tempfile::Builder::new()
            .prefix(".s")
            .rand_bytes(4)
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(folder.unwrap_or(Path::new(".")))?;
        let new = scratch.path().join("s");
        check_length(&new)?;
        let listener = UnixListener::bind(&new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
        let identity = identity(&fs::symlink_metadata(&new)?);
        rename_to_nothing(&new, &path)?;
        let subject =
            Subject { requests, client, callbacks, registration, instance: Arc::new(instance) };
        let router = Router::new()
            .merge(status::routes())
            .merge(logins::routes())
            .merge(orders::routes())
            .merge(callbacks::routes())
            .merge(quarantine::routes())
            .merge(store::routes())
            .with_state(subject)
            .layer(DefaultBodyLimit::max(MAX_BODY));
        Ok(Self { listener, socket: Removed { path, identity }, router })
    }

    /// Serves until `stop`.
    pub async fn serve(self, stop: CancellationToken) {
        let Self { listener, socket, router } = self;
        let serving =
            axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
        let goodbye = async {
            stop.cancelled().await;
            drop(socket);
            tokio::time::sleep(GOODBYE).await;
        };
        tokio::select! {
            served = serving.into_future() => if let Err(error) = served {
                warn!(%error, "the control socket failed");
            },
            () = goodbye => {}
        }
    }
}

impl Subject {
    #[expect(clippy::result_large_err, reason = "it is the answer")]
    fn callbacks(&self) -> Result<&Callbacks, Response> {
        let none = || {
            refuse(
                StatusCode::CONFLICT,
                &"the gateway takes no callbacks: callbacks.enabled is false",
            )
        };
        self.callbacks.as_ref().ok_or_else(none)
    }
}

/// A system takes about a hundred bytes. A longer path can be made, by renaming, and then nobody
/// can connect to it.
fn check_length(path: &Path) -> io::Result<()> {
    let too_long = |_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "too long for a socket: set a shorter control.socket, or shorten store.path if that is not set",
        )
    };
    SocketAddr::from_pathname(path).map(drop).map_err(too_long)
}

/// Why a command failed, in a sentence.
#[derive(Debug, Serialize, Deserialize)]
struct Refusal {
    error: String,
}

fn refuse(status: StatusCode, error: &impl std::fmt::Display) -> Response {
    (status, Json(Refusal { error: error.to_string() })).into_response()
}
