//! A caller, by name.

use std::{fmt, sync::Arc};

use tokio::time::Instant;

/// The longest name of a caller, in bytes. Names are in log lines.
pub(super) const MAX_NAME: usize = 256;

/// The name of every caller if nobody is asked for credentials.
const ANONYMOUS: &str = "anonymous";

/// A caller. Every authenticated call has it as an extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    name: Arc<str>,
    expires: Option<Instant>,
    /// The first four bytes of the hash of its static token.
    token: Option<[u8; 4]>,
}

impl Caller {
    /// The caller if nobody is asked for credentials.
    pub(crate) fn anonymous() -> Self {
        Self { name: ANONYMOUS.into(), expires: None, token: None }
    }

    /// The caller with this name in its certificate; see [`caller_name`]. `None`: it is too long.
    ///
    /// [`caller_name`]: crate::certificate::caller_name
    pub(super) fn with_certificate(name: &str) -> Option<Self> {
        Self::new("", name, None)
    }

    /// `None`: the name is empty, too long, or has characters that are not printable ASCII. A blank
    /// or a `*` is refused, too, because neither can be written in a policy.
    pub(super) fn new(kind: &str, name: &str, expires: Option<Instant>) -> Option<Self> {
        let printable = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'*');
        let fits = !name.is_empty() && kind.len() + name.len() <= MAX_NAME;
        (printable && fits).then(|| Self {
            name: format!("{kind}{name}").into(),
            expires,
            token: None,
        })
    }

    /// The caller, which proved its identity with the static token that has this hash.
    pub(super) fn with_token(self, hash: &[u8; 32]) -> Self {
        Self { token: hash.first_chunk().copied(), ..self }
    }

    /// The first eight hexadecimal digits of the hash of the caller's static token. A caller may
    /// have several tokens. `None`: it used other credentials.
    pub(crate) fn token(&self) -> Option<String> {
        self.token.map(|bytes| format!("{:08x}", u32::from_be_bytes(bytes)))
    }

    /// The name, unless the caller is anonymous.
    pub(crate) fn known_name(&self) -> Option<Arc<str>> {
        (*self.name != *ANONYMOUS).then(|| Arc::clone(&self.name))
    }

    /// The same as [`Self::name`], shared.
    pub(crate) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    /// Such as `token:orders`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// When the caller's token expires, which ends its watches. `None`: it does not. A certificate
    /// is verified again with each connection, whose age is limited.
    pub(crate) fn expires(&self) -> Option<Instant> {
        self.expires
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
