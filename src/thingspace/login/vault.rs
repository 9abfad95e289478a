//! The guard's cell as one process handles it: the stored tokens and attempts of a name, and the
//! right to make the next attempt.
//!
//! Guarantees: only one [`Claim`] exists in the whole deployment, and its outcome is stored before
//! the next attempt: while the store does not take it, this process claims nothing, and the others
//! wait for the lease. A token is stored in the same write that says that its credentials were
//! accepted. If the store forgets the cell, or goes back to an older value, this process writes
//! back what it remembers. Time is what this process has seen pass.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use http::HeaderValue;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};
use uuid::Uuid;

use super::guard::{self, LOCK, Later, Look, Report, Sealed, Step, Stopped, Terms, UnblockMode};
use super::{
    UnblockOutcome, Unblocked,
    cells::{GuardCells, Looked},
    lock,
    secrets::{Fingerprint, Identity},
    slot::{Fault, Minted, Pace, Token, TokenId, What},
    standing::Trouble,
};
use crate::{
    proto::storage::{Guard, GuardAttempt},
    store::{Store, StoreError, Version},
    thingspace::http::breaker::jittered,
};

/// What a lease adds to the time an attempt may take, for the writes around it.
const LEASE_SLACK: Duration = Duration::from_secs(30);

/// A claim that is older is not used: the process stood still, and may do so again.
const CLAIM_FRESH: Duration = Duration::from_secs(15);

/// Between two looks at somebody else's attempt, at most; half of it at least.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How long calls wait for an attempt that another gateway makes. It may be dead, and its lease is
/// longer than most deadlines.
const OTHERS_MOST: Duration = Duration::from_secs(10);

/// Between attempts to store an outcome.
const RETRY: Duration = Duration::from_millis(500);

pub(super) struct Vault {
    cells: GuardCells,
    terms: Terms,
    lease: Duration,
    /// Of this process.
    incarnation: Arc<str>,
    /// Reports that are not stored yet, so that a drain waits for them.
    tasks: TaskTracker,
    /// What to say while an outcome is not stored.
    owed: Mutex<Option<Fault>>,
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

/// What the guard would say to an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outlook {
    Open,
    Later(Duration, Later),
    Stopped(Stopped),
    /// Another gateway makes an attempt, which counts as unanswered after this.
    Elsewhere(Duration),
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
    /// There are new credentials, and the token of the old ones still works: worth one attempt, not
    /// a second.
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
        let cells = GuardCells::new(store, terms);
        let (lease, owed) = (attempt + LEASE_SLACK, Mutex::default());
        Self { cells, terms, lease, incarnation, tasks, owed }
    }

    /// A token that is newer than the last one, or the right to ask for it. Waits for whoever is
    /// asking.
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
            match self.cells.swap(&identity.cell, version, next).await {
                Ok(true) => {
                    let identity = Arc::clone(identity);
                    return Ok(Turn::Ours(Claim { identity, attempt, generation, keep, since }));
                }
                Ok(false) => {}
                Err(error) => {
                    if let StoreError::UnknownOutcome(_) = error {
                        // It may be claimed, and nothing will be tried.
                        let fault = NoTurn::from(error.clone()).fault;
                        self.owe(identity, attempt, Report::Void, fault);
                    }
                    return Err(error.into());
                }
            }
        }
    }

    /// A token that is newer than the last one; `None`: one may be asked for now. Waits for whoever
    /// is asking.
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
        last: Option<TokenId>,
        need: Need,
    ) -> Result<Opening, NoTurn> {
        let fingerprint = identity.fingerprint;
        let after = last.filter(|id| id.fingerprint == fingerprint).map_or(0, |id| id.generation);
        let attempt = self.attempt(fingerprint);
        let give_up = Instant::now() + self.lease * 2;
        while Instant::now() < give_up {
            if let Some(fault) = lock(&self.owed).clone() {
                return Err(NoTurn { fault, trouble: None });
            }
            let looked = self.cells.look(identity).await?;
            let guard = looked.guard.as_ref();
            let stored = guard.and_then(|guard| guard.candidate(&fingerprint.0)).cloned();
            let stored = stored.unwrap_or_default();
            let token = identity.open(stored.generation, &stored.sealed);
            let keep = token.is_none() && !stored.sealed.is_empty();
            if let Some(value) = token.filter(|_| stored.generation > after) {
                let id = TokenId { fingerprint, generation: stored.generation };
                let token = Token { value, id, found: true };
                return Ok(Opening::Found(Minted { token, expires_in: None }));
            }
            if need == Need::Now
                && let Some(minted) = guard.and_then(|guard| inherited(identity, guard, last))
            {
                return Ok(Opening::Found(minted));
            }
            let superseded = guard.is_some_and(|guard| guard.is_superseded(&fingerprint.0));
            let version = looked.version;
            let look = self.cells.as_look(&looked);
            match guard::next(look, &attempt, &self.terms) {
                Step::Claim(_)
                    if need == Need::Soon && stored.misses > self.terms.unconfirmed() =>
                {
                    let why = if stored.rejected { Later::Rejected } else { Later::Unanswered };
                    return Err(not_yet(Duration::ZERO, why));
                }
                Step::Claim(_)
                    if need == Need::Soon && superseded && !self.cells.are_exclusive() =>
                {
                    return Err(not_yet(Duration::ZERO, Later::Superseded));
                }
                Step::Claim(next) => {
                    let generation = stored.generation.max(after) + 1;
                    return Ok(Opening::Free(Box::new(Free {
                        version,
                        next,
                        attempt,
                        generation,
                        keep,
                    })));
                }
                Step::Settle(next) => {
                    if self.cells.swap(&identity.cell, version, next).await? {
                        warn!(
                            cell = identity.cell.name,
                            "an attempt to get a token was never reported; it counts as unanswered"
                        );
                    }
                }
                Step::Wait if look.unchanged >= OTHERS_MOST => {
                    let what = What::Elsewhere(Instant::now() + guard::lease_left(look));
                    return Err(NoTurn {
                        fault: Fault { what, pace: Pace::RECHECK },
                        trouble: None,
                    });
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

    /// What the guard would say to the next attempt.
    pub(super) async fn outlook(&self, identity: &Identity) -> Result<Outlook, StoreError> {
        let looked = self.cells.look(identity).await?;
        let attempt = self.attempt(identity.fingerprint);
        let look = self.cells.as_look(&looked);
        let under_way = look.guard.and_then(|guard| guard.attempt.as_ref());
        let elsewhere = under_way.is_some_and(|other| other.incarnation != attempt.incarnation);
        Ok(match guard::next(look, &attempt, &self.terms) {
            Step::Stopped(stopped) => Outlook::Stopped(stopped),
            Step::Later(wait, why) => Outlook::Later(wait, why),
            Step::Wait if elsewhere => Outlook::Elsewhere(guard::lease_left(look)),
            Step::Claim(_) | Step::Settle(_) | Step::Wait => Outlook::Open,
        })
    }

    /// Permits one more attempt with every secret, as an operator asks for it.
    pub(super) async fn unblock(
        &self,
        identity: &Identity,
        mode: UnblockMode,
    ) -> Result<Unblocked, StoreError> {
        loop {
            let looked = self.cells.look(identity).await?;
            let look = self.cells.as_look(&looked);
            let next = guard::unblocked(look, &identity.fingerprint.0, mode, &self.terms);
            let guard = next.as_ref().ok().and_then(Option::as_ref).or(look.guard);
            let rejections = guard::counted(Look { guard, ..look });
            let outcome = match next {
                Err(why) => UnblockOutcome::Refused(why),
                Ok(None) => UnblockOutcome::NotNeeded,
                Ok(Some(next)) => {
                    if !self.cells.swap(&identity.cell, looked.version, next).await? {
                        continue;
                    }
                    UnblockOutcome::Done
                }
            };
            return Ok(Unblocked { outcome, rejections, lock: LOCK });
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
        let sealed = sealed.map(|[own, for_other_half]| Sealed { own, for_other_half });
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
        let identity = &claim.identity;
        if let Err(error) = self.report(identity, &claim.attempt, &report).await {
            warn!(
                cell = identity.cell.name,
                "the outcome of an attempt to get a token is stored later: {error}"
            );
            self.owe(identity, claim.attempt, report, meanwhile(error));
        }
    }

    /// Stores an outcome, however long that takes.
    fn owe(
        self: &Arc<Self>,
        identity: &Arc<Identity>,
        attempt: GuardAttempt,
        report: Report,
        meanwhile: Fault,
    ) {
        *lock(&self.owed) = Some(meanwhile);
        let (vault, identity) = (Arc::downgrade(self), Arc::clone(identity));
        self.tasks.spawn(async move {
            loop {
                tokio::time::sleep(jittered(RETRY, fastrand::f64())).await;
                let Some(vault) = vault.upgrade() else { return };
                match vault.report(&identity, &attempt, &report).await {
                    Ok(()) => {
                        *lock(&vault.owed) = None;
                        return;
                    }
                    Err(error) => {
                        debug!(
                            cell = identity.cell.name,
                            "an outcome is still not stored: {error}"
                        );
                    }
                }
            }
        });
    }

    async fn report(
        &self,
        identity: &Identity,
        attempt: &GuardAttempt,
        report: &Report,
    ) -> Result<(), StoreError> {
        loop {
            let Looked { version, guard, .. } = self.cells.look(identity).await?;
            let Some(next) = guard::report(guard, attempt, report, &self.terms) else {
                return Ok(());
            };
            if self.cells.swap(&identity.cell, version, next).await? {
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
}

/// The token of the credentials that were accepted last, if the other half of this set opens it: it
/// serves until new credentials are accepted. `None` if it is not newer than the last token, or
/// that was had for other credentials: two stale tokens would replace each other for ever.
fn inherited(identity: &Identity, guard: &Guard, last: Option<TokenId>) -> Option<Minted> {
    let stored = guard.candidate(&guard.accepted_last)?;
    let fingerprint = Fingerprint(stored.fingerprint.as_slice().try_into().ok()?);
    let id = TokenId { fingerprint, generation: stored.generation };
    if last.is_some_and(|last| last.fingerprint != fingerprint || last.generation >= id.generation)
    {
        return None;
    }
    let value = identity.open_for_other_half(id.generation, &stored.sealed_for_other_half)?;
    Some(Minted { token: Token { value, id, found: true }, expires_in: None })
}

pub(super) fn not_yet(wait: Duration, why: Later) -> NoTurn {
    match why {
        Later::RejectedOnce => NoTurn {
            trouble: Some(Trouble::RejectedOnce),
            ..later(wait, "ThingSpace rejected the application once; it is tried again")
        },
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
        let (what, trouble) = match error {
            StoreError::Corrupt(why) => (What::Stopped, Some(Trouble::Unreadable(why))),
            error => (What::Store(error), None),
        };
        Self { fault: Fault { what, pace: Pace::RECHECK }, trouble }
    }
}
