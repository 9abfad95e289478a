//! The real binary with an embedded store that is missing, that may be an older copy, or that was
//! removed: what the operator is told, and what `store accept-loss` does.

use std::{fs, path::PathBuf};

use thingspace_gateway::config::Config;

use crate::{
    control::{json, told},
    harness::*,
};

struct Alone {
    upstream: Upstream,
    config: Config,
    file: PathBuf,
}

impl Alone {
    /// A gateway that placed an order and was stopped.
    async fn stopped() -> Self {
        let upstream = Upstream::manual().await;
        let config = upstream.quiet();
        let process = Process::serve(&config, upstream.dir.path());
        place(&mut process.client().await, "before", [0]).await.unwrap();
        process.terminate();
        assert!(process.wait().await.0.success());
        let file = upstream.dir.path().join("gateway.toml");
        Self { upstream, config, file }
    }

    fn record(&self) -> PathBuf {
        self.upstream.dir.path().join("store.redb.record")
    }

    fn launch(&self) -> Process {
        Process::launch(&self.config, self.upstream.dir.path())
    }

    /// The gateway is not ready, and `status`, log and errors say why and what to do.
    async fn waits_for(&self, process: &Process, what: &str) {
        let url = format!("http://{}/readyz", process.admin);
        let answer = within("/readyz", reqwest::get(url)).await.unwrap();
        assert_eq!(answer.status(), 503);
        let said = answer.text().await.unwrap();
        let store = self.config.store.path.to_str().unwrap();
        for part in [what, store, "store accept-loss"] {
            assert!(said.contains(part), "{said}");
        }
        let status = json(&self.file, &["status"]).await;
        assert_eq!(status["ready"], false);
        let lost = &status["store_memory"]["lost"];
        assert!(lost["what"].as_str().unwrap().contains(what), "{status}");
        let since = lost["noticed"].as_str().unwrap().get(..16).unwrap();
        let shown = told(&self.file, &["status"]).await;
        let row = shown.lines().find(|line| line.starts_with("store lost")).unwrap();
        assert!(
            row.contains(what) && row.contains(since) && row.contains("accept-loss"),
            "{shown}"
        );
        let refused = place(&mut process.client().await, "before", [0]).await.unwrap_err();
        assert_eq!(reason(&refused), "STORE_UNAVAILABLE");
        assert_eq!(self.upstream.sim.ledger().orders.len(), 1);
    }

    /// An operator accepts the loss. The gateway becomes ready, but does not log in before
    /// `unblock`.
    async fn accept(&self, process: &Process) {
        let logins = self.upstream.sim.ledger().logins();
        let said = told(&self.file, &["store", "accept-loss"]).await;
        assert!(
            said.starts_with("Accepted: the store ") && said.contains(" may be missing."),
            "{said}"
        );
        eventually("it is ready", async || json(&self.file, &["status"]).await["ready"] == true)
            .await;
        let again = told(&self.file, &["store", "accept-loss"]).await;
        assert!(again.starts_with("There is nothing to accept: "), "{again}");
        let mut client = process.client().await;
        let blocked = place(&mut client, "after", [1]).await.unwrap_err();
        assert_eq!(reason(&blocked), "UPSTREAM_LOGIN_BLOCKED");
        assert_eq!(self.upstream.sim.ledger().logins(), logins);
        told(&self.file, &["unblock", "test", "--force"]).await;
        eventually_ok("orders are taken", async || place(&mut client.clone(), "after", [1]).await)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_without_its_store_waits_until_an_operator_accepts_the_loss() {
    let alone = Alone::stopped().await;
    fs::remove_file(&alone.config.store.path).unwrap();
    // Also after a restart, although a new file was made.
    for _ in 0..2 {
        let process = alone.launch();
        alone.waits_for(&process, "was missing at the start").await;
        process.terminate();
        assert!(process.wait().await.0.success());
    }
    let process = alone.launch();
    alone.waits_for(&process, "was missing at the start").await;
    alone.accept(&process).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_whose_store_has_no_usable_record_waits_for_the_record_or_an_operator() {
    for damage in ["missing", "broken"] {
        let alone = Alone::stopped().await;
        let right = fs::read(alone.record()).unwrap();
        match damage {
            "missing" => fs::remove_file(alone.record()).unwrap(),
            _ => fs::write(alone.record(), "{\"version\":1,").unwrap(),
        }
        let process = alone.launch();
        alone.waits_for(&process, "may be an older copy").await;
        process.terminate();
        assert!(process.wait().await.0.success());

        if damage == "missing" {
            fs::write(alone.record(), right).unwrap();
            let process = Process::serve(&alone.config, alone.upstream.dir.path());
            place(&mut process.client().await, "before", [0]).await.unwrap();
            assert_eq!(alone.upstream.sim.ledger().orders.len(), 1);
        } else {
            let process = alone.launch();
            alone.accept(&process).await;
        }
    }
}

/// A record that cannot be written stops nothing while the gateway runs, but operators are told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_says_that_the_record_cannot_be_written_until_it_can() {
    let alone = Alone::stopped().await;
    let _process = Process::serve(&alone.config, alone.upstream.dir.path());
    fs::remove_file(alone.record()).unwrap();
    fs::create_dir(alone.record()).unwrap();
    let says = async || {
        let status = json(&alone.file, &["status"]).await;
        assert_eq!(status["ready"], true);
        let shown = told(&alone.file, &["status"]).await;
        let row = shown.lines().find(|line| line.starts_with("store not protected"));
        row.is_some_and(|row| row.contains("store.redb.record cannot be written"))
    };
    eventually("status says so", async || says().await).await;
    fs::remove_dir(alone.record()).unwrap();
    eventually("status says no more", async || !says().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepting_the_loss_of_a_removed_file_loses_nothing() {
    let alone = Alone::stopped().await;
    let process = Process::serve(&alone.config, alone.upstream.dir.path());
    fs::remove_file(&alone.config.store.path).unwrap();
    eventually("it is noticed", async || json(&alone.file, &["status"]).await["ready"] == false)
        .await;
    let said = told(&alone.file, &["store", "accept-loss"]).await;
    assert!(said.contains("was removed while the gateway was running"), "{said}");
    assert!(
        said.ends_with("The gateway has written the store again, and nothing is lost.\n"),
        "{said}"
    );
    place(&mut process.client().await, "before", [0]).await.unwrap();
    assert_eq!(alone.upstream.sim.ledger().orders.len(), 1);
}
