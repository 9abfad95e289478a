//! The count of rejected logins is lost while the user is close to being locked.

use super::*;

/// At ThingSpace's fifth rejection in a row the user is locked.
const REJECTIONS: u32 = 4;

/// The cell of the login guard is purged while one replica runs and remembers the count, and
/// another one starts without it. Neither may log in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purged_count_of_logins_stops_them_until_an_operator_decides() {
    let (upstream, nats) = (Upstream::manual().await, NatsServer::start().await);
    let mut config = upstream.quiet();
    config.thingspace.login_backoff_first = Duration::from_millis(100);
    let gateways = [Gateway::start(upstream.replica(&config, &nats.url(), 1, 0)).await];
    let config = upstream.replica(&config, &nats.url(), 1, 1);
    let process = Process::serve(&config, upstream.dir.path());
    let file = upstream.dir.path().join("gateway.toml");
    let mut living = gateways[0].client().await;
    let is_blocked = async |client: &Client| {
        let refused = place(&mut client.clone(), "blocked", [1]).await;
        refused.is_err_and(|status| reason(&status) == "UPSTREAM_LOGIN_BLOCKED")
    };
    let strikes = || upstream.sim.ledger().rejected_in_a_row;
    place(&mut living, "before", [0]).await.unwrap();
    upstream.sim.set_password("changed");
    upstream.sim.expire_sessions();
    loop {
        eventually("logins are stopped", async || is_blocked(&living).await).await;
        let before = strikes();
        if before == REJECTIONS {
            break;
        }
        told(&file, &["unblock", "test"]).await;
        eventually("a login is rejected", async || {
            is_blocked(&living).await;
            strikes() > before
        })
        .await;
    }

    process.kill();
    let cells = admin(&nats).await.get_stream("gw_cells").await.unwrap();
    let mut subjects = cells.info_with_subjects("gw.cell.>").await.unwrap();
    let guard = loop {
        let (subject, _) = within("a subject", subjects.try_next()).await.unwrap().unwrap();
        if subject.starts_with("gw.cell.guard_2flogin_2f") {
            break subject;
        }
    };
    cells.purge().filter(&guard).await.unwrap();
    let process = Process::launch(&config, upstream.dir.path());
    std::fs::write(upstream.dir.path().join("password"), "another").unwrap();
    let missing = format!("stream gw_cells no longer holds {guard}: it was purged");
    all_say(&gateways, &missing).await;
    let ready = format!("http://{}/readyz", process.admin);
    eventually("the newcomer says so, too", async || {
        let answer = reqwest::get(&ready).await.unwrap();
        answer.status() == 503 && answer.text().await.unwrap().contains(&missing)
    })
    .await;
    assert_eq!((strikes(), upstream.sim.ledger().locked), (REJECTIONS, false));

    let said = told(&file, &["store", "accept-loss"]).await;
    assert!(said.contains(&missing), "{said}");
    all_are_ready(&gateways).await;
    let newcomer = process.client().await;
    for client in [&living, &newcomer] {
        eventually("logins are stopped", async || is_blocked(client).await).await;
    }
    assert_eq!((strikes(), upstream.sim.ledger().locked), (REJECTIONS, false));
    upstream.sim.set_password("another");
    told(&file, &["unblock", "test", "--force"]).await;
    for (client, key) in [(&living, "first"), (&newcomer, "second")] {
        eventually_ok("orders are taken", async || place(&mut client.clone(), key, [2]).await)
            .await;
    }
    stop(gateways).await;
}
