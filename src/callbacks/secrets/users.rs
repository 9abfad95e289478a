//! The users at ThingSpace. ThingSpace must never send their names and passwords in callbacks.

use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use super::Pair;
use crate::secret_file;

pub(super) const PASSWORD: &str = "password";

/// The files of a user.
#[derive(Debug, Clone)]
pub(crate) struct UserFiles {
    pub(crate) username: PathBuf,
    pub(crate) password: PathBuf,
}

/// The content of a user's files; `None` for a file that cannot be read.
pub(super) struct UserSecrets {
    files: UserFiles,
    username: Option<SecretString>,
    password: Option<SecretString>,
}

/// A user name or password that a pair shares with a user.
#[derive(Debug)]
pub(super) struct SharedSecret {
    pub(super) what: &'static str,
    /// The file of the user.
    pub(super) file: PathBuf,
}

pub(super) async fn read(users: &[UserFiles]) -> Vec<UserSecrets> {
    let mut secrets = Vec::new();
    for files in users {
        let username = secret_file::read(&files.username).await.ok();
        let password = secret_file::read(&files.password).await.ok();
        secrets.push(UserSecrets { files: files.clone(), username, password });
    }
    secrets
}

/// Returns the user name or password that the pair shares with one of these users.
pub(super) fn shared(pair: &Pair, users: &[UserSecrets]) -> Option<SharedSecret> {
    users.iter().find_map(|UserSecrets { files, username, password }| {
        let is_password = |held: &SecretString| -> bool {
            let ours = pair.password.expose_secret();
            held.expose_secret().as_bytes().ct_eq(ours.as_bytes()).into()
        };
        let is_user =
            |held: &SecretString| secret_file::is_same_user(held.expose_secret(), &pair.username);
        if password.as_ref().is_some_and(is_password) {
            Some(SharedSecret { what: PASSWORD, file: files.password.clone() })
        } else if username.as_ref().is_some_and(is_user) {
            Some(SharedSecret { what: "user name", file: files.username.clone() })
        } else {
            None
        }
    })
}
