//! The two tokens, and the lock of the user behind the second.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use super::{Options, SessionRefusal, ledger::Ledger, refusal::Refusal};

/// Consecutive rejected logins that lock the user.
const STRIKES: u32 = 5;
/// Sessions remembered, those that are over included; the oldest is forgotten first.
const SESSIONS: usize = 10_000;

pub(super) struct Tokens {
    pub(super) password: SecretString,
    bearer: Option<Bearer>,
    sessions: VecDeque<Session>,
}

struct Bearer {
    text: String,
    expires: Instant,
}

struct Session {
    text: String,
    began: Instant,
    used: Instant,
    over: bool,
}

impl Tokens {
    pub(super) fn new(options: &Options) -> Self {
        Self { password: options.password.clone(), bearer: None, sessions: VecDeque::new() }
    }

    /// The bearer and what is left of it: the same one until it expires.
    pub(super) fn issue(
        &mut self,
        lifetime: Duration,
        ledger: &mut Ledger,
        now: Instant,
    ) -> (String, Duration) {
        let bearer =
            self.bearer.take().filter(|bearer| now < bearer.expires).unwrap_or_else(|| {
                ledger.mints += 1;
                Bearer { text: Uuid::new_v4().simple().to_string(), expires: now + lifetime }
            });
        let answer = (bearer.text.clone(), bearer.expires - now);
        self.bearer = Some(bearer);
        answer
    }

    pub(super) fn bearer_holds(&self, text: &str, now: Instant) -> bool {
        self.bearer.as_ref().is_some_and(|bearer| bearer.text == text && now < bearer.expires)
    }

    pub(super) fn revoke(&mut self, text: &str) {
        self.bearer.take_if(|bearer| bearer.text == text);
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
    ) -> Result<String, Refusal> {
        let known = username == options.username;
        if known && ledger.locked {
            ledger.logins_rejected += 1;
            let refusal =
                Refusal::uws("REQUEST_FAILED.User.Locked", "The contact record is locked.");
            return Err(refusal.with_status(options.login_refusal));
        }
        if !known || password != self.password.expose_secret() {
            ledger.logins_rejected += 1;
            if known {
                ledger.strikes += 1;
                ledger.locked = ledger.strikes >= STRIKES;
            }
            let refusal =
                Refusal::uws(options.login_refusal_code, "Username or password is wrong.");
            return Err(refusal.with_status(options.login_refusal));
        }
        ledger.logins_accepted += 1;
        ledger.strikes = 0;
        if options.single_session {
            self.expire_sessions(ledger);
        }
        if self.sessions.len() == SESSIONS {
            self.sessions.pop_front();
        }
        let text = Uuid::new_v4().to_string();
        self.sessions.push_back(Session { text: text.clone(), began: now, used: now, over: false });
        Ok(text)
    }

    /// Finds sessions that are over by now.
    pub(super) fn sweep(&mut self, options: &Options, ledger: &mut Ledger, now: Instant) {
        for session in self.sessions.iter_mut().filter(|session| !session.over) {
            let idle = now.duration_since(session.used) >= options.session_idle;
            let old = options
                .session_lifetime
                .is_some_and(|most| now.duration_since(session.began) >= most);
            if idle || old {
                session.over = true;
                ledger.session_expiries += 1;
            }
        }
    }

    /// Checks a session and counts the call as activity in it. Sweep before.
    pub(super) fn use_session(
        &mut self,
        text: Option<&str>,
        options: &Options,
        now: Instant,
    ) -> Result<(), Refusal> {
        let refuse = |code: &str, message| {
            let refusal = Refusal::uws(code, message);
            match options.session_refusal {
                SessionRefusal::Coded(status) => refusal.with_status(status),
                SessionRefusal::Bare(status) => refusal.with_status(status).without_body(),
            }
        };
        let Some(text) = text else {
            return Err(refuse(
                "REQUEST_FAILED.SessionToken.Format",
                "The session token is missing.",
            ));
        };
        match self.sessions.iter_mut().find(|session| session.text == text) {
            None => {
                Err(refuse("INPUT_INVALID.SessionToken.Invalid", "The session token is not valid."))
            }
            Some(session) if session.over => {
                Err(refuse("REQUEST_FAILED.SessionToken.Expired", "The session token has expired."))
            }
            Some(session) => {
                session.used = now;
                Ok(())
            }
        }
    }

    pub(super) fn log_out(&mut self, text: &str) {
        self.sessions.retain(|session| session.text != text);
    }

    pub(super) fn expire_sessions(&mut self, ledger: &mut Ledger) {
        for session in self.sessions.iter_mut().filter(|session| !session.over) {
            session.over = true;
            ledger.session_expiries += 1;
        }
    }
}
