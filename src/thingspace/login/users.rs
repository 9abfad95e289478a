//! Which sets of credentials hold the same user.
//!
//! Two sets with the same user name and password share one session. If they differ in the password
//! or in the spelling of the name, each logs in for itself, and ThingSpace may end the session of
//! the other set.

use std::{collections::HashMap, sync::Mutex};

use super::{
    lock,
    secrets::{Fingerprint, Identity},
};

/// What each set of credentials held last, by its name.
#[derive(Debug, Default)]
pub(crate) struct Users(Mutex<HashMap<String, Held>>);

#[derive(Debug, PartialEq, Eq)]
struct Held {
    /// The cell of its guard, which is the same for all spellings of a user name.
    user: String,
    login: Fingerprint,
}

impl Users {
    /// A set of credentials holds this login now. The log says which other sets are at odds with
    /// it, once for each change.
    pub(super) fn set(&self, set: &str, login: &Identity) {
        let held = Held { user: login.cell.name.clone(), login: login.fingerprint };
        let mut sets = lock(&self.0);
        if sets.get(set) == Some(&held) {
            return;
        }
        for (other, theirs) in &*sets {
            if other != set && theirs.user == held.user && theirs.login != held.login {
                tracing::warn!(
                    credentials = set,
                    other,
                    "two sets of credentials hold the same user, with different passwords or in different \
                     spellings: their logins may end each other's sessions, and a wrong one counts against \
                     both. Write the same into both, or list all accounts of the user in one set"
                );
            }
        }
        sets.insert(set.to_owned(), held);
    }
}
