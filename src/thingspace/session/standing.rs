//! How a set of credentials stands with ThingSpace: for operators, for health, and, at each change that somebody has to act
//! on, for the log.

use std::{fmt, sync::Mutex};

use tokio::sync::watch;

use super::secrets::Fingerprint;
use crate::thingspace::guard::{REJECTIONS, Stopped};

/// How the logins of a set of credentials are doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// False: there will be no login until somebody acts.
    pub healthy: bool,
    /// One sentence, or two.
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

/// What is wrong with one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    Rejected,
    Stopped(Stopped),
    /// It passes by itself.
    Passing(String),
}

#[derive(Debug)]
pub(super) struct Standings {
    name: String,
    state: Mutex<State>,
    told: watch::Sender<Standing>,
}

#[derive(Debug, Default)]
struct State {
    /// There is a session.
    session: bool,
    client: Option<(Trouble, Fingerprint)>,
    login: Option<(Trouble, Fingerprint)>,
}

impl State {
    fn half(&mut self, half: Half) -> &mut Option<(Trouble, Fingerprint)> {
        match half {
            Half::Client => &mut self.client,
            Half::Login => &mut self.login,
        }
    }
}

impl Standings {
    pub(super) fn new(name: &str) -> Self {
        let told = watch::Sender::new(State::default().standing(name));
        Self { name: name.to_owned(), state: Mutex::default(), told }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Standing> {
        self.told.subscribe()
    }

    /// What is known of a half; logged if it is new and somebody has to act.
    pub(super) fn set(&self, half: Half, trouble: Option<Trouble>, of: Fingerprint) {
        self.change(|state| {
            let now = trouble.map(|trouble| (trouble, of));
            let known = state.half(half);
            let news = now.as_ref().filter(|(trouble, _)| trouble.needs_somebody() && *known != now);
            let said = news.map(|(trouble, _)| trouble.clone());
            *known = now;
            if let Some(trouble) = said {
                let session = state.session;
                tracing::error!(credentials = self.name, "{}", sentence(&self.name, half, &trouble, session));
            }
        });
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
    fn standing(&self, name: &str) -> Standing {
        let troubles = [(Half::Client, &self.client), (Half::Login, &self.login)];
        let troubles = || troubles.iter().filter_map(|(half, trouble)| Some((*half, &trouble.as_ref()?.0)));
        let worst = troubles().find(|(_, trouble)| trouble.needs_somebody()).or_else(|| troubles().next());
        let Some((half, trouble)) = worst else {
            let sentence =
                if self.session { "logged in" } else { "not logged in: nothing has needed it yet" };
            return Standing { healthy: true, sentence: sentence.to_owned() };
        };
        Standing {
            healthy: self.session || !trouble.needs_somebody(),
            sentence: sentence(name, half, trouble, self.session),
        }
    }
}

impl Trouble {
    fn needs_somebody(&self) -> bool {
        !matches!(self, Self::Passing(_))
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

fn sentence(name: &str, half: Half, trouble: &Trouble, session: bool) -> String {
    let (asked, harm) = match half {
        Half::Client => ("tokens are asked for", ""),
        Half::Login => ("logins are made", ", before it locks the user"),
    };
    let said = match trouble {
        Trouble::Rejected => format!(
            "ThingSpace rejected the {half} of credentials {name}: correct the files; they are tried once more at most"
        ),
        Trouble::Stopped(Stopped::Strikes) => format!(
            "no more {asked} with the {half} of credentials {name}{harm}: ThingSpace rejected them, or did not answer, \
             too often. Correct the files; or, if they are right, run `thingspace-gateway unblock {name}`"
        ),
        Trouble::Stopped(Stopped::Closed) => format!(
            "no more {asked} with credentials {name}{harm}: {REJECTIONS} attempts failed in a row, whatever the files \
             held. Correct the files, log in once elsewhere, then run `thingspace-gateway unblock {name}`"
        ),
        Trouble::Passing(reason) => format!("no token for credentials {name}: {reason}"),
    };
    if session { format!("{said}. The session there is goes on") } else { said }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Fingerprint = Fingerprint([1; 32]);

    #[test]
    fn it_is_healthy_while_nobody_has_to_act_or_there_is_a_session() {
        let standings = Standings::new("main");
        let told = standings.subscribe();
        let said = || (told.borrow().healthy, told.borrow().sentence.clone());
        assert!(said().0 && said().1.contains("not logged in"));
        standings.set_session(true);
        assert_eq!(said(), (true, "logged in".to_owned()));
        standings.set(Half::Login, Some(Trouble::Rejected), FIRST);
        assert!(said().0 && said().1.contains("user name or password of credentials main"));
        assert!(said().1.ends_with("The session there is goes on"));
        standings.set_session(false);
        assert!(!said().0 && !said().1.contains("goes on"));
        standings.set(Half::Login, Some(Trouble::Stopped(Stopped::Strikes)), FIRST);
        standings.set(Half::Client, Some(Trouble::Passing("down".into())), FIRST);
        assert!(!said().0 && said().1.contains("unblock main"), "what somebody has to act on goes first");
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
