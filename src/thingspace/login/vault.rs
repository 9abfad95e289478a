//! The stored tokens of one half of the credentials, and the right to renew them.
//!
//! At most one [`RenewalClaim`] exists in the whole deployment, and its outcome is stored before
//! the next claim. While an outcome cannot be stored, this process claims nothing, and other
//! replicas wait until the lease of the claim ends: until they have seen the guard unchanged for
//! its duration. A token is stored in the same write as the acceptance of its credentials.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use http::HeaderValue;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};
use uuid::Uuid;

use super::{
    LoginContext, UnblockOutcome, Unblocked,
    cells::GuardCells,
    error::{LoginError, Problem},
    guard::{
        self, AttemptOutcome, Delay, GuardDecision, GuardSettings, LOCK, Observation, UnblockMode,
    },
    secrets::{Fingerprint, HalfIdentity},
    slot::{Token, TokenId},
};
use crate::{
    backoff::jittered,
    lock::lock,
    proto::storage::{Guard, GuardAttempt, GuardCandidate},
    store::{StoreError, Version},
};

/// Added to the longest time of an attempt, for the writes before and after it.
const LEASE_SLACK: Duration = Duration::from_secs(30);

/// The age up to which a claim may be used. With an older one the process was suspended, and may be
/// suspended again.
const CLAIM_FRESH: Duration = Duration::from_secs(15);

/// The longest pause between two reads while another attempt is in progress.
const POLL: Duration = Duration::from_millis(200);

/// How long calls wait for an attempt of another replica. That replica may have died, and the lease
/// is longer than most deadlines.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The longest pause between attempts to store an outcome.
const RETRY: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Vault {
    cells: GuardCells,
    settings: GuardSettings,
    lease: Duration,
    /// Identifies this process.
    incarnation: Arc<str>,
    /// Tasks that store outcomes. A drain waits for them.
    tasks: TaskTracker,
    /// The error of all renewals while an outcome is not stored.
    unstored: Mutex<Option<LoginError>>,
    /// The rejected logins that the guard still allowed when it was last checked.
    rejections_left: Mutex<Option<u32>>,
}

/// What a renewal may do.
#[derive(Debug)]
pub(super) enum Access<C> {
    /// Use this newer token.
    Token(Token),
    /// Request a new one.
    Renew(C),
}

/// The right to one attempt, which must be reported.
#[derive(Debug)]
pub(super) struct RenewalClaim {
    pub(super) identity: Arc<HalfIdentity>,
    attempt: GuardAttempt,
    /// The generation of the token that is requested.
    generation: u64,
    /// Whether the stored token stays, because this process cannot open it.
    keep_stored: bool,
    since: Instant,
}

/// A claim that is not stored yet.
pub(super) struct Draft {
    version: Option<Version>,
    guard: Guard,
    claim: RenewalClaim,
}

/// Why a renewal is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// A call needs a token.
    Call,
    /// The files contain new credentials, and the token of the old ones still works. Only one
    /// attempt is made for this.
    Rotation,
}

impl RenewalClaim {
    pub(super) fn is_fresh(&self) -> bool {
        self.since.elapsed() < CLAIM_FRESH
    }
}

impl Vault {
    /// `attempt` is the longest time that an attempt may take.
    pub(super) fn new(context: &LoginContext, settings: GuardSettings, attempt: Duration) -> Self {
        Self {
            cells: GuardCells::new(Arc::clone(&context.store), settings),
            settings,
            lease: attempt + LEASE_SLACK,
            incarnation: Arc::clone(&context.incarnation),
            tasks: context.tasks.clone(),
            unstored: Mutex::default(),
            rejections_left: Mutex::default(),
        }
    }

    /// Returns a token that is newer than the last one, or stores a claim.
    pub(super) async fn claim(
        self: &Arc<Self>,
        identity: &Arc<HalfIdentity>,
        last: Option<TokenId>,
        need: Need,
    ) -> Result<Access<RenewalClaim>, LoginError> {
        loop {
            let draft = match self.check(identity, last, need).await? {
                Access::Token(token) => return Ok(Access::Token(token)),
                Access::Renew(draft) => draft,
            };
            let Draft { version, guard, claim } = *draft;
            match self.cells.swap(&identity.cell, version, guard).await {
                Ok(true) => return Ok(Access::Renew(claim)),
                Ok(false) => {}
                Err(error) => {
                    let unknown = matches!(error, StoreError::UnknownOutcome(_));
                    let error = LoginError::from(error);
                    if unknown {
                        // The claim may be stored. Report it, because no attempt follows.
                        self.store_later(claim, AttemptOutcome::NotEvaluated, error.clone());
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Returns a token that is newer than the last one, or what a claim would store. Waits for an
    /// attempt of another replica, for [`WAIT_MAX`] at most.
    pub(super) async fn check(
        &self,
        identity: &Arc<HalfIdentity>,
        last: Option<TokenId>,
        need: Need,
    ) -> Result<Access<Box<Draft>>, LoginError> {
        let fingerprint = identity.fingerprint;
        let last_generation =
            last.filter(|id| id.fingerprint == fingerprint).map_or(0, |id| id.generation);
        let attempt = self.attempt(fingerprint);
        let deadline = Instant::now() + self.lease * 2;
        while Instant::now() < deadline {
            if let Some(error) = lock(&self.unstored).clone() {
                return Err(error);
            }
            let (version, seen) = self.cells.observe(identity).await?;
            let stored = seen.guard.as_ref().and_then(|guard| guard.candidate(&fingerprint.0));
            let stored = stored.cloned().unwrap_or_default();
            let value = identity.open(stored.generation, &stored.sealed);
            let keep_stored = value.is_none() && !stored.sealed.is_empty();
            let newer = value.filter(|_| stored.generation > last_generation).map(|value| {
                stored_token(value, TokenId { fingerprint, generation: stored.generation })
            });
            let inherited_token = || inherited(identity, seen.guard.as_ref()?, last);
            let token = newer.or_else(|| inherited_token().filter(|_| need == Need::Call));
            if let Some(token) = token {
                return Ok(Access::Token(token));
            }
            match guard::next(&seen, &attempt, &self.settings) {
                GuardDecision::Claim(guard) => {
                    if let Some(why) =
                        self.reason_to_postpone(&seen, &stored).filter(|_| need != Need::Call)
                    {
                        return Err(LoginError::delayed(Duration::ZERO, why));
                    }
                    let (identity, since) = (Arc::clone(identity), Instant::now());
                    let generation = stored.generation.max(last_generation) + 1;
                    let claim = RenewalClaim { identity, attempt, generation, keep_stored, since };
                    return Ok(Access::Renew(Box::new(Draft { version, guard, claim })));
                }
                GuardDecision::Settle(next) => {
                    if self.cells.swap(&identity.cell, version, next).await? {
                        warn!(
                            cell = identity.cell.name,
                            "an attempt to get a token was never reported, perhaps because its \
                             process died; it counts as unanswered"
                        );
                    }
                }
                GuardDecision::Wait(left) if seen.unchanged >= WAIT_MAX => {
                    return Err(LoginError::new(Problem::Elsewhere, left));
                }
                GuardDecision::Wait(_) => tokio::time::sleep(jittered(POLL, fastrand::f64())).await,
                GuardDecision::Delay(wait, why) => return Err(LoginError::delayed(wait, why)),
                GuardDecision::Stopped(stopped) => return Err(Problem::Stopped(stopped).into()),
            }
        }
        Err(Problem::Elsewhere.into())
    }

    /// Returns why a renewal that no call needs is not attempted, or `None` if it is.
    fn reason_to_postpone(&self, seen: &Observation, stored: &GuardCandidate) -> Option<Delay> {
        if stored.misses > self.settings.unconfirmed_rejections() {
            return Some(if stored.rejected { Delay::Rejected } else { Delay::Unanswered });
        }
        let guard = seen.guard.as_ref()?;
        let superseded = guard.is_superseded(&stored.fingerprint) && !seen.exclusive;
        superseded.then_some(Delay::Superseded)
    }

    /// Returns the error with which a renewal would fail now.
    pub(super) async fn check_renewal(&self, identity: &HalfIdentity) -> Result<(), LoginError> {
        let (_, seen) = self.cells.observe(identity).await?;
        let attempt = self.attempt(identity.fingerprint);
        *lock(&self.rejections_left) = Some(guard::rejections_left(&seen, &attempt.fingerprint));
        let in_progress = seen.guard.as_ref().and_then(|guard| guard.attempt.as_ref());
        let own = in_progress.is_some_and(|other| other.incarnation == attempt.incarnation);
        match guard::next(&seen, &attempt, &self.settings) {
            GuardDecision::Wait(left) if !own => Err(LoginError::new(Problem::Elsewhere, left)),
            GuardDecision::Delay(wait, why) => Err(LoginError::delayed(wait, why)),
            GuardDecision::Stopped(stopped) => Err(Problem::Stopped(stopped).into()),
            GuardDecision::Claim(_) | GuardDecision::Settle(_) | GuardDecision::Wait(_) => Ok(()),
        }
    }

    /// Returns the rejected logins that the guard still allowed when it was last checked.
    pub(super) fn rejections_left(&self) -> Option<u32> {
        *lock(&self.rejections_left)
    }

    /// Permits one more attempt with every secret, for an operator.
    pub(super) async fn unblock(
        &self,
        identity: &HalfIdentity,
        mode: UnblockMode,
    ) -> Result<Unblocked, StoreError> {
        loop {
            let (version, mut seen) = self.cells.observe(identity).await?;
            let next = guard::unblocked(&seen, &identity.fingerprint.0, mode, &self.settings);
            let outcome = match next {
                Err(why) => UnblockOutcome::Refused(why),
                Ok(None) => UnblockOutcome::NotNeeded,
                Ok(Some(next)) => {
                    seen.guard = Some(next.clone());
                    if !self.cells.swap(&identity.cell, version, next).await? {
                        continue;
                    }
                    UnblockOutcome::Done
                }
            };
            return Ok(Unblocked { outcome, rejections: guard::counted(&seen), lock: LOCK });
        }
    }

    /// Stores the token, and that its credentials were accepted. Returns the token.
    pub(super) async fn accepted(
        self: &Arc<Self>,
        claim: RenewalClaim,
        value: HeaderValue,
        expires_in: Option<Duration>,
    ) -> Token {
        let RenewalClaim { identity, generation, keep_stored, .. } = &claim;
        let generation = *generation;
        let id = TokenId { fingerprint: identity.fingerprint, generation };
        let sealed = (!keep_stored).then(|| identity.seal(generation, &value)).flatten();
        self.report(claim, AttemptOutcome::Accepted { generation, sealed }, None).await;
        Token { value, id, found: false, expires_in }
    }

    /// Stores the outcome of a claim. While the store does not accept it, other renewals fail with
    /// `meanwhile`, or with the store's error.
    pub(super) async fn report(
        self: &Arc<Self>,
        claim: RenewalClaim,
        outcome: AttemptOutcome,
        meanwhile: Option<&LoginError>,
    ) {
        if let Err(error) = self.store_outcome(&claim, &outcome).await {
            warn!(
                cell = claim.identity.cell.name,
                "cannot store the outcome of an attempt to get a token; this replica makes no \
                 other one until it is stored. Check the store: {error}"
            );
            let meanwhile = meanwhile.cloned().unwrap_or_else(|| error.into());
            self.store_later(claim, outcome, meanwhile);
        }
    }

    /// Tries to store an outcome until that succeeds.
    fn store_later(
        self: &Arc<Self>,
        claim: RenewalClaim,
        outcome: AttemptOutcome,
        meanwhile: LoginError,
    ) {
        *lock(&self.unstored) = Some(meanwhile);
        let vault = Arc::downgrade(self);
        self.tasks.spawn(async move {
            loop {
                tokio::time::sleep(jittered(RETRY, fastrand::f64())).await;
                let Some(vault) = vault.upgrade() else { return };
                match vault.store_outcome(&claim, &outcome).await {
                    Ok(()) => {
                        *lock(&vault.unstored) = None;
                        return;
                    }
                    Err(error) => debug!(
                        cell = claim.identity.cell.name,
                        "the outcome is still not stored: {error}"
                    ),
                }
            }
        });
    }

    async fn store_outcome(
        &self,
        claim: &RenewalClaim,
        outcome: &AttemptOutcome,
    ) -> Result<(), StoreError> {
        loop {
            let (version, seen) = self.cells.observe(&claim.identity).await?;
            let next = guard::report(seen.guard, &claim.attempt, outcome, &self.settings);
            let Some(next) = next else { return Ok(()) };
            if self.cells.swap(&claim.identity.cell, version, next).await? {
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

/// Returns the token of the credentials that were accepted last, if the other half of this set can
/// open it. It is used until new credentials are accepted. Returns `None` if it is not newer than
/// the last token. Returns `None` also if the last token belongs to other credentials, so that two
/// stale tokens do not replace each other for ever.
fn inherited(identity: &HalfIdentity, guard: &Guard, last: Option<TokenId>) -> Option<Token> {
    let stored = guard.candidate(&guard.accepted_last)?;
    let fingerprint = Fingerprint(stored.fingerprint.as_slice().try_into().ok()?);
    let id = TokenId { fingerprint, generation: stored.generation };
    if last.is_some_and(|last| last.fingerprint != fingerprint || last.generation >= id.generation)
    {
        return None;
    }
    let value = identity.open_for_other_half(id.generation, &stored.sealed_for_other_half)?;
    Some(stored_token(value, id))
}

fn stored_token(value: HeaderValue, id: TokenId) -> Token {
    Token { value, id, found: true, expires_in: None }
}
