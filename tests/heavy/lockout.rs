//! Promise 2 of the README under `kill -9`: the account is never locked, and a right password stays
//! usable.

use std::time::Duration;

use futures_util::future::join_all;
use thingspace_gateway::{
    config::Config,
    simulator::{Endpoint, Fault, Gate, What, When},
};

use crate::{Dice, harness::*};

/// Each is one start of the binary.
const KILLS: u64 = 20;

/// The first login of a process ends within this time after the first call, in µs.
const AROUND: u64 = 300_000;

fn config(upstream: &Upstream) -> Config {
    let mut config = upstream.quiet();
    config.thingspace.login_backoff_first = Duration::from_millis(100);
    config.thingspace.login_backoff_max = Duration::from_millis(200);
    config
}

fn write_password(upstream: &Upstream, password: &str) {
    let draft = upstream.dir.path().join("draft");
    std::fs::write(&draft, password).unwrap();
    std::fs::rename(draft, upstream.dir.path().join("password")).unwrap();
}

/// Places orders for one device each, all at once. Returns how many were placed.
async fn place_all(client: Client, devices: std::ops::Range<usize>) -> usize {
    let calls = devices.map(|n| {
        let mut client = client.clone();
        tokio::spawn(async move { place(&mut client, &n.to_string(), [n]).await })
    });
    join_all(calls).await.into_iter().filter(|placed| placed.as_ref().unwrap().is_ok()).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_in_a_crash_loop_is_rejected_twice_at_most() {
    const CALLS: usize = 200;
    let (upstream, mut dice) = (Upstream::manual().await, Dice::new());
    write_password(&upstream, "wrong");
    let config = config(&upstream);
    for _ in 0..KILLS {
        let gateway = Process::serve(&config, upstream.dir.path());
        let calls = tokio::spawn(place_all(gateway.client().await, 0..CALLS));
        tokio::time::sleep(Duration::from_micros(dice.roll(AROUND))).await;
        gateway.kill();
        assert_eq!(calls.await.unwrap(), 0);
    }
    let gateway = Process::serve(&config, upstream.dir.path());
    let client = gateway.client().await;
    assert_eq!(place_all(client.clone(), 0..CALLS).await, 0);
    let ledger = upstream.sim.ledger();
    assert!(ledger.logins_rejected <= 2 && !ledger.locked, "{ledger:?}");
    assert_eq!(ledger.calls(Endpoint::Download), 0);

    write_password(&upstream, "simulator-password");
    eventually("the right password is used, without a restart", || {
        let mut client = client.clone();
        async move { place(&mut client, "0", [0]).await.is_ok() }
    })
    .await;
    assert_eq!(place_all(client, 0..CALLS).await, CALLS);
    let ledger = upstream.sim.ledger();
    assert_eq!(
        (ledger.logins_accepted, ledger.rejected_in_a_row, ledger.orders.len()),
        (1, 0, CALLS)
    );
}

/// Each login in flight when its process was killed may have been rejected, so three of them stop
/// logins, and two do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_that_hang_in_a_crash_loop_stop_before_they_could_lock_the_user() {
    let upstream = Upstream::manual().await;
    let config = config(&upstream);
    let gateway = Process::serve(&config, upstream.dir.path());
    let elsewhere = upstream.sim.add_request(upstream.accounts[0].clone(), [upstream_device(9)]);
    get_status(&mut gateway.client().await, status_call(&elsewhere)).await.unwrap();
    gateway.kill();
    for kills in [2, KILLS] {
        upstream.sim.expire_sessions();
        let gate = Gate::default();
        let hold = What::Hold(gate.clone());
        upstream.sim.inject(Fault::always(Endpoint::Login, When::BeforeEffect, hold));
        let before = upstream.sim.ledger().logins();
        for kill in 1..=kills {
            let gateway = Process::serve(&config, upstream.dir.path());
            let (client, status_call) = (gateway.client().await, status_call(&elsewhere));
            let calls = tokio::spawn(async move {
                eventually("logins are stopped", || {
                    let (mut client, call) = (client.clone(), status_call.clone());
                    async move {
                        let failed = get_status(&mut client, call).await.err();
                        failed.is_some_and(|status| reason(&status) == "UPSTREAM_LOGIN_BLOCKED")
                    }
                })
                .await;
            });
            if kill <= 3 {
                upstream.sim.wait_until(DEADLINE, |ledger| ledger.logins() == before + kill).await;
            } else {
                within("logins are stopped", calls).await.unwrap();
                gateway.kill();
                continue;
            }
            gateway.kill();
            calls.abort();
        }
        assert_eq!(upstream.sim.ledger().logins(), before + kills.min(3));
        upstream.sim.clear_faults();
        gate.open();
        let gateway = Process::serve(&config, upstream.dir.path());
        let client = gateway.client().await;
        if kills > 2 {
            let file = upstream.dir.path().join("gateway.toml");
            let mut command = std::process::Command::new(binary());
            let status = command.args(["unblock", "test", "--config"]).arg(file).status().unwrap();
            assert!(status.success());
        }
        eventually("it goes on", || {
            let (mut client, key) = (client.clone(), kills.to_string());
            async move { place(&mut client, &key, [0]).await.is_ok() }
        })
        .await;
        gateway.kill();
    }
    let ledger = upstream.sim.ledger();
    assert_eq!((ledger.logins_rejected, ledger.locked, ledger.orders.len()), (0, false, 2));
}
