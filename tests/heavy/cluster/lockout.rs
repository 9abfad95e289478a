//! Promise 2 of the README with several replicas, which share what they know about a password.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use thingspace_gateway::config::Config;

use crate::{Dice, harness::*, nats_server::NatsServer};

/// Backoffs that pass while a test waits.
fn config(upstream: &Upstream) -> Config {
    let mut config = upstream.quiet();
    config.thingspace.login_backoff_first = Duration::from_millis(100);
    config.thingspace.login_backoff_max = Duration::from_millis(200);
    config
}

/// Three gateways with a wrong password that are killed and started again and again, at any moment,
/// under calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_in_three_crash_loops_is_rejected_twice_at_most() {
    const LOOP: Duration = Duration::from_secs(30);
    const CALLS: usize = 20;
    /// The first login of a process is over by then; in µs.
    const AROUND: u64 = 1_000_000;
    let (upstream, nats) = (Upstream::manual().await, NatsServer::start().await);
    let start = || {
        let config = upstream.replica(&config(&upstream), &nats.url(), 1, 3);
        serve(config, upstream.dir.path())
    };
    // After an accepted login, a wrong password has two attempts. The first gateway uses one of
    // them.
    let known = start().await;
    place(&mut known.client().await, "known", [1_000]).await.unwrap();
    known.kill();
    // Otherwise the calls would use the stored session, and no gateway would log in.
    upstream.sim.expire_sessions();
    std::fs::write(upstream.dir.path().join("password"), "wrong").unwrap();
    let first = start().await;
    place(&mut first.client().await, "first", [0]).await.unwrap_err();
    first.kill();
    assert!(upstream.sim.ledger().logins_rejected >= 1);
    let end = Instant::now() + LOOP;
    let loops = (0..3).map(|n| {
        let config = upstream.replica(&config(&upstream), &nats.url(), 1, n);
        let dir = upstream.dir.path().join(format!("replica-{n}"));
        std::fs::create_dir(&dir).unwrap();
        tokio::spawn(async move {
            let (mut dice, mut starts) = (Dice::new(), 0);
            while Instant::now() < end {
                let gateway = serve(config.clone(), &dir).await;
                let client = connect(gateway.address).await;
                let calls = (0..CALLS).map(|call| {
                    let mut client = client.clone();
                    tokio::spawn(async move { place(&mut client, &call.to_string(), [call]).await })
                });
                let calls: Vec<_> = calls.collect();
                tokio::time::sleep(Duration::from_micros(dice.roll(AROUND))).await;
                gateway.kill();
                assert!(join_all(calls).await.into_iter().all(|placed| placed.unwrap().is_err()));
                starts += 1;
            }
            starts
        })
    });
    let starts: usize =
        join_all(loops.collect::<Vec<_>>()).await.into_iter().map(Result::unwrap).sum();
    let ledger = upstream.sim.ledger();
    eprintln!("{starts} starts, {} logins, {} rejected", ledger.logins(), ledger.logins_rejected);
    assert!((1..=2).contains(&ledger.logins_rejected) && !ledger.locked, "{ledger:?}");
    assert_eq!(ledger.orders.len(), 1, "what was placed before");
}

/// It blocks until the gateway is ready.
async fn serve(config: Config, dir: &Path) -> Process {
    let dir = dir.to_owned();
    tokio::task::spawn_blocking(move || Process::serve(&config, &dir)).await.unwrap()
}

/// The password was changed, and one gateway of three has the new one. It continues, and the others
/// send no login.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_and_new_credentials_do_not_fight() {
    const ROUNDS: usize = 30;
    let (upstream, nats) = (Upstream::manual().await, NatsServer::start().await);
    let new = upstream.dir.path().join("new-password");
    std::fs::write(&new, "new password").unwrap();
    let old = config(&upstream);
    let mut changed = old.clone();
    changed.credentials[0].password_file = new;
    let mut gateways = Vec::new();
    for n in 0..2 {
        gateways.push(Gateway::start(upstream.replica(&old, &nats.url(), 1, n)).await);
    }
    let (mut first, mut second) = (gateways[0].client().await, gateways[1].client().await);
    place(&mut first, "before", [0]).await.unwrap();
    place(&mut second, "before, too", [1]).await.unwrap();
    let before = upstream.sim.ledger();
    assert_eq!((before.logins_accepted, before.logins_rejected), (1, 0));

    upstream.sim.set_password("new password");
    upstream.sim.expire_sessions();
    gateways.push(Gateway::start(upstream.replica(&changed, &nats.url(), 1, 2)).await);
    let mut third = gateways[2].client().await;
    for n in 2..2 + ROUNDS {
        // Calls with the old password fail. The reason depends on what is known.
        for client in [&mut first, &mut second] {
            let refused = place(client, &format!("{n}, old"), [1_000 + n]).await.unwrap_err();
            reason(&refused);
        }
        place(&mut third, &format!("{n}"), [n]).await.unwrap();
    }
    let ledger = upstream.sim.ledger();
    eprintln!("{} accepted, {} rejected", ledger.logins_accepted, ledger.logins_rejected);
    assert_eq!(ledger.logins_accepted, before.logins_accepted + 1, "they fight");
    assert!(ledger.logins_rejected <= 2 && !ledger.locked, "{ledger:?}");
    for gateway in gateways {
        gateway.stop().await;
    }
}
