//! A count of rejected logins that is lost, damaged, or of a newer release.

use futures_util::TryStreamExt as _;
use prost::Message as _;
use thingspace_gateway::proto::storage::Guard;

use super::*;
use crate::control::told;

/// The store no longer says how many logins were rejected.
const LOST: Told = Told {
    state: "count of rejected logins lost",
    logins: false,
    login: "the store has lost the number of rejected logins",
    reason: "UPSTREAM_LOGIN_BLOCKED",
    error: "the store has lost the number of rejected logins",
    ..WELL
};

impl Observed {
    /// Logins are stopped and all sources say so, until an operator runs `unblock --force`.
    async fn resumes_after_force(self) {
        eventually("all sources report the loss", async || self.agrees(&LOST).await).await;
        assert_eq!(reason(&self.order("blocked").await.unwrap_err()), LOST.reason);
        assert!(self.agrees(&LOST).await, "all sources agree after a call");
        told(&self.file, &["unblock", "test", "--force"]).await;
        eventually_ok("orders are taken", async || self.order("forced").await).await;
        eventually("all is well", async || self.agrees(&WELL).await).await;
        self.process.terminate();
        let (_, log) = self.process.wait().await;
        let is_error =
            |line: &&String| line.contains("\"level\":\"ERROR\"") && line.contains(LOST.error);
        assert_eq!(log.iter().filter(is_error).count(), 1, "{log:#?}");
    }
}

/// From the start until the guard was read, no source says that logins are possible.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_count_of_logins_is_lost_with_the_store() {
    let observed = Observed::embedded().await;
    let observed =
        observed.restarted(async |config| fs::remove_file(&config.store.path).unwrap()).await;
    let unknown = async || {
        let login = json(&observed.file, &["status"]).await["logins"][0].clone();
        let standing = login["standing"].as_str().unwrap().to_owned();
        assert_eq!(login["healthy"], false, "{standing}");
        assert!(!standing.contains("nothing has needed it"), "{standing}");
        standing
    };
    eventually("the store is the reason", async || {
        unknown().await.contains("not known yet whether that is permitted: the store")
    })
    .await;
    assert_eq!(observed.serves("thingspace.login/test").await, Some(false));
    told(&observed.file, &["store", "accept-loss"]).await;
    unknown().await;
    observed.resumes_after_force().await;
}

/// Starts a gateway on NATS, stops it, writes `value` into the login guard's cell, and starts it
/// again.
async fn with_guard(value: Vec<u8>) -> (Observed, NatsServer) {
    let (upstream, nats) = (Upstream::manual().await, NatsServer::start().await);
    let config = upstream.replica(&upstream.quiet(), &nats.url(), 1, 0);
    let observed = Observed::start(upstream, config).await;
    let damage = async |_: &Config| {
        let admin = async_nats::jetstream::new(async_nats::connect(nats.url()).await.unwrap());
        let cells = admin.get_stream("gw_cells").await.unwrap();
        let mut subjects = cells.info_with_subjects("gw.cell.>").await.unwrap();
        loop {
            let (subject, _) = within("a subject", subjects.try_next()).await.unwrap().unwrap();
            if subject.starts_with("gw.cell.guard_2flogin_2f") {
                admin.publish(subject, value.into()).await.unwrap().await.unwrap();
                return;
            }
        }
    };
    (observed.restarted(damage).await, nats)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_count_of_logins_is_damaged() {
    let (observed, _nats) = with_guard(b"\xff\xff".to_vec()).await;
    observed.resumes_after_force().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_count_of_logins_is_of_a_newer_release() {
    let newer = Guard { version: 2, ..Guard::default() };
    let (observed, _nats) = with_guard(newer.encode_to_vec()).await;
    let expected = Told {
        state: "guard of a newer release",
        login: "Run the newest release that has used this store",
        error: "cannot be read (a cell of version 2, newer than this gateway)",
        ..LOST
    };
    observed.says(&expected).await;
}
