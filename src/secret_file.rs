//! A secret in a file of its own: read each time it is needed, bounded, and never in an error.

use std::path::Path;

use secrecy::{SecretString, zeroize::Zeroizing};
use tokio::io::AsyncReadExt;

const MAX_SECRET_BYTES: u64 = 4096;

/// The file's text without the line break at its end.
pub async fn read(path: &Path) -> Result<SecretString, String> {
    let unreadable = |why: &dyn std::fmt::Display| format!("cannot read {}: {why}", path.display());
    let file = tokio::fs::File::open(path).await.map_err(|error| unreadable(&error))?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_SECRET_BYTES + 1).read_to_end(&mut bytes).await.map_err(|error| unreadable(&error))?;
    if bytes.len() as u64 > MAX_SECRET_BYTES {
        return Err(unreadable(&format_args!("more than {MAX_SECRET_BYTES} bytes")));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| unreadable(&"not UTF-8"))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(unreadable(&"empty"));
    }
    Ok(text.into())
}
