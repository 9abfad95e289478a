//! The guard's cell as one process handles it: what is stored of a name's tokens and attempts, and who may make the next.
//!
//! Guarantees: whoever gets a [`Claim`] is the only one in the whole deployment, and has the outcome stored before anybody makes
//! another attempt: while the store does not take it, this process claims nothing, and the others wait for the lease. A token
//! is stored in the same write that says that its credentials were accepted. Time is what this process has seen pass.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderValue;
use prost::Message;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};
use uuid::Uuid;

use super::{
    lock,
    secrets::{Fingerprint, Identity},
    slot::{Fault, Minted, Pace, Token, TokenId, What},
    standing::Trouble,
};
use crate::{
    proto::storage::{Guard, GuardAttempt},
    store::{CellName, Store, StoreError, Swap, Version, decode_cell},
    thingspace::{
        breaker::jittered,
        guard::{self, FORMAT, Later, Look, Report, Step, Terms},
    },
};

/// What a lease adds to the time an attempt may take, for the writes around it.
const LEASE_SLACK: Duration = Duration::from_secs(30);

/// A claim that is older is not used: the process stood still, and may do so again.
const CLAIM_FRESH: Duration = Duration::from_secs(15);

/// Between two looks at somebody else's attempt, at most; half of it at least.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Between attempts to store an outcome.
const RETRY: Duration = Duration::from_millis(500);

pub(super) struct Vault {
    store: Arc<dyn Store>,
    terms: Terms,
    lease: Duration,
    /// Of this process.
    incarnation: Arc<str>,
    /// Reports that are not stored yet, so that a drain waits for them.
    tasks: TaskTracker,
    seen: Mutex<Option<Seen>>,
    /// What to say while an outcome is not stored.
    owed: Mutex<Option<Fault>>,
}

/// Since when a cell is as it is.
struct Seen {
    cell: CellName,
    version: Option<Version>,
    since: Instant,
}

/// Whose turn it is.
#[derive(Debug)]
pub(super) enum Turn {
    /// Nobody's: there is a token.
    Found(Minted),
    Ours(Claim),
}

enum Opening {
    Found(Minted),
    /// For whoever claims it.
    Free(Box<Free>),
}

struct Free {
    version: Option<Version>,
    next: Guard,
    attempt: GuardAttempt,
    generation: u64,
    keep: bool,
}

/// The right to one attempt, which must be reported.
#[derive(Debug)]
pub(super) struct Claim {
    identity: Arc<Identity>,
    attempt: GuardAttempt,
    /// Of the token that may come of it.
    generation: u64,
    /// Another one is stored that this process cannot read: it stays.
    keep: bool,
    since: Instant,
}

/// Why an attempt is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Somebody waits.
    Now,
    /// There are new credentials, and the token of the old ones still works: worth one attempt, not a second.
    Soon,
}

/// Why there is no turn.
#[derive(Debug)]
pub(super) struct NoTurn {
    pub(super) fault: Fault,
    /// Somebody has to act.
    pub(super) trouble: Option<Trouble>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("terms", &self.terms).finish_non_exhaustive()
    }
}

impl Claim {
    pub(super) fn is_fresh(&self) -> bool {
        self.since.elapsed() < CLAIM_FRESH
    }

    pub(super) fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }
}

impl Vault {
    /// `attempt`: the longest that one may take.
    pub(super) fn new(
        store: Arc<dyn Store>,
        terms: Terms,
        attempt: Duration,
        incarnation: Arc<str>,
        tasks: TaskTracker,
    ) -> Self {
        let (seen, owed) = (Mutex::default(), Mutex::default());
        Self { store, terms, lease: attempt + LEASE_SLACK, incarnation, tasks, seen, owed }
    }

    /// A token that is newer than the last one, or the right to ask for it. Waits for whoever is asking.
    pub(super) async fn turn(
        self: &Arc<Self>,
        identity: &Arc<Identity>,
        after: Option<TokenId>,
        need: Need,
    ) -> Result<Turn, NoTurn> {
        loop {
            let opening = match self.opening(identity, after, need).await? {
                Opening::Found(minted) => return Ok(Turn::Found(minted)),
                Opening::Free(opening) => opening,
            };
            let Free { version, next, attempt, generation, keep } = *opening;
            let since = Instant::now();
            match self.swap(&identity.cell, version, next).await {
                Ok(true) => {
                    let identity = Arc::clone(identity);
                    return Ok(Turn::Ours(Claim { identity, attempt, generation, keep, since }));
                }
                Ok(false) => {}
                Err(error) => {
                    if let StoreError::Ambiguous(_) = error {
                        // It may be claimed, and nothing will be tried.
                        let fault = NoTurn::from(error.clone()).fault;
                        self.owe(&identity.cell, attempt, Report::Void, fault);
                    }
                    return Err(error.into());
                }
            }
        }
    }

    /// A token that is newer than the last one; `None`: one may be asked for now. Waits for whoever is asking.
    pub(super) async fn wait(
        &self,
        identity: &Identity,
        after: Option<TokenId>,
        need: Need,
    ) -> Result<Option<Minted>, NoTurn> {
        Ok(match self.opening(identity, after, need).await? {
            Opening::Found(minted) => Some(minted),
            Opening::Free(_) => None,
        })
    }

    async fn opening(
        &self,
        identity: &Identity,
        after: Option<TokenId>,
        need: Need,
    ) -> Result<Opening, NoTurn> {
        let fingerprint = identity.fingerprint;
        let after = after.filter(|id| id.fingerprint == fingerprint).map_or(0, |id| id.generation);
        let attempt = self.attempt(fingerprint);
        let give_up = Instant::now() + self.lease * 2;
        while Instant::now() < give_up {
            if let Some(fault) = lock(&self.owed).clone() {
                return Err(NoTurn { fault, trouble: None });
            }
            let (version, guard, unchanged) = self.look(&identity.cell).await?;
            let stored = guard.as_ref().and_then(|guard| guard.candidate(&fingerprint.0)).cloned();
            let stored = stored.unwrap_or_default();
            let token = identity.open(stored.generation, &stored.sealed);
            let keep = token.is_none() && !stored.sealed.is_empty();
            if let Some(value) = token.filter(|_| stored.generation > after) {
                let id = TokenId { fingerprint, generation: stored.generation };
                let token = Token { value, id, found: true };
                return Ok(Opening::Found(Minted { token, expires_in: None }));
            }
            let look = Look { guard: guard.as_ref(), unchanged, exclusive: self.store.exclusive() };
            match guard::next(look, &attempt, &self.terms) {
                Step::Claim(_) if need == Need::Soon && stored.misses > 0 => {
                    let why = if stored.rejected { Later::Rejected } else { Later::Unanswered };
                    return Err(not_yet(Duration::ZERO, why));
                }
                Step::Claim(next) => {
                    let generation = stored.generation.max(after) + 1;
                    return Ok(Opening::Free(Box::new(Free { version, next, attempt, generation, keep })));
                }
                Step::Settle(next) => {
                    if self.swap(&identity.cell, version, next).await? {
                        warn!(cell = identity.cell.name, "an attempt to get a token was never reported");
                    }
                }
                Step::Wait => tokio::time::sleep(jittered(LOOK_AGAIN, fastrand::f64())).await,
                Step::Later(wait, why) => return Err(not_yet(wait, why)),
                Step::Stopped(stopped) => {
                    let fault = Fault { what: What::Stopped, pace: Pace::RECHECK };
                    return Err(NoTurn { fault, trouble: Some(Trouble::Stopped(stopped)) });
                }
            }
        }
        Err(later(Duration::ZERO, "another attempt to get a token takes too long"))
    }

    /// Nothing will be tried with this, as far as is known.
    pub(super) async fn stopped(&self, identity: &Identity) -> Result<Option<Trouble>, StoreError> {
        let (_, guard, unchanged) = self.look(&identity.cell).await?;
        let look = Look { guard: guard.as_ref(), unchanged, exclusive: self.store.exclusive() };
        Ok(match guard::next(look, &self.attempt(identity.fingerprint), &self.terms) {
            Step::Stopped(stopped) => Some(Trouble::Stopped(stopped)),
            _ => None,
        })
    }

    /// An operator's word that everything may be tried once more. False: nothing was in the way.
    pub(super) async fn unblock(&self, cell: &CellName) -> Result<bool, StoreError> {
        loop {
            let (version, guard, _) = self.look(cell).await?;
            let Some(next) = guard.and_then(guard::unblocked) else { return Ok(false) };
            if self.swap(cell, version, next).await? {
                return Ok(true);
            }
        }
    }

    /// It was accepted, and this is the token.
    pub(super) async fn accepted(
        self: &Arc<Self>,
        claim: Claim,
        value: HeaderValue,
        expires_in: Option<Duration>,
    ) -> Minted {
        let Claim { identity, generation, keep, .. } = &claim;
        let id = TokenId { fingerprint: identity.fingerprint, generation: *generation };
        let sealed = (!keep).then(|| identity.seal(*generation, &value)).flatten();
        let report = Report::Accepted { generation: *generation, sealed };
        self.settle(claim, report, |error| NoTurn::from(error).fault).await;
        Minted { token: Token { value, id, found: false }, expires_in }
    }

    /// It was not accepted; why, and what to say until that is stored.
    pub(super) async fn failed(self: &Arc<Self>, claim: Claim, report: Report, fault: &Fault) {
        self.settle(claim, report, |_| fault.clone()).await;
    }

    async fn settle(
        self: &Arc<Self>,
        claim: Claim,
        report: Report,
        meanwhile: impl FnOnce(StoreError) -> Fault,
    ) {
        let cell = &claim.identity.cell;
        if let Err(error) = self.report(cell, &claim.attempt, &report).await {
            warn!(cell = cell.name, "what came of an attempt to get a token is stored later: {error}");
            self.owe(cell, claim.attempt, report, meanwhile(error));
        }
    }

    /// Stores an outcome, however long that takes.
    fn owe(self: &Arc<Self>, cell: &CellName, attempt: GuardAttempt, report: Report, meanwhile: Fault) {
        *lock(&self.owed) = Some(meanwhile);
        let (vault, cell) = (Arc::downgrade(self), cell.clone());
        self.tasks.spawn(async move {
            loop {
                tokio::time::sleep(jittered(RETRY, fastrand::f64())).await;
                let Some(vault) = vault.upgrade() else { return };
                match vault.report(&cell, &attempt, &report).await {
                    Ok(()) => {
                        *lock(&vault.owed) = None;
                        return;
                    }
                    Err(error) => debug!(cell = cell.name, "an outcome is still not stored: {error}"),
                }
            }
        });
    }

    async fn report(
        &self,
        cell: &CellName,
        attempt: &GuardAttempt,
        report: &Report,
    ) -> Result<(), StoreError> {
        loop {
            let (version, guard, _) = self.look(cell).await?;
            let Some(next) = guard::report(guard, attempt, report, &self.terms) else { return Ok(()) };
            if self.swap(cell, version, next).await? {
                return Ok(());
            }
        }
    }

    fn attempt(&self, fingerprint: Fingerprint) -> GuardAttempt {
        GuardAttempt {
            fingerprint: fingerprint.0.to_vec(),
            id: Uuid::now_v7().to_string(),
            incarnation: self.incarnation.to_string(),
            lease_ms: self.lease.as_millis().try_into().unwrap_or(u32::MAX),
        }
    }

    /// What the cell holds, and for how long it has been seen so.
    async fn look(&self, cell: &CellName) -> Result<(Option<Version>, Option<Guard>, Duration), StoreError> {
        let held = self.store.load(cell).await?;
        let version = held.as_ref().map(|held| held.version);
        let guard = match held {
            Some(held) => Some(decode_cell(held.value, FORMAT, |guard: &Guard| guard.version)?),
            None => None,
        };
        Ok((version, guard, self.see(cell, version)))
    }

    fn see(&self, cell: &CellName, version: Option<Version>) -> Duration {
        let mut seen = lock(&self.seen);
        match &*seen {
            Some(Seen { cell: of, version: at, since }) if of == cell && *at == version => since.elapsed(),
            _ => {
                *seen = Some(Seen { cell: cell.clone(), version, since: Instant::now() });
                Duration::ZERO
            }
        }
    }

    /// False: somebody else was first.
    async fn swap(
        &self,
        cell: &CellName,
        expected: Option<Version>,
        mut next: Guard,
    ) -> Result<bool, StoreError> {
        (next.version, next.nonce) = (FORMAT, Uuid::now_v7().to_string());
        let value = Bytes::from(next.encode_to_vec());
        match self.store.swap(cell, expected, value).await? {
            Swap::Swapped(version) => {
                self.see(cell, Some(version));
                Ok(true)
            }
            Swap::Conflict(_) => Ok(false),
        }
    }
}

fn not_yet(wait: Duration, why: Later) -> NoTurn {
    match why {
        Later::Rejected => NoTurn {
            fault: Fault { what: What::Rejected, pace: Pace::RECHECK },
            trouble: Some(Trouble::Rejected),
        },
        Later::Unanswered => later(wait, "the last login had no answer"),
        Later::Superseded => later(wait, "other replicas log in with newer credentials"),
    }
}

fn later(wait: Duration, reason: &str) -> NoTurn {
    let what = What::Later(reason.to_owned(), Instant::now() + wait);
    NoTurn { fault: Fault { what, pace: Pace::RECHECK }, trouble: None }
}

impl From<StoreError> for NoTurn {
    fn from(error: StoreError) -> Self {
        Self { fault: Fault { what: What::Store(error), pace: Pace::RECHECK }, trouble: None }
    }
}
