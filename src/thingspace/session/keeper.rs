//! Looks after a set of credentials: files that change, logins that may go on.
//!
//! New credentials are tried once before the tokens of the old ones are let go, so that a rotation costs no call. What was
//! stopped is looked at again and again, so that it goes on by itself once it may. Nobody is logged in of whom nobody asked it.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use super::{
    Tokens,
    secrets::Fingerprint,
    standing::{Half, Trouble},
};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Until the tokens are gone.
pub(super) async fn run(tokens: Weak<Tokens>) {
    let Some(kicked) = tokens.upgrade().map(|tokens| Arc::clone(&tokens.kick)) else { return };
    let mut first = true;
    while let Some(tokens) = tokens.upgrade() {
        if first {
            tokens.remember().await;
            first = false;
        } else {
            tokens.look_after().await;
        }
        drop(tokens);
        // Too early is as good.
        let _ = tokio::time::timeout(LOOK, kicked.notified()).await;
    }
}

/// What is to be done about a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Nothing,
    /// Get one.
    Get,
    /// Get one, and keep that of the old credentials until then.
    Replace,
}

impl Tokens {
    /// Says at once what was stopped before this process began.
    async fn remember(&self) {
        let Ok(secrets) = self.files.secrets().await else { return };
        let halves =
            [(Half::Client, &self.applications, &secrets.client), (Half::Login, &self.users, &secrets.login)];
        for (half, vault, identity) in halves {
            if let Ok(Some(trouble)) = vault.stopped(identity).await {
                self.standings.set(half, Some(trouble), identity.fingerprint);
            }
        }
    }

    async fn look_after(self: &Arc<Self>) {
        // Whoever needs a token says what is wrong with the files.
        let Ok(secrets) = self.files.secrets().await else { return };
        // What comes of it is said where it is done.
        match self.due(Half::Client, self.bearer.holds(), secrets.client.fingerprint) {
            Due::Nothing => {}
            Due::Get => drop(self.bearer().await),
            Due::Replace => drop(self.replace_bearer().await),
        }
        match self.due(Half::Login, self.session.holds(), secrets.login.fingerprint) {
            Due::Nothing => {}
            Due::Get => drop(self.session().await),
            Due::Replace => drop(self.replace_session().await),
        }
    }

    fn due(&self, half: Half, held: Option<Fingerprint>, in_files: Fingerprint) -> Due {
        match (held, self.standings.trouble(half)) {
            (Some(held), _) if held != in_files => Due::Replace,
            (Some(_), Some((_, other))) if other != in_files => {
                // The files are again as they were.
                self.standings.set(half, None, in_files);
                Due::Nothing
            }
            (None, Some((Trouble::Stopped(_), _))) => Due::Get,
            (None, Some((Trouble::Rejected, rejected))) if rejected != in_files => Due::Get,
            _ => Due::Nothing,
        }
    }
}
