//! Operator commands for a running gateway: JSON over HTTP/1 on a Unix socket.
//!
//! Only the user that runs the gateway can open the socket: it has mode 0600 when it appears at its
//! path. That user has all rights, so there is no other authentication. At start the gateway
//! replaces a socket that a dead process left behind, but never one on which a process answers.
//!
//! Each command that changes or discloses something has a line in the audit log.

mod audit;
mod callbacks;
pub mod client;
mod logins;
mod orders;
mod quarantine;
mod requests;
pub(crate) mod status;
mod store;

use std::{
    fmt::Display,
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::SocketAddr,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::DefaultBodyLimit,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use self::audit::Operator;
use crate::{
    auth::Authenticator,
    callbacks::{Callbacks, registration::Registrar},
    config::folder_of,
    requests::Requests,
    server::tls::Tls,
    store::StoreError,
    thingspace::Client,
};

/// The limit for the body of a command, in bytes.
const MAX_BODY: usize = 64 << 10;

/// How long commands in progress may take once the gateway stops.
const SHUTDOWN: Duration = Duration::from_secs(1);

/// The parts of the gateway that commands read and change.
#[derive(Debug, Clone)]
pub(crate) struct GatewayParts {
    pub(crate) requests: Requests,
    pub(crate) client: Client,
    /// `None`: callbacks are disabled.
    pub(crate) callbacks: Option<Callbacks>,
    /// `None`: the URL of the listener for callbacks is not configured.
    pub(crate) registration: Option<Registrar>,
    /// The file or the servers of the store.
    pub(crate) store: String,
    /// The configuration file.
    pub(crate) config: Option<PathBuf>,
    pub(crate) callers: Authenticator,
    /// `None`: the API is plaintext.
    pub(crate) tls: Option<Tls>,
    /// The open connections of the API.
    pub(crate) connections: TaskTracker,
    /// When the gateway was started.
    pub(crate) started: Timestamp,
    /// Cancelled when the drain begins.
    pub(crate) drain: CancellationToken,
}

impl GatewayParts {
    /// Returns why calls cannot be answered, if the gateway does not drain. `None`: they can.
    pub(crate) fn waits_for(&self) -> Option<String> {
        self.requests.waits_for().or_else(|| self.callers.waits_for())
    }
}

/// The bound socket and the commands. Removes the socket when it is dropped.
#[derive(Debug)]
pub(crate) struct Control {
    listener: UnixListener,
    socket: SocketFile,
    router: Router,
}

/// Removes the socket when it is dropped, unless another file has taken its path.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if file_id(&self.path).is_ok_and(|found| found == self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Returns the device and the inode of a file.
fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Removes a socket that a dead process left behind. Fails if anything else is at the path.
async fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it exists and is not a socket"));
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another gateway answers on it")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        // A process may still listen: its queue is full, or this user is not allowed to connect.
        Err(error) => Err(error),
    }
}

/// Renames a file, unless the new name exists.
fn rename_to_free_path(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // The file system does not support the flag; `remove_stale` has checked the path.
            Err(Errno::INVAL | Errno::NOSYS) => {}
            renamed => return Ok(renamed?),
        }
    }
    fs::rename(from, to)
}

impl Control {
    pub(crate) async fn bind(path: PathBuf, parts: GatewayParts) -> io::Result<Self> {
        check_length(&path)?;
        remove_stale(&path).await?;
        // No other user can enter this folder, so none can open the socket before its mode is set.
        let scratch = tempfile::Builder::new()
            .prefix(".s")
            .rand_bytes(4)
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(folder_of(&path))?;
        let new = scratch.path().join("s");
        check_length(&new)?;
        let listener = UnixListener::bind(&new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
        let id = file_id(&new)?;
        rename_to_free_path(&new, &path)?;
        let router = Router::new()
            .merge(status::routes())
            .merge(logins::routes())
            .merge(requests::routes())
            .merge(orders::routes())
            .merge(callbacks::routes())
            .merge(quarantine::routes())
            .merge(store::routes())
            .with_state(parts)
            .layer(DefaultBodyLimit::max(MAX_BODY));
        Ok(Self { listener, socket: SocketFile { path, id }, router })
    }

    /// Serves commands until `stop`.
    pub(crate) async fn serve(self, stop: CancellationToken) {
        let Self { listener, socket, router } = self;
        let service = router.into_make_service_with_connect_info::<Operator>();
        let serving =
            axum::serve(listener, service).with_graceful_shutdown(stop.clone().cancelled_owned());
        let shutdown = async {
            stop.cancelled().await;
            drop(socket);
            tokio::time::sleep(SHUTDOWN).await;
        };
        tokio::select! {
            served = serving.into_future() => if let Err(error) = served {
                warn!(
                    %error,
                    "the control socket failed, so operator commands do not work; restart the \
                     gateway"
                );
            },
            () = shutdown => {}
        }
    }
}

impl GatewayParts {
    fn callbacks(&self) -> Result<&Callbacks, CommandError> {
        self.callbacks.as_ref().ok_or_else(|| {
            CommandError::conflict(&"callbacks are disabled; set callbacks.enabled = true")
        })
    }

    fn registration(&self) -> Result<&Registrar, CommandError> {
        self.callbacks()?;
        self.registration.as_ref().ok_or_else(|| {
            CommandError::conflict(&"there is no URL to register; set callbacks.public_url")
        })
    }
}

/// Checks that clients can connect to a socket with this path. Renaming could create a socket with
/// a longer path. The limit is about 100 bytes.
fn check_length(path: &Path) -> io::Result<()> {
    let too_long = |_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "too long for a socket: set a shorter control.socket, or shorten store.path if that \
             is not set",
        )
    };
    SocketAddr::from_pathname(path).map(drop).map_err(too_long)
}

/// Why a command failed: the status of the response, and a sentence for the operator.
#[derive(Debug)]
struct CommandError(StatusCode, String);

/// The body of a response to a command that failed.
#[derive(Debug, Serialize, Deserialize)]
struct ErrorBody {
    error: String,
}

impl CommandError {
    fn new(status: StatusCode, error: &impl Display) -> Self {
        Self(status, error.to_string())
    }

    fn conflict(error: &impl Display) -> Self {
        Self::new(StatusCode::CONFLICT, error)
    }
}

/// Every command that needs the store fails while the store cannot be used.
impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, &error)
    }
}

impl IntoResponse for CommandError {
    fn into_response(self) -> Response {
        (self.0, Json(ErrorBody { error: self.1 })).into_response()
    }
}
