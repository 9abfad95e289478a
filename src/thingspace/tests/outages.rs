//! The breaker: what is sent to a host that does not answer, and how calls resume.

use futures_util::future::join_all;
use tokio::time::Instant;

use super::*;
use crate::thingspace::http::breaker::LONGEST_RETRY_AFTER;

const FIRST: Duration = Duration::from_millis(300);

/// The breaker opens after three failures, which are the attempts of one status query.
async fn fragile(options: Options) -> World {
    configured(options, |config| {
        config.breaker_failures = 3;
        (config.breaker_first, config.breaker_max) = (FIRST, 2 * FIRST);
    })
    .await
}

impl World {
    /// No call is answered, and the breaker is open.
    async fn outage(&self, request: &RequestId) {
        self.poll(request).await.unwrap();
        for endpoint in
            [Endpoint::Status, Endpoint::Download, Endpoint::Login, Endpoint::ListCallbacks]
        {
            self.handle.inject(Fault::always(endpoint, When::BeforeEffect, What::Drop));
        }
        assert!(matches!(self.poll(request).await, Err(Error::OutcomeUnknown { .. })));
        assert!(self.wait() > Duration::ZERO);
    }

    fn wait(&self) -> Duration {
        self.client.hosts()[0].open_for.expect("the breaker is open")
    }

    fn calls(&self) -> [u64; 4] {
        let ledger = self.handle.ledger();
        [Endpoint::Status, Endpoint::Download, Endpoint::Login, Endpoint::ListCallbacks]
            .map(|endpoint| ledger.calls(endpoint))
    }
}

#[track_caller]
fn assert_breaker_open<T: std::fmt::Debug>(outcome: &Result<T, Error>) {
    let Err(Error::NotSent { retry_after: Some(wait), .. }) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(*wait <= 2 * FIRST, "{wait:?}");
}

#[tokio::test]
async fn while_it_is_open_nothing_is_sent_but_one_probe() {
    let world = fragile(manual()).await;
    let request = world.request();
    world.outage(&request).await;
    let before = world.calls();
    let began = Instant::now();
    let wait = world.wait();
    while began.elapsed() < wait / 2 {
        assert_breaker_open(&world.poll(&request).await);
        assert_breaker_open(&world.client.prepare_order(&account(), in_time()).await);
    }
    assert_eq!(world.calls(), before);

    // The host still does not answer. One of these queries is sent. On a slow machine the breaker
    // may let another one pass before the last query begins.
    tokio::time::sleep(world.wait()).await;
    let began = Instant::now();
    let outcomes = join_all((0..20).map(|_| world.poll(&request))).await;
    assert!(outcomes.iter().all(Result::is_err));
    let probes = world.calls()[0] - before[0];
    let most = 1 + began.elapsed().as_millis() / FIRST.as_millis();
    assert!((1..=most).contains(&probes.into()), "{probes} probes, at most {most}");

    tokio::time::sleep(world.wait()).await;
    world.handle.clear_faults();
    world.poll(&request).await.unwrap();
    assert_eq!(world.client.hosts()[0].open_for, None);
    assert_eq!(world.calls(), [before[0] + probes + 1, before[1], before[2], before[3]]);
}

/// A `Retry-After` of a day in answers about one request.
#[tokio::test]
async fn the_retry_after_of_one_request_delays_no_order_for_minutes() {
    let world = fragile(manual()).await;
    let request = world.request();
    world.poll(&request).await.unwrap();
    let a_day = What::Unavailable { retry_after: Some(86_400) };
    world.handle.inject(Fault::always(Endpoint::Status, When::BeforeEffect, a_day));
    for _ in 0..3 {
        let Err(Error::OutcomeUnknown { retry_after, .. }) = world.poll(&request).await else {
            panic!("no 503")
        };
        assert_eq!(retry_after, Some(LONGEST_RETRY_AFTER));
    }
    assert!(world.wait() <= FIRST);
    tokio::time::sleep(world.wait()).await;
    // The next query is the probe and gets the same `Retry-After`.
    assert!(world.poll(&request).await.is_err());
    assert!(world.wait() <= 2 * FIRST);
    tokio::time::sleep(world.wait()).await;
    world.order().await.unwrap();
}

/// Callers choose the ids of external requests, and ThingSpace may fail for some.
#[tokio::test]
async fn queries_about_external_requests_open_no_breaker() {
    let world = fragile(manual()).await;
    let request = world.request();
    world.poll(&request).await.unwrap();
    let failing = What::Unavailable { retry_after: None };
    world.handle.inject(Fault::always(Endpoint::Status, When::BeforeEffect, failing));
    for _ in 0..3 {
        let asked = world.client.request_status(&account(), &request, Purpose::External).await;
        assert!(matches!(asked, Err(Error::OutcomeUnknown { .. })), "{asked:?}");
    }
    assert_eq!(world.client.hosts()[0].open_for, None);
    world.order().await.unwrap();
    // The same failures of polls open it, and such a query is not the probe.
    for _ in 0..3 {
        world.poll(&request).await.unwrap_err();
    }
    tokio::time::sleep(world.wait()).await;
    let [polls, _, _, lists] = world.calls();
    let asked = world.client.request_status(&account(), &request, Purpose::External).await;
    assert!(asked.is_err());
    let [polls_after, _, _, lists_after] = world.calls();
    assert_eq!(lists_after, lists + 1, "the transport's own probe is sent first");
    assert!(polls_after > polls, "and is answered");
}

#[tokio::test]
async fn an_order_is_preceded_by_a_probe_and_never_is_one() {
    let world = fragile(manual()).await;
    let request = world.request();
    world.outage(&request).await;
    let [polls, orders, logins, lists] = world.calls();
    tokio::time::sleep(world.wait()).await;
    // The probe fails, and the order is not sent.
    assert_breaker_open(&world.client.prepare_order(&account(), in_time()).await);
    assert_eq!(world.calls(), [polls, orders, logins, lists + 1]);

    tokio::time::sleep(world.wait()).await;
    world.handle.clear_faults();
    world.order().await.unwrap();
    assert_eq!(world.calls(), [polls, orders + 1, logins, lists + 2]);
    assert!(world.handle.ledger().unexpected.is_empty());
}

#[tokio::test]
async fn a_login_is_preceded_by_a_probe() {
    let world = fragile(manual()).await;
    let request = world.request();
    world.outage(&request).await;
    world.handle.expire_sessions();
    let [_, orders, logins, lists] = world.calls();
    tokio::time::sleep(world.wait()).await;
    world.handle.clear_faults();
    // The order finds the session expired. The login needs no other probe.
    world.order().await.unwrap();
    let [_, orders_now, logins_now, lists_now] = world.calls();
    assert_eq!([orders_now, logins_now, lists_now], [orders + 2, logins + 1, lists + 1]);
}

#[tokio::test]
async fn after_a_probe_whose_caller_went_away_another_probe_is_sent() {
    let world = fragile(manual()).await;
    let request = world.request();
    world.outage(&request).await;
    world.handle.clear_faults();
    tokio::time::sleep(world.wait()).await;
    let [.., lists] = world.calls();
    let gate = world.hold(Endpoint::Status);
    let mut impatient = Box::pin(world.poll(&request));
    tokio::select! {
        outcome = &mut impatient => panic!("{outcome:?}"),
        () = world.arrived(Endpoint::Status) => {}
    }
    assert_breaker_open(&world.poll(&request).await);
    drop(impatient);
    world.poll(&request).await.unwrap();
    let [.., lists_now] = world.calls();
    assert_eq!(lists_now, lists + 1);
    gate.open();
}

#[tokio::test]
async fn refusals_and_throttling_open_nothing() {
    let world = fragile(manual()).await;
    let request = world.request();
    let answers = [
        answer(400, r#"{"errorCode":"400"}"#),
        answer(404, "<html>"),
        answer(429, ""),
        answer(503, r#"{"fault":{"code":"900800"}}"#),
        answer(500, r#"{"fault":{"code":"900900"}}"#),
        What::Throttle { retry_after: Some(30) },
    ];
    for what in answers {
        world.handle.inject(Fault::always(Endpoint::Status, When::BeforeEffect, what.clone()));
        for _ in 0..4 {
            let _ = world.poll(&request).await;
            assert_eq!(world.client.hosts()[0].open_for, None, "{what:?}");
        }
        world.handle.clear_faults();
    }
}

/// If tokens come from another host, each host has its own breaker.
#[tokio::test]
async fn a_dead_host_for_tokens_does_not_open_the_breaker_of_the_api() {
    let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let token_url = format!("http://{}/token", dead.local_addr().unwrap());
    drop(dead);
    let world = configured(manual(), |config| {
        config.token_url = token_url;
        config.breaker_failures = 1;
        (config.breaker_first, config.breaker_max) = (FIRST, FIRST);
    })
    .await;
    let request = world.request();
    assert!(matches!(world.poll(&request).await, Err(Error::NotSent { .. })));
    let hosts = world.client.hosts();
    assert_eq!(hosts.iter().map(|host| host.open_for.is_some()).collect::<Vec<_>>(), [false, true]);
    assert_eq!(world.calls(), [0; 4]);
}
