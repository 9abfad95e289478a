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
    vault::{NoTurn, Outlook},
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
        let client = self.due(Half::Client, self.bearer.holds(), &secrets.client).await;
        // A token request may take long, so the state of logins is found out before.
        let login = self.due(Half::Login, self.session.holds(), &secrets.login).await;
        // What comes of it is told where it is done.
        match client {
            Due::Nothing => {}
            Due::Get => drop(self.bearer().await),
            Due::Replace => drop(self.replace_bearer().await),
        }
        match login {
            Due::Nothing => {}
            Due::Get => drop(self.session().await),
            Due::Replace => drop(self.replace_session().await),
        }
    }

    async fn due(&self, half: Half, held: Option<Fingerprint>, identity: &Identity) -> Due {
        let in_files = identity.fingerprint;
        let known = self.standings.trouble(half);
        let outlook = match self.vault(half).outlook(identity).await {
            Ok(outlook) => outlook,
            Err(error) => {
                let unread = error.to_string();
                let trouble = NoTurn::from(error).trouble;
                if trouble.is_some() {
                    self.standings.set(half, trouble, in_files);
                } else {
                    self.standings.set_unread(Some(unread));
                }
                return Due::Nothing;
            }
        };
        if half == Half::Login {
            self.standings.set_unread(None);
            self.standings.set_elsewhere(match outlook {
                Outlook::Elsewhere(left) => Some(left),
                _ => None,
            });
        }
        if let Outlook::Stopped(stopped) = outlook {
            self.standings.set(half, Some(Trouble::Stopped(stopped)), in_files);
            return Due::Nothing;
        }
        match (held, known) {
            (Some(held), _) if held != in_files => Due::Replace,
            // The files are again as they were, or logins may be made again.
            (Some(_), Some((trouble, of)))
                if of != in_files || trouble.is_over_once_permitted() =>
            {
                self.standings.set(half, None, in_files);
                Due::Nothing
            }
            (None, Some((trouble, _))) if trouble.is_over_once_permitted() => Due::Get,
            (None, Some((Trouble::Rejected, rejected))) if rejected != in_files => Due::Get,
            // Only a secret of the application is tried again without a call.
            (None, Some((Trouble::Rejected | Trouble::RejectedOnce, _)))
                if half == Half::Client =>
            {
                Due::Get
            }
            _ => Due::Nothing,
        }
    }
}
