//! Looks after a set of credentials: files that change, logins that are stopped or may go on.
//!
//! New credentials are tried once before the tokens of the old ones are dropped, so that a rotation
//! costs no call. The guard is asked at each look, so that the standing is true whether or not a
//! session still works, and stopped logins go on by themselves once they may. Credentials that no
//! call has needed are never used.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use super::{
    Tokens,
    secrets::{Fingerprint, Identity},
    standing::{Half, Trouble},
    vault::Outlook,
};

/// How often files and guards are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Until the tokens are gone.
pub(super) async fn run(tokens: Weak<Tokens>) {
    let Some(kicked) = tokens.upgrade().map(|tokens| Arc::clone(&tokens.kick)) else { return };
    while let Some(tokens) = tokens.upgrade() {
        tokens.look_after().await;
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
    async fn look_after(self: &Arc<Self>) {
        // Files that cannot be read are told.
        let Ok(secrets) = self.secrets().await else { return };
        // What comes of it is told where it is done.
        match self.due(Half::Client, self.bearer.holds(), &secrets.client).await {
            Due::Nothing => {}
            Due::Get => drop(self.bearer().await),
            Due::Replace => drop(self.replace_bearer().await),
        }
        match self.due(Half::Login, self.session.holds(), &secrets.login).await {
            Due::Nothing => {}
            Due::Get => drop(self.session().await),
            Due::Replace => drop(self.replace_session().await),
        }
    }

    async fn due(&self, half: Half, held: Option<Fingerprint>, identity: &Identity) -> Due {
        let in_files = identity.fingerprint;
        let known = self.standings.trouble(half);
        // Without the store nothing new is known.
        let Ok(outlook) = self.vault(half).outlook(identity).await else { return Due::Nothing };
        if let Outlook::Stopped(stopped) = outlook {
            self.standings.set(half, Some(Trouble::Stopped(stopped)), in_files);
            return Due::Nothing;
        }
        match (held, known) {
            (Some(held), _) if held != in_files => Due::Replace,
            // The files are again as they were, or logins may be made again.
            (Some(_), Some((trouble, of))) if of != in_files || matches!(trouble, Trouble::Stopped(_)) => {
                self.standings.set(half, None, in_files);
                Due::Nothing
            }
            (None, Some((Trouble::Stopped(_), _))) => Due::Get,
            (None, Some((Trouble::Rejected, rejected))) if rejected != in_files => Due::Get,
            // Only a secret of the application is tried again without a call.
            (None, Some((Trouble::Rejected, _))) if half == Half::Client => Due::Get,
            _ => Due::Nothing,
        }
    }
}
