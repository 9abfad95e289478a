//! The cell of an account: its pair, its path, and what was replaced a short while ago.

use std::time::Duration;

use jiff::Timestamp;
use secrecy::ExposeSecret;

use super::{Keys, Pair};
use crate::proto::storage;

/// Replaced pairs, and replaced paths, that are kept for an account.
pub(super) const MAX_REPLACED: usize = 8;

/// What is done to an account's cell, beside bringing it up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change<'a> {
    Nothing,
    RotatePair,
    RotatePath,
    Want(bool),
    /// ThingSpace was told the pair with this code.
    Registered(&'a [u8]),
}

/// Carries out a change, with the pair that the account shall have.
pub(super) fn change(
    mut stored: storage::CallbackPair,
    (pair, from_files): (&Pair, bool),
    change: Change<'_>,
    keys: &Keys,
    grace: Duration,
) -> storage::CallbackPair {
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
        Change::Nothing | Change::RotatePair => {}
        Change::RotatePath => replace_path(&mut stored, grace),
        Change::Want(wanted) => stored.unwanted = !wanted,
        Change::Registered(code) => stored.registered = code.to_vec(),
    }
    stored
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

/// Whether what was replaced then is still accepted.
pub(super) fn is_recent(replaced_time_ms: i64, grace: Duration) -> bool {
    let age = Timestamp::now().as_millisecond().saturating_sub(replaced_time_ms);
    // Negative where the replica that replaced it has a clock ahead of this one: no age.
    Duration::from_millis(u64::try_from(age).unwrap_or(0)) < grace
}
