//! Promise 1 of the README: one owner of the tokens, with many callers and frequent expiries.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use thingspace_gateway::{
    identity::{AccountName, Device, Digits},
    simulator::{Endpoint, Fault, Mode, Options, What, When},
};

use crate::{assert_nothing_ordered_twice, harness::*};

/// A thousand callers of a gateway that has no token yet wait for one token request and one login.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_calls_on_a_cold_gateway() {
    const CALLS: usize = 1_000;
    /// External requests. Status calls about them need tokens, too.
    const ELSEWHERE: usize = 100;

    let upstream = Upstream::manual().await;
    // Slow enough that all callers arrive meanwhile.
    for endpoint in [Endpoint::Token, Endpoint::Login] {
        let slow = What::Delay(Duration::from_secs(1));
        upstream.sim.inject(Fault::once(endpoint, When::BeforeEffect, slow));
    }
    let account = AccountName::parse(ACCOUNT).unwrap();
    let elsewhere: Vec<_> = (0..ELSEWHERE)
        .map(|n| {
            let device =
                Device { iccid: Digits::new(&device(CALLS + n).iccid), ..Device::default() };
            upstream.sim.add_request(account.clone(), [device])
        })
        .collect();
    let gateway = upstream.gateway().await;
    let client = gateway.client().await;
    let calls = (0..CALLS).map(|n| {
        let mut client = client.clone();
        let asked = elsewhere[n / 2 % ELSEWHERE].clone();
        tokio::spawn(async move {
            if n % 2 == 0 {
                place(&mut client, &n.to_string(), [n]).await.map(drop)
            } else {
                get_status(&mut client, status_call(&asked)).await.map(drop)
            }
        })
    });
    for (n, answer) in join_all(calls).await.into_iter().enumerate() {
        answer.unwrap().unwrap_or_else(|error| panic!("call {n}: {error:?}"));
    }
    let ledger = upstream.sim.ledger();
    assert_eq!((ledger.token_requests(), ledger.logins()), (1, 1));
    assert_eq!(ledger.orders.len(), CALLS / 2);
    assert_nothing_ordered_twice(&ledger);
    gateway.stop().await;
}

/// Tokens that expire all the time cost no call an error, and cause no unnecessary renewals.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_expire_under_load() {
    const LOAD: Duration = Duration::from_secs(30);
    const CALLERS: usize = 8;
    /// The pause of each caller between an order with its status call and the next.
    const PAUSE: Duration = Duration::from_millis(50);

    let upstream = Upstream::start(Options {
        mode: Mode::Auto { after: Duration::from_millis(200) },
        bearer_lifetime: Duration::from_secs(3),
        session_lifetime: Some(Duration::from_secs(2)),
        ..Options::default()
    })
    .await;
    let gateway = upstream.gateway().await;
    let (end, orders) = (Instant::now() + LOAD, AtomicUsize::new(0));
    let callers = (0..CALLERS).map(|_| async {
        let mut client = gateway.client().await;
        let mut pace = tokio::time::interval(PAUSE);
        while Instant::now() < end {
            pace.tick().await;
            let n = orders.fetch_add(1, Ordering::Relaxed);
            let id = place(&mut client, &n.to_string(), [n]).await.unwrap();
            get_status(&mut client, status_call(&id)).await.unwrap();
        }
    });
    join_all(callers).await;
    let ledger = upstream.sim.ledger();
    assert!(
        ledger.bearers_issued > 2 && ledger.session_expiries > 2,
        "nothing expired: {ledger:?}"
    );
    assert!(
        ledger.token_requests() <= ledger.bearers_issued + 2,
        "{} for {}",
        ledger.token_requests(),
        ledger.bearers_issued
    );
    assert!(ledger.logins_accepted <= ledger.session_expiries + 1);
    assert_eq!(ledger.logins_rejected, 0);
    assert_eq!((ledger.peak(Endpoint::Token), ledger.peak(Endpoint::Login)), (1, 1));
    assert_eq!(ledger.orders.len(), orders.into_inner());
    assert_nothing_ordered_twice(&ledger);
    gateway.stop().await;
}
