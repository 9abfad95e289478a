//! The logins at ThingSpace, whose user names and passwords must never be sent in callbacks.

use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use super::Pair;
use crate::secret_file;

/// The files of a user that logs in.
#[derive(Debug, Clone)]
pub struct LoginFiles {
    pub username: PathBuf,
    pub password: PathBuf,
}

/// What a pair shares with a login.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) what: &'static str,
    /// The login's file that holds it.
    pub(super) file: PathBuf,
}

/// What a pair shares with one of these logins. A file that cannot be read holds nothing.
pub(super) async fn shared(pair: &Pair, logins: &[LoginFiles]) -> Option<Shared> {
    for LoginFiles { username, password } in logins {
        if holds(password, |held| is_same(held, &pair.password)).await {
            return Some(Shared { what: "password", file: password.clone() });
        }
        if holds(username, |held| secret_file::is_same_user(held.expose_secret(), &pair.username))
            .await
        {
            return Some(Shared { what: "user name", file: username.clone() });
        }
    }
    None
}

async fn holds(file: &Path, test: impl Fn(&SecretString) -> bool) -> bool {
    secret_file::read(file).await.is_ok_and(|held| test(&held))
}

fn is_same(one: &SecretString, other: &SecretString) -> bool {
    one.expose_secret().as_bytes().ct_eq(other.expose_secret().as_bytes()).into()
}
