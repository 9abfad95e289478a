//! The cell of an account: its pair, its path secret, and the recently replaced ones.

use std::time::Duration;

use jiff::Timestamp;
use secrecy::ExposeSecret;

use super::{Keys, Pair};
use crate::proto::storage;

/// The most replaced pairs, and the most replaced path secrets, that are kept for an account.
pub(super) const MAX_REPLACED: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::callbacks) enum SecretsChange<'a> {
    None,
    RotatePair,
    RotatePath,
    /// Whether an operator deregistered the account.
    Deregistered(bool),
    /// The pair with this code was registered.
    Registered(&'a [u8]),
}

/// Sets the pair in the cell of an account, and applies a change.
pub(super) fn change(
    stored: &mut storage::CallbackPair,
    (pair, from_files): (&Pair, bool),
    change: SecretsChange<'_>,
    keys: &Keys,
    grace: Duration,
) {
    let password = pair.password.expose_secret();
    let code = keys.code(&pair.username, password);
    if stored.code != code {
        let old = storage::ReplacedPair {
            code: std::mem::take(&mut stored.code),
            replaced_time_ms: Timestamp::now().as_millisecond(),
            password_code: std::mem::take(&mut stored.password_code),
        };
        stored.replaced.retain(|old| old.code != code && is_recent(old.replaced_time_ms, grace));
        if !old.code.is_empty() {
            stored.replaced.insert(0, old);
        }
        stored.replaced.truncate(MAX_REPLACED);
        stored.code = code;
    }
    stored.password_code = keys.password_code(password);
    (stored.username, stored.password) = if from_files {
        (String::new(), String::new())
    } else {
        (pair.username.clone(), password.to_owned())
    };
    match change {
        SecretsChange::None | SecretsChange::RotatePair => {}
        SecretsChange::RotatePath => replace_path(stored, grace),
        SecretsChange::Deregistered(deregistered) => stored.unwanted = deregistered,
        SecretsChange::Registered(code) => stored.registered = code.to_vec(),
    }
}

fn replace_path(stored: &mut storage::CallbackPair, grace: Duration) {
    let old = storage::ReplacedPath {
        generation: stored.path_generation,
        replaced_time_ms: Timestamp::now().as_millisecond(),
    };
    stored.replaced_paths.retain(|old| is_recent(old.replaced_time_ms, grace));
    stored.replaced_paths.insert(0, old);
    stored.replaced_paths.truncate(MAX_REPLACED);
    stored.path_generation += 1;
}

/// Returns whether a secret that was replaced at this time is still accepted.
pub(super) fn is_recent(replaced_time_ms: i64, grace: Duration) -> bool {
    let age = Timestamp::now().as_millisecond().saturating_sub(replaced_time_ms);
    // The age is negative if the clock of the replica that replaced the secret is ahead.
    Duration::from_millis(u64::try_from(age).unwrap_or(0)) < grace
}
