//! The state of a set of credentials, for `status`, health and the log.
//!
//! It tells whether logins may be made, whether or not a session still works: when the session
//! ends, it is too late to act.

use std::{fmt, sync::Mutex, time::Duration};

use jiff::{Timestamp, Unit};
use tokio::sync::watch;

use super::guard::{COUNTED, LOCK, Stopped};
use super::secrets::Fingerprint;

/// The state of the logins of a set of credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// False: an operator has to act, also if a session still works.
    pub healthy: bool,
    /// For people.
    pub sentence: String,
}

/// The two halves of a set of credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    /// Key and secret of the application.
    Client,
    /// User name and password.
    Login,
}

/// What is wrong with one half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    Rejected,
    /// One token request was rejected, which may have been ThingSpace's error.
    RejectedOnce,
    Stopped(Stopped),
    /// The guard in the store cannot be read, and must not be replaced. Why.
    Unreadable(String),
    /// It passes without action.
    Passing(String),
}

#[derive(Debug)]
pub(super) struct Standings {
    name: String,
    state: Mutex<State>,
    told: watch::Sender<Standing>,
}

#[derive(Debug)]
struct State {
    /// Why the guard has not been read; `None`: it has.
    unread: Option<String>,
    /// There is a session.
    session: bool,
    /// Until when another gateway's login is waited for.
    elsewhere: Option<Timestamp>,
    /// Which file cannot be read, and why.
    files: Option<String>,
    client: Option<(Trouble, Fingerprint)>,
    login: Option<(Trouble, Fingerprint)>,
}

impl Standings {
    pub(super) fn new(name: &str) -> Self {
        let state = State::new();
        let told = watch::Sender::new(state.standing(name));
        Self { name: name.to_owned(), state: Mutex::new(state), told }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Standing> {
        self.told.subscribe()
    }

    /// What is known of a half; logged if it is new and an operator has to act.
    pub(super) fn set(&self, half: Half, trouble: Option<Trouble>, of: Fingerprint) {
        self.change(|state| {
            let now = trouble.map(|trouble| (trouble, of));
            let known = state.half(half);
            let news =
                now.as_ref().filter(|(trouble, _)| trouble.needs_operator() && *known != now);
            let said = news.map(|(trouble, _)| sentence(&self.name, half, trouble));
            *known = now;
            if let Some(said) = said {
                tracing::error!(credentials = self.name, "{said}");
            }
        });
    }

    /// Which credential file cannot be read, and why; `None`: all can be read.
    pub(super) fn set_files(&self, unreadable: Option<String>) {
        self.change(|state| {
            match &unreadable {
                Some(reason) if state.files != unreadable => {
                    tracing::error!(
                        credentials = self.name,
                        "{}",
                        unreadable_sentence(&self.name, reason)
                    );
                }
                None if state.files.is_some() => {
                    tracing::info!(
                        credentials = self.name,
                        "the credential files can be read again"
                    );
                }
                _ => {}
            }
            state.files = unreadable;
        });
    }

    /// Why the guard could not be read, so that nobody knows whether logins may be made; `None`: it
    /// was.
    pub(super) fn set_unread(&self, why: Option<String>) {
        self.change(|state| state.unread = why);
    }

    /// For how long another gateway's login is waited for; `None`: none is under way.
    pub(super) fn set_elsewhere(&self, left: Option<Duration>) {
        let until =
            left.and_then(|left| Timestamp::now().checked_add(left).ok()?.round(Unit::Second).ok());
        self.change(|state| state.elsewhere = until);
    }

    /// Whether there is a session.
    pub(super) fn set_session(&self, session: bool) {
        self.change(|state| state.session = session);
    }

    pub(super) fn trouble(&self, half: Half) -> Option<(Trouble, Fingerprint)> {
        super::lock(&self.state).half(half).clone()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = super::lock(&self.state);
        change(&mut state);
        let standing = state.standing(&self.name);
        self.told.send_if_modified(|told| {
            let changed = *told != standing;
            *told = standing;
            changed
        });
    }
}

impl State {
    fn new() -> Self {
        let unread = Some("the store has not been asked yet".to_owned());
        Self { unread, session: false, elsewhere: None, files: None, client: None, login: None }
    }

    fn half(&mut self, half: Half) -> &mut Option<(Trouble, Fingerprint)> {
        match half {
            Half::Client => &mut self.client,
            Half::Login => &mut self.login,
        }
    }

    fn standing(&self, name: &str) -> Standing {
        let troubles = [(Half::Client, &self.client), (Half::Login, &self.login)];
        let troubles =
            || troubles.iter().filter_map(|(half, trouble)| Some((*half, &trouble.as_ref()?.0)));
        let worst =
            troubles().find(|(_, trouble)| trouble.needs_operator()).or_else(|| troubles().next());
        let (healthy, said) = match (&self.files, worst) {
            (Some(reason), _) => (false, unreadable_sentence(name, reason)),
            (None, Some((half, trouble))) => {
                let known = self.session || self.unread.is_none();
                (known && !trouble.needs_operator(), sentence(name, half, trouble))
            }
            (None, None) if self.session => return Standing::healthy("logged in"),
            (None, None) if let Some(why) = &self.unread => (
                false,
                format!("not logged in, and it is not known yet whether that is permitted: {why}"),
            ),
            (None, None) if let Some(until) = self.elsewhere => {
                return Standing::healthy(&format!(
                    "not logged in: another gateway's login is unanswered so far; waiting until {until} at most"
                ));
            }
            (None, None) => return Standing::healthy("not logged in: nothing has needed it yet"),
        };
        // Calls need a bearer as well.
        let sentence = if self.session && self.client.is_none() {
            format!("{said}. The current session still works")
        } else {
            said
        };
        Standing { healthy, sentence }
    }
}

impl Standing {
    fn healthy(sentence: &str) -> Self {
        Self { healthy: true, sentence: sentence.to_owned() }
    }
}

impl Trouble {
    /// It lasts only as long as the guard permits no attempt.
    pub(super) fn is_over_once_permitted(&self) -> bool {
        matches!(self, Self::Stopped(_) | Self::Unreadable(_))
    }

    fn needs_operator(&self) -> bool {
        match self {
            Self::Rejected | Self::Stopped(_) | Self::Unreadable(_) => true,
            Self::RejectedOnce | Self::Passing(_) => false,
        }
    }
}

impl fmt::Display for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "application key or secret",
            Self::Login => "user name or password",
        })
    }
}

fn unreadable_sentence(name: &str, reason: &str) -> String {
    format!("the files of credentials {name} cannot be used: {reason}. Put the file back, readable")
}

fn sentence(name: &str, half: Half, trouble: &Trouble) -> String {
    let stopped = format!(
        "logins with credentials {name} are stopped, so that ThingSpace does not lock the user"
    );
    let unblock = format!("`thingspace-gateway unblock {name}`");
    let elsewhere = format!(
        "log in once elsewhere with the right password, then run `thingspace-gateway unblock {name} --force"
    );
    match trouble {
        Trouble::Rejected => {
            let again = match half {
                Half::Client => "until then they are tried again at growing intervals",
                Half::Login => "they are tried once more at most",
            };
            format!(
                "ThingSpace rejected the {half} of credentials {name}. Correct the files; {again}"
            )
        }
        Trouble::Stopped(Stopped::Strikes) => format!(
            "{stopped}: it rejected this user name or password, or did not answer, and no attempt with \
             them is left. Correct the files; if they are right, run {unblock}"
        ),
        Trouble::Stopped(Stopped::Silences) => format!(
            "{stopped}: several logins in a row had no usable answer and may have been rejected. Once \
             ThingSpace answers again, and if the password is right, run {unblock}"
        ),
        Trouble::Stopped(Stopped::Closed) => format!(
            "{stopped}: it may have counted {COUNTED} or more rejected logins in a row and locks the user at {LOCK}. \
             Correct the files, {elsewhere}`"
        ),
        Trouble::Stopped(Stopped::ForcedInVain) => format!(
            "{stopped}: no login was accepted after the last `unblock --force`, and it locks the user at {LOCK} \
             rejected logins in a row. Correct the files, {elsewhere} --risk-lock`"
        ),
        Trouble::Stopped(Stopped::Lost) => format!(
            "{stopped}: the store has lost the number of rejected logins. Check the files, {elsewhere}`"
        ),
        Trouble::RejectedOnce => {
            format!(
                "ThingSpace rejected the {half} of credentials {name} once. It is tried again soon"
            )
        }
        Trouble::Unreadable(why) => format!(
            "no token is asked for with credentials {name}: their guard in the store cannot be read ({why}). Run the \
             newest release that has used this store; if that one cannot read it either, restore a backup"
        ),
        Trouble::Passing(reason) => format!("no token for credentials {name}: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Fingerprint = Fingerprint([1; 32]);

    #[test]
    fn it_is_healthy_while_no_operator_has_to_act_whether_or_not_there_is_a_session() {
        let standings = Standings::new("main");
        let told = standings.subscribe();
        let said = || (told.borrow().healthy, told.borrow().sentence.clone());
        assert!(!said().0 && said().1.contains("not known yet"));
        standings.set_unread(None);
        assert_eq!(said(), (true, "not logged in: nothing has needed it yet".to_owned()));
        standings.set_unread(Some("it is away".to_owned()));
        standings.set(Half::Login, Some(Trouble::Passing("it is away".into())), FIRST);
        assert!(!said().0, "a call that fails tells nothing new");
        standings.set(Half::Login, None, FIRST);
        standings.set_unread(None);
        standings.set_session(true);
        assert_eq!(said(), (true, "logged in".to_owned()));
        standings.set(Half::Login, Some(Trouble::Rejected), FIRST);
        assert!(!said().0 && said().1.contains("user name or password of credentials main"));
        assert!(said().1.ends_with("The current session still works"));
        standings.set_session(false);
        assert!(!said().0 && !said().1.contains("still works"));
        standings.set(Half::Login, Some(Trouble::Stopped(Stopped::Strikes)), FIRST);
        standings.set(Half::Client, Some(Trouble::Passing("down".into())), FIRST);
        assert!(
            !said().0 && said().1.contains("unblock main"),
            "what needs an operator comes first"
        );
        assert!(
            said().1.contains("no attempt with them is left"),
            "a new store permits a single one"
        );
        standings.set_files(Some("cannot read password".into()));
        assert!(!said().0 && said().1.contains("cannot read password"));
        standings.set_files(None);
        standings.set(Half::Login, None, FIRST);
        assert_eq!(said(), (true, "no token for credentials main: down".to_owned()));
    }

    #[test]
    fn only_changes_are_told() {
        let standings = Standings::new("main");
        let mut told = standings.subscribe();
        for _ in 0..3 {
            standings.set(Half::Client, Some(Trouble::Rejected), FIRST);
        }
        assert!(told.has_changed().unwrap());
        told.mark_unchanged();
        standings.set(Half::Client, Some(Trouble::Rejected), Fingerprint([2; 32]));
        assert!(!told.has_changed().unwrap());
    }
}
