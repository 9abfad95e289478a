//! The bearer token, the session tokens, and the lock of the user.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use super::{Options, SessionRefusal, error::TextAnswer, ledger::Ledger};

/// The number of rejected logins in a row that locks the user.
const LOCK: u32 = 5;

/// The most sessions that are kept, including expired ones.
const MAX_SESSIONS: usize = 10_000;

pub(super) struct SimulatedTokens {
    pub(super) password: SecretString,
    /// The bearer token, and when it expires.
    bearer: Option<(String, Instant)>,
    /// Oldest first.
    sessions: VecDeque<Session>,
}

struct Session {
    token: String,
    began: Instant,
    used: Instant,
    expired: bool,
}

impl SimulatedTokens {
    pub(super) fn new(options: &Options) -> Self {
        Self { password: options.password.clone(), bearer: None, sessions: VecDeque::new() }
    }

    /// Returns the bearer token and the rest of its lifetime. Issues a new one only after the old
    /// one has expired.
    pub(super) fn issue(
        &mut self,
        lifetime: Duration,
        ledger: &mut Ledger,
        now: Instant,
    ) -> (String, Duration) {
        self.bearer.take_if(|(_, expires)| *expires <= now);
        let (token, expires) = self.bearer.get_or_insert_with(|| {
            ledger.bearers_issued += 1;
            (Uuid::new_v4().simple().to_string(), now + lifetime)
        });
        (token.clone(), *expires - now)
    }

    pub(super) fn is_bearer(&self, text: &str, now: Instant) -> bool {
        self.bearer.as_ref().is_some_and(|(token, expires)| token == text && now < *expires)
    }

    pub(super) fn expire_bearer(&mut self) {
        self.bearer = None;
    }

    pub(super) fn log_in(
        &mut self,
        username: &str,
        password: &str,
        options: &Options,
        ledger: &mut Ledger,
        now: Instant,
    ) -> Result<String, TextAnswer> {
        let is_user = username == options.username;
        let error = if is_user && ledger.locked {
            TextAnswer::uws("REQUEST_FAILED.User.Locked", "The contact record is locked.")
        } else if !is_user || password != self.password.expose_secret() {
            if is_user {
                ledger.rejected_in_a_row += 1;
                ledger.locked = ledger.rejected_in_a_row >= LOCK;
            }
            TextAnswer::uws(options.login_refusal_code, "Username or password is wrong.")
        } else {
            ledger.logins_accepted += 1;
            ledger.rejected_in_a_row = 0;
            if options.single_session {
                self.expire_sessions(ledger);
            }
            if self.sessions.len() == MAX_SESSIONS {
                self.sessions.pop_front();
            }
            let token = Uuid::new_v4().to_string();
            let session = Session { token: token.clone(), began: now, used: now, expired: false };
            self.sessions.push_back(session);
            return Ok(token);
        };
        ledger.logins_rejected += 1;
        Err(error.with_status(options.login_refusal))
    }

    /// Ends the sessions that were unused for too long or are too old.
    pub(super) fn expire_old_sessions(
        &mut self,
        options: &Options,
        ledger: &mut Ledger,
        now: Instant,
    ) {
        self.expire_sessions_if(ledger, |session| {
            let age = now.duration_since(session.began);
            now.duration_since(session.used) >= options.session_idle
                || options.session_lifetime.is_some_and(|lifetime| age >= lifetime)
        });
    }

    pub(super) fn expire_sessions(&mut self, ledger: &mut Ledger) {
        self.expire_sessions_if(ledger, |_| true);
    }

    fn expire_sessions_if(&mut self, ledger: &mut Ledger, ends: impl Fn(&Session) -> bool) {
        for session in self.sessions.iter_mut().filter(|session| !session.expired && ends(session))
        {
            session.expired = true;
            ledger.session_expiries += 1;
        }
    }

    /// Checks a session token and renews its idle time. Call `expire_old_sessions` first.
    pub(super) fn use_session(
        &mut self,
        token: Option<&str>,
        options: &Options,
        now: Instant,
    ) -> Result<(), TextAnswer> {
        let (code, message) = match token {
            None => ("REQUEST_FAILED.SessionToken.Format", "The session token is missing."),
            Some(token) => match self.sessions.iter_mut().find(|session| session.token == token) {
                None => ("INPUT_INVALID.SessionToken.Invalid", "The session token is not valid."),
                Some(session) if session.expired => {
                    ("REQUEST_FAILED.SessionToken.Expired", "The session token has expired.")
                }
                Some(session) => {
                    session.used = now;
                    return Ok(());
                }
            },
        };
        let error = TextAnswer::uws(code, message);
        Err(match options.session_refusal {
            SessionRefusal::Coded(status) => error.with_status(status),
            SessionRefusal::Bare(status) => error.with_status(status).without_body(),
        })
    }
}
