//! Several gateways on one store, and a store that is away.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{future::join_all, stream::BoxStream};
use uuid::Uuid;

use super::*;
use crate::store::{
    CellName, Entry, Followed, LogName, Position, StoreError, Swap, Version, Versioned,
};
use crate::thingspace::LoginHealth;

/// A store that others may use as well, over the network.
#[derive(Debug)]
struct Remote {
    inner: Arc<dyn Store>,
    away: AtomicBool,
    /// What the store had before is lost: cells of the guards have other names now.
    losses: AtomicU32,
}

impl Remote {
    fn reach(&self) -> Result<&dyn Store, StoreError> {
        if self.away.load(Ordering::Relaxed) {
            Err(StoreError::Unavailable("the network is down".into()))
        } else {
            Ok(&*self.inner)
        }
    }

    fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }

    /// All cells are gone.
    fn lose_cells(&self) {
        self.losses.fetch_add(1, Ordering::Relaxed);
    }

    fn cell(&self, cell: &CellName) -> CellName {
        let losses = self.losses.load(Ordering::Relaxed);
        CellName { name: format!("{} after {losses} losses", cell.name), ..cell.clone() }
    }
}

#[async_trait]
impl Store for Remote {
    async fn append(&self, log: &LogName, id: Uuid, event: Bytes) -> Result<Position, StoreError> {
        self.reach()?.append(log, id, event).await
    }

    async fn read(
        &self,
        log: &LogName,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        self.reach()?.read(log, after, limit).await
    }

    fn follow(&self, after: Option<Position>) -> BoxStream<'static, Followed> {
        self.inner.follow(after)
    }

    async fn load(&self, cell: &CellName) -> Result<Option<Versioned>, StoreError> {
        self.reach()?.load(&self.cell(cell)).await
    }

    async fn swap(
        &self,
        cell: &CellName,
        expected: Option<Version>,
        value: Bytes,
    ) -> Result<Swap, StoreError> {
        self.reach()?.swap(&self.cell(cell), expected, value).await
    }

    fn exclusive(&self) -> bool {
        false
    }

    fn has_lost_cells(&self) -> bool {
        self.losses.load(Ordering::Relaxed) > 0
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

/// A first gateway, and another on the same store with files of its own.
struct Pair {
    first: World,
    second: Client,
    files: TempDir,
    remote: Arc<Remote>,
}

async fn pair(options: Options) -> Pair {
    let mut first = configured(options, hasty).await;
    let remote = Arc::new(Remote {
        inner: Arc::clone(&first.store),
        away: AtomicBool::new(false),
        losses: AtomicU32::new(0),
    });
    first.store = Arc::clone(&remote) as Arc<dyn Store>;
    first.restart();
    let files = tempfile::tempdir().unwrap();
    let second = cold(&first.config, &files, &first.store);
    Pair { first, second, files, remote }
}

impl Pair {
    /// Calls at both, all at once.
    async fn call(&self, calls: usize) -> Vec<Called> {
        let request = self.first.request();
        let call = async |n| {
            let client = if n % 2 == 0 { &self.first.client } else { &self.second };
            poll(client, &request).await.map(drop)
        };
        join_all((0..calls).map(call)).await
    }

    async fn second(&self) -> Called {
        let request = self.first.request();
        poll(&self.second, &request).await.map(drop)
    }
}

#[tokio::test]
async fn replicas_share_one_bearer_and_one_session() {
    let pair = pair(Options { single_session: true, ..manual() }).await;
    for (bearer, session, tokens, logins) in
        [(false, false, 1, 1), (false, true, 1, 2), (true, false, 2, 2), (true, true, 3, 3)]
    {
        if bearer {
            pair.first.handle.expire_bearer();
        }
        if session {
            pair.first.handle.expire_sessions();
        }
        for outcome in pair.call(500).await {
            outcome.unwrap();
        }
        let ledger = pair.first.handle.ledger();
        assert_eq!((ledger.token_requests(), ledger.logins()), (tokens, logins));
        assert_eq!((ledger.peak(Endpoint::Token), ledger.peak(Endpoint::Login)), (1, 1));
    }
}

#[tokio::test]
async fn a_login_of_another_gateway_is_told_while_it_is_unanswered() {
    let pair = pair(manual()).await;
    let (_, mut health) = pair.second.login_health().next().unwrap();
    let gate = pair.first.hold(Endpoint::Login);
    let request = pair.first.request();
    tokio::select! {
        outcome = pair.first.poll(&request) => panic!("{outcome:?}"),
        () = pair.first.arrived(Endpoint::Login) => {}
    }
    let waits =
        |told: &LoginHealth| told.sentence.contains("another gateway's login is unanswered");
    let told =
        tokio::time::timeout(PATIENCE, health.wait_for(waits)).await.unwrap().unwrap().clone();
    assert!(told.healthy, "{told:?}");
    gate.open();
    tokio::time::timeout(PATIENCE, health.wait_for(|told| !waits(told))).await.unwrap().unwrap();
}

/// The other replica may have died: a call waits ten seconds for its login, then fails with the
/// time after which it may be repeated. Later calls fail at once.
#[tokio::test]
async fn a_call_does_not_wait_to_its_deadline_for_the_login_of_another_gateway() {
    let pair = pair(manual()).await;
    let gate = pair.first.hold(Endpoint::Login);
    let request = pair.first.request();
    tokio::select! {
        outcome = pair.first.poll(&request) => panic!("{outcome:?}"),
        () = pair.first.arrived(Endpoint::Login) => {}
    }
    let refused =
        async |within| match tokio::time::timeout(within, pair.second()).await.expect("in time") {
            Err(Error::NotSent { reason, retry_after: Some(wait) }) => {
                assert!(reason.contains("another gateway's login"), "{reason}");
                assert!((10..70).contains(&wait.as_secs()), "{wait:?}");
            }
            outcome => panic!("{outcome:?}"),
        };
    refused(PATIENCE).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        refused(Duration::from_secs(5)).await;
    }
    gate.open();
    pair.first.poll(&request).await.unwrap();
    while pair.second().await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(pair.first.handle.ledger().logins(), 1);
}

/// What is found in the store may be over as well.
#[tokio::test]
async fn an_old_session_of_another_replica_costs_no_call() {
    let pair = pair(manual()).await;
    pair.first.poll(&pair.first.request()).await.unwrap();
    pair.second().await.unwrap();
    pair.first.handle.expire_sessions();
    pair.second().await.unwrap();
    pair.first.handle.expire_sessions();
    pair.first.poll(&pair.first.request()).await.unwrap();
    assert_eq!(pair.first.handle.ledger().logins(), 3);
}

#[tokio::test]
async fn a_wrong_password_is_tried_once_by_all_replicas_together() {
    let pair = pair(manual()).await;
    pair.first.handle.set_password("right");
    for _ in 0..20 {
        assert!(pair.call(50).await.iter().all(Result::is_err));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(pair.call(50).await.iter().all(is_blocked));
    assert_eq!(pair.first.handle.ledger().logins(), 1);
    // The right one in the files of one of them serves that one.
    fs::write(pair.files.path().join("password"), "right").unwrap();
    let served = async {
        while pair.second().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, served).await.unwrap();
    // Its session serves the other as well, whose files still need to be corrected.
    pair.first.call_until("it finds the other's session", |_, outcome| outcome.is_ok()).await;
    let mut health = pair.first.client.login_health().next().unwrap().1;
    let told = health.wait_for(|said| !said.healthy && said.sentence.contains("unblock"));
    tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap();
    pair.first.write("password", "right");
    tokio::time::timeout(PATIENCE, health.wait_for(|said| said.healthy)).await.unwrap().unwrap();
    pair.first.poll(&pair.first.request()).await.unwrap();
    assert_eq!(pair.first.handle.ledger().logins(), 2);
}

#[tokio::test]
async fn old_and_new_files_do_not_fight_over_the_session() {
    let pair = pair(Options { single_session: true, ..manual() }).await;
    pair.call(10).await.into_iter().for_each(Result::unwrap);
    pair.first.handle.set_password("new");
    fs::write(pair.files.path().join("password"), "new").unwrap();
    pair.first.handle.wait_until(PATIENCE, |ledger| ledger.logins_accepted == 2).await;
    for _ in 0..20 {
        pair.second().await.unwrap();
        match pair.first.poll(&pair.first.request()).await {
            Err(Error::NotSent { retry_after: Some(wait), .. }) => {
                assert!(wait > Duration::from_mins(4));
            }
            other => panic!("{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    pair.first.write("password", "new");
    pair.first.call_until("the other half has followed", |_, outcome| outcome.is_ok()).await;
    let ledger = pair.first.handle.ledger();
    assert_eq!((ledger.logins(), ledger.logins_rejected), (2, 0));
}

#[tokio::test]
async fn without_the_store_tokens_stay_in_use_and_no_login_is_sent() {
    let pair = pair(manual()).await;
    pair.call(2).await.into_iter().for_each(Result::unwrap);
    pair.remote.set_away(true);
    pair.call(100).await.into_iter().for_each(Result::unwrap);
    pair.first.handle.expire_sessions();
    for outcome in pair.call(100).await {
        assert!(matches!(outcome, Err(Error::Store(StoreError::Unavailable(_)))), "{outcome:?}");
    }
    assert_eq!(pair.first.handle.ledger().logins(), 1);
    pair.remote.set_away(false);
    pair.first.call_until("it heals by itself", |_, outcome| outcome.is_ok()).await;
    assert_eq!(pair.first.handle.ledger().logins(), 2);
}

#[tokio::test]
async fn a_session_is_used_although_the_store_went_away_during_the_login() {
    let pair = pair(manual()).await;
    let gate = pair.first.hold(Endpoint::Login);
    let request = pair.first.request();
    let meanwhile = async {
        pair.first.arrived(Endpoint::Login).await;
        pair.remote.set_away(true);
        gate.open();
    };
    tokio::join!(pair.first.poll(&request), meanwhile).0.unwrap();
    pair.first.poll(&request).await.unwrap();
    pair.remote.set_away(false);
    // The other finds it once it is stored.
    let found = async {
        while pair.second().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap();
    assert_eq!(pair.first.handle.ledger().logins(), 1);
}

#[tokio::test]
async fn a_rejection_is_counted_although_the_store_went_away_during_the_login() {
    let mut pair = pair(manual()).await;
    pair.first.handle.set_password("right");
    let gate = pair.first.hold(Endpoint::Login);
    let request = pair.first.request();
    let meanwhile = async {
        pair.first.arrived(Endpoint::Login).await;
        pair.remote.set_away(true);
        gate.open();
    };
    let (outcome, ()) = tokio::join!(pair.first.poll(&request), meanwhile);
    assert!(matches!(outcome, Err(Error::CredentialsRejected { .. })), "{outcome:?}");
    let rejected = |outcome: &Called| matches!(outcome, Err(Error::CredentialsRejected { .. }));
    pair.first.call_for(Duration::from_millis(1500), rejected).await;
    pair.remote.set_away(false);
    pair.first.call_until("it is counted", |_, outcome| is_blocked(outcome)).await;
    pair.first.restart();
    assert!(is_blocked(&pair.first.poll(&request).await.map(drop)));
    assert_eq!(pair.first.handle.ledger().logins(), 1);
}

/// The guard is closed, and its cell goes while one replica lives.
#[tokio::test]
async fn a_lost_guard_is_written_back_by_a_replica_that_remembers_it() {
    let mut pair = pair(manual()).await;
    pair.call(2).await.into_iter().for_each(Result::unwrap);
    pair.first.handle.set_password("right");
    pair.first.handle.expire_sessions();
    pair.first.call_until("two strikes", |_, outcome| is_blocked(outcome)).await;
    pair.first.write("password", "B");
    let closed =
        |ledger: &Ledger, outcome: &Called| ledger.rejected_in_a_row == 4 && is_blocked(outcome);
    pair.first.call_until("four in all", closed).await;
    for wrong in ["C", "D"] {
        pair.remote.lose_cells();
        pair.first.write("password", wrong);
        pair.first.call_for(Duration::from_secs(4), is_blocked).await;
    }
    pair.first.restart();
    pair.first.call_for(Duration::from_secs(1), is_blocked).await;
    assert!(!pair.first.handle.ledger().locked);
}

/// Nobody remembers the guard: logins are stopped, and `status` says why.
#[tokio::test]
async fn a_lost_guard_that_no_replica_remembers_stops_logins() {
    let mut pair = pair(manual()).await;
    pair.call(2).await.into_iter().for_each(Result::unwrap);
    let elsewhere = tempfile::tempdir().unwrap();
    (pair.second, pair.first.client) = {
        let other = store(&elsewhere);
        (
            cold(&pair.first.config, &pair.files, &other),
            cold(&pair.first.config, &pair.files, &other),
        )
    };
    pair.remote.lose_cells();
    pair.first.restart();
    pair.first.call_for(Duration::from_secs(1), is_blocked).await;
    let mut health = pair.first.client.login_health().next().unwrap().1;
    let told =
        health.wait_for(|said| !said.healthy && said.sentence.contains("the store has lost"));
    tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap();
    assert_eq!(
        pair.first.unblock(UnblockMode::Retry).await,
        UnblockOutcome::Refused(UnblockRefusal::LastAttempt)
    );
    assert_eq!(pair.first.unblock(UnblockMode::LoggedIn).await, UnblockOutcome::Done);
    pair.first.call_until("it goes on", |_, outcome| outcome.is_ok()).await;
    assert_eq!(pair.first.handle.ledger().logins(), 2);
}
