//! Reads a secret from a file of its own. Reads are bounded in size and time, and no error quotes
//! the content.
//!
//! Files are read each time a secret is needed. A file is refused if it has a byte order mark,
//! blanks at the ends or a second line. An editor or a copy may add these by accident, and a login
//! with such a secret would be rejected.

use std::{
    collections::BTreeSet,
    fmt::Display,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    str,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};
use subtle::ConstantTimeEq;
use tokio::{task::spawn_blocking, time::timeout};

use crate::lock::lock;

const MAX_SECRET_BYTES: u64 = 4096;

/// A network volume that is gone can block a read forever.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns whether two files hold the same secret. A file that cannot be read holds none.
pub(crate) async fn same(one: &Path, other: &Path) -> bool {
    let (Ok(one), Ok(other)) = (read(one).await, read(other).await) else { return false };
    is_same(one.expose_secret(), other.expose_secret())
}

/// Returns whether two secrets are the same, in constant time for secrets of the same length.
pub(crate) fn is_same(one: &str, other: &str) -> bool {
    one.as_bytes().ct_eq(other.as_bytes()).into()
}

/// Returns whether two user names name the same ThingSpace user. ThingSpace ignores case.
pub(crate) fn is_same_user(one: &str, other: &str) -> bool {
    one.trim().to_lowercase() == other.trim().to_lowercase()
}

/// Returns the secret in a file, without the line break at the end.
pub(crate) async fn read(path: &Path) -> Result<SecretString, String> {
    single_line(&read_lines(path).await?).map_err(|why| about(path, why))
}

/// Returns the whole text of a file that has a format of its own.
pub(crate) async fn read_lines(path: &Path) -> Result<SecretString, String> {
    let bytes = read_in_time(path).await.map_err(|why| about(path, why))?;
    text(&bytes).map_err(|why| about(path, why))
}

fn about(path: &Path, why: impl Display) -> String {
    format!("{} {why}", path.display())
}

/// Reads a file. Fails if its volume does not answer. While a read of the file is blocked, no other
/// read of it is started.
async fn read_in_time(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    const BLOCKED: &str = "cannot be read in time; its volume does not answer";
    if blocked_files().contains(path) {
        return Err(BLOCKED.to_owned());
    }
    let done = Arc::new(AtomicBool::new(false));
    let (file, set_done) = (path.to_owned(), Arc::clone(&done));
    let read = spawn_blocking(move || {
        let bytes = bounded(&file, MAX_SECRET_BYTES);
        let mut blocked = blocked_files();
        set_done.store(true, Ordering::Relaxed);
        blocked.remove(&file);
        bytes
    });
    if let Ok(read) = timeout(READ_TIMEOUT, read).await {
        return read.map_err(|_| "cannot be read while the gateway stops".to_owned())?;
    }
    let mut blocked = blocked_files();
    if !done.load(Ordering::Relaxed) {
        blocked.insert(path.to_owned());
    }
    Err(BLOCKED.to_owned())
}

/// The files whose reads are blocked.
fn blocked_files() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    static BLOCKED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    lock(&BLOCKED)
}

/// Adds the path of the file to an error of [`check`]. A value that names no file and has no slash
/// may be the secret itself, so it is not quoted.
pub(crate) fn problem(path: &Path, what: &str) -> String {
    if path.exists() || path.as_os_str().as_encoded_bytes().contains(&b'/') {
        about(path, what)
    } else {
        "is not the path of a file; write the secret into a file, and the path of that file here"
            .to_owned()
    }
}

/// Like [`read`], but blocks the thread. The error does not name the file; see [`problem`].
pub(crate) fn check(path: &Path) -> Result<SecretString, String> {
    single_line(&check_lines(path)?).map_err(str::to_owned)
}

/// Like [`read_lines`], but blocks the thread. The error does not name the file.
pub(crate) fn check_lines(path: &Path) -> Result<SecretString, String> {
    text(&bounded(path, MAX_SECRET_BYTES)?).map_err(str::to_owned)
}

/// Returns the bytes of a file that may hold a secret. More than `max` bytes are an error. The
/// error does not name the file.
pub(crate) fn bounded(path: &Path, max: u64) -> Result<Zeroizing<Vec<u8>>, String> {
    let unreadable = |error: io::Error| {
        format!("cannot be read ({error}); mount it, and let the gateway's user read it")
    };
    // Opening a pipe would wait for its writer.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err("is not a file".to_owned());
    }
    let mut bytes = Zeroizing::new(Vec::new());
    File::open(path)
        .and_then(|file| file.take(max + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > max {
        return Err(format!("holds more than {max} bytes"));
    }
    Ok(bytes)
}

fn text(bytes: &[u8]) -> Result<SecretString, &'static str> {
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return Err("begins with a byte order mark; save it as UTF-8 without one");
    }
    let text = str::from_utf8(bytes).map_err(|_| "is not UTF-8 text; save it as UTF-8")?;
    if text.is_empty() {
        return Err("is empty; write the secret into it");
    }
    Ok(text.into())
}

/// Returns the text as one secret, without a single line break at its end.
fn single_line(text: &SecretString) -> Result<SecretString, &'static str> {
    let text = text.expose_secret();
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err("is empty; write the secret into it");
    }
    if text.contains(char::is_control) {
        return Err(
            "holds control characters or more than one line; write nothing but the secret into it",
        );
    }
    if text.starts_with(char::is_whitespace) || text.ends_with(char::is_whitespace) {
        return Err("begins or ends with a blank; write nothing but the secret into it");
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;

    #[tokio::test]
    async fn accidental_characters_are_refused_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        for (bytes, secret) in [
            (&b"hidden"[..], Some("hidden")),
            (b"hidden\n", Some("hidden")),
            (b"hidden\r\n", Some("hidden")),
            ("pässwörd 1".as_bytes(), Some("pässwörd 1")),
            (b"", None),
            (b"\n", None),
            (b"hidden\n\n", None),
            (b"hidden \n", None),
            (b" hidden", None),
            ("hidden\u{a0}".as_bytes(), None),
            (b"\xef\xbb\xbfhidden", None),
            (b"hid\0den", None),
            (b"hid\tden", None),
            (b"hidden\xff", None),
            (&[b'x'; 4097], None),
        ] {
            std::fs::write(&file, bytes).unwrap();
            let read = read(&file).await;
            let checked = check(&file);
            assert_eq!(checked.is_ok(), read.is_ok(), "{bytes:?}");
            if let Some(secret) = secret {
                assert_eq!(read.unwrap().expose_secret(), secret);
            } else {
                let why = read.unwrap_err();
                assert!(why.contains("password") && !why.contains("hidden"), "{why}");
            }
        }
        let pipe = folder.path().join("pipe");
        mkfifoat(CWD, &pipe, Mode::RUSR).unwrap();
        assert!(read(&pipe).await.unwrap_err().ends_with("pipe is not a file"));
        assert!(check(folder.path()).unwrap_err().contains("is not a file"));
        assert!(check(&folder.path().join("none")).unwrap_err().contains("cannot be read"));
    }
}
