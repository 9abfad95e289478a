//! Finds sets of credentials that have the same user.
//!
//! Two sets with the same user name and password share one session. If the password or the spelling
//! of the name differs, each set logs in by itself, and ThingSpace may end the session of the other
//! set.

use std::{collections::HashMap, sync::Mutex};

use super::secrets::{Fingerprint, HalfIdentity};
use crate::lock::lock;

/// The users of the sets of credentials, by the name of the set. Each has the cell of its guard,
/// which is the same for all spellings of the user name, and a fingerprint of user name and
/// password.
#[derive(Debug, Default)]
pub(in crate::thingspace) struct Users(Mutex<HashMap<String, (String, Fingerprint)>>);

impl Users {
    /// Notes the user of a set of credentials. After a change, logs each other set with the same
    /// user and another password or spelling.
    pub(super) fn set(&self, set: &str, user: &HalfIdentity) {
        let user_entry = (user.cell.name.clone(), user.fingerprint);
        let mut sets = lock(&self.0);
        if sets.get(set) == Some(&user_entry) {
            return;
        }
        for (other, (cell, fingerprint)) in &*sets {
            if other != set && *cell == user_entry.0 && *fingerprint != user_entry.1 {
                tracing::warn!(
                    credentials = set,
                    other,
                    "two sets of credentials hold the same user, with different passwords or in \
                     different spellings: their logins may end each other's sessions, and a wrong \
                     password of one counts against both. Write the same user name and password \
                     into both, or list all accounts of the user in one set"
                );
            }
        }
        sets.insert(set.to_owned(), user_entry);
    }
}
