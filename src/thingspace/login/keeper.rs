//! Watches a set of credentials: files that change, and logins that are stopped or may resume.
//!
//! New credentials are tried once before the tokens of the old ones are dropped, so that a rotation
//! fails no call. Each check reads the guard, so that the health is right even while a session
//! still works, and so that stopped logins resume by themselves. Never uses credentials that no
//! call has needed.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use jiff::{Timestamp, Unit};

use super::{
    Tokens,
    error::Problem,
    secrets::{Half, HalfIdentity},
    vault::Need,
};

/// How often files and guards are read.
const INTERVAL: Duration = Duration::from_secs(2);

/// Runs until the tokens are dropped.
pub(super) async fn run(tokens: Weak<Tokens>) {
    let Some(wake) = tokens.upgrade().map(|tokens| Arc::clone(&tokens.wake)) else { return };
    while let Some(tokens) = tokens.upgrade() {
        tokens.check().await;
        drop(tokens);
        // An early wake-up is harmless.
        let _ = tokio::time::timeout(INTERVAL, wake.notified()).await;
    }
}

impl Tokens {
    async fn check(self: &Arc<Self>) {
        // `secrets` updates the health if a file cannot be read.
        let Ok(secrets) = self.secrets().await else { return };
        // A token request may take long, so both halves are checked before it.
        let mut due = Vec::new();
        for half in [Half::Application, Half::User] {
            due.push((half, self.due(half, secrets.identity(half)).await));
        }
        for (half, due) in due {
            if let Some(need) = due {
                // The renewal updates the health.
                let _ = self.token(half, need).await;
            }
        }
    }

    /// Updates the health of one half. Returns the renewal that is due.
    async fn due(&self, half: Half, identity: &HalfIdentity) -> Option<Need> {
        let in_files = identity.fingerprint;
        let source = self.source(half);
        let (held, last_problem) = (source.slot.holds(), self.health.problem(half));
        let obstacle = source.vault.check_renewal(identity).await.err();
        match obstacle.as_ref().map(|error| &error.problem) {
            Some(Problem::Store(error)) => {
                self.health.update(|state| state.unread = Some(error.to_string()));
                return None;
            }
            Some(problem @ Problem::GuardUnreadable(_)) => {
                self.health.set(half, Some(problem.clone()), in_files);
                return None;
            }
            _ => {}
        }
        if half == Half::User {
            let elsewhere = obstacle.as_ref().filter(|error| error.problem == Problem::Elsewhere);
            let until = elsewhere.and_then(|error| {
                Timestamp::now().checked_add(error.wait()).ok()?.round(Unit::Second).ok()
            });
            self.health.update(|state| (state.unread, state.elsewhere) = (None, until));
        }
        if let Some(Problem::Stopped(stopped)) = obstacle.map(|error| error.problem) {
            self.health.set(half, Some(Problem::Stopped(stopped)), in_files);
            return None;
        }
        let Some((problem, fingerprint)) = last_problem else {
            return held.filter(|held| *held != in_files).map(|_| Need::Rotation);
        };
        let was_stopped = matches!(problem, Problem::Stopped(_) | Problem::GuardUnreadable(_));
        let rejected = match half {
            Half::Application => matches!(problem, Problem::Rejected | Problem::RejectedOnce),
            // A rejected password is not tried again without a call.
            Half::User => problem == Problem::Rejected && fingerprint != in_files,
        };
        match held {
            Some(held) if held != in_files => Some(Need::Rotation),
            Some(_) => {
                // The files contain the old credentials again, or logins are allowed again.
                if fingerprint != in_files || was_stopped {
                    self.health.set(half, None, in_files);
                }
                None
            }
            None => (was_stopped || rejected).then_some(Need::Call),
        }
    }
}
