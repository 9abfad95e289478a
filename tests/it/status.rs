//! `GetRequestStatus`: the status of a request, as recent as the call requires, with no more status
//! queries than that needs.

mod elsewhere;
mod shapes;

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use futures_util::future::join_all;
use prost_types::Duration as Span;
use thingspace_gateway::{
    identity::RequestId,
    proto::esim::{
        DeviceCounts,
        DeviceState::{Failed, Pending, Succeeded, Waiting},
        GetRequestStatusRequest, RequestState, RequestStatus, StatusView,
    },
    simulator::{DeviceResult, Endpoint, Fault, Gate, List, Options, Shape, What, When},
};
use tonic::{Code, Request};
use tonic_types::StatusExt;

use crate::harness::*;

const HOUR: Duration = Duration::from_hours(1);

fn span(duration: Duration) -> Span {
    duration.try_into().unwrap()
}

/// A status call that is answered when the revision exceeds `after_revision`, or after `wait`.
fn long_poll(id: &RequestId, wait: Duration, after_revision: i64) -> GetRequestStatusRequest {
    GetRequestStatusRequest { wait: Some(span(wait)), after_revision, ..status_call(id) }
}

fn counts(status: &RequestStatus) -> [i32; 4] {
    let DeviceCounts { total, pending, succeeded, failed } = status.counts.unwrap();
    [total, pending, succeeded, failed]
}

#[tokio::test]
async fn the_whole_and_each_device() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..4).await.unwrap();
    upstream.sim.finish(&id, &device(0).eid, DeviceResult::Success);
    upstream.sim.finish(&id, &device(1).iccid, DeviceResult::Failed);
    upstream.sim.finish(&id, &device(2).iccid, DeviceResult::Word("Warning"));

    let full = get_status(&mut client, status_call(&id)).await.unwrap();
    assert_eq!((full.account_name.as_str(), full.request_id.as_str()), (ACCOUNT, id.as_str()));
    assert_eq!(
        (full.state(), full.revision, full.polling_stopped),
        (RequestState::Pending, 2, false)
    );
    assert_eq!(counts(&full), [4, 2, 1, 1]);
    let identifiers: Vec<_> =
        full.devices.iter().map(|device| device.identifiers.clone().unwrap()).collect();
    assert_eq!(identifiers, (0..4).map(device).collect::<Vec<_>>());
    assert_eq!(states(&full), [Succeeded, Failed, Waiting, Pending]);

    let basic = GetRequestStatusRequest { view: StatusView::Basic.into(), ..status_call(&id) };
    let basic = get_status(&mut client, basic).await.unwrap();
    assert_eq!(basic, RequestStatus { devices: Vec::new(), ..full.clone() });
    let view = GetRequestStatusRequest { view: StatusView::Full.into(), ..status_call(&id) };
    assert_eq!(get_status(&mut client, view).await.unwrap(), full);
    gateway.stop().await;
}

#[tokio::test]
async fn pages_have_each_device_once_and_in_order() {
    const DEVICES: usize = 2_500;
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..DEVICES).await.unwrap();
    for (page_size, pages) in
        [(0, [1_000, 1_000, 500]), (5_000, [1_000, 1_000, 500]), (900, [900, 900, 700])]
    {
        let (mut page_token, mut sizes, mut eids) = (String::new(), Vec::new(), Vec::new());
        loop {
            let max_age = Some(span(HOUR));
            let page =
                GetRequestStatusRequest { page_size, page_token, max_age, ..status_call(&id) };
            let answer =
                within("a page", client.get_request_status(page)).await.unwrap().into_inner();
            let status = answer.status.unwrap();
            assert_eq!(counts(&status), [2_500, 2_500, 0, 0]);
            sizes.push(status.devices.len());
            eids.extend(status.devices.into_iter().map(|device| device.identifiers.unwrap().eid));
            page_token = answer.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(sizes, pages);
        assert!(eids.into_iter().eq((0..DEVICES).map(|n| device(n).eid)));
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_recent_answer_is_used_again() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", [1]).await.unwrap();
    for (max_age, polls) in
        [(HOUR, 1), (HOUR, 1), (Duration::ZERO, 2), (HOUR, 2), (Duration::ZERO, 3)]
    {
        get_status(
            &mut client,
            GetRequestStatusRequest { max_age: Some(span(max_age)), ..status_call(&id) },
        )
        .await
        .unwrap();
        assert_eq!(upstream.sim.ledger().polls_of(&id), polls);
    }
    gateway.stop().await;
}

#[tokio::test]
async fn within_min_age_no_query_is_sent() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    config.polling.min_age = HOUR;
    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", [1]).await.unwrap();
    for _ in 0..3 {
        get_status(&mut client, status_call(&id)).await.unwrap();
    }
    assert_eq!(upstream.sim.ledger().polls_of(&id), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn a_hundred_status_calls_at_once_are_one_query() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    // A call that arrives after the answer gets it, too.
    config.polling.min_age = HOUR;
    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..3).await.unwrap();
    let gate = Gate::default();
    upstream.sim.inject(Fault::always(
        Endpoint::Status,
        When::BeforeEffect,
        What::Hold(gate.clone()),
    ));
    let asking = (0..100).map(|_| {
        let (mut client, status_call) = (client.clone(), status_call(&id));
        tokio::spawn(async move { get_status(&mut client, status_call).await.unwrap() })
    });
    let asking: Vec<_> = asking.collect();
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.in_flight(Endpoint::Status) == 1).await;
    upstream.sim.finish_all(&id, DeviceResult::Success);
    gate.open();
    for answer in join_all(asking).await {
        assert_eq!(answer.unwrap().state(), RequestState::Succeeded);
    }
    assert_eq!(upstream.sim.ledger().polls_of(&id), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn a_finished_request_is_never_queried_again() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let finished = place(&mut client, "finished", [1, 2]).await.unwrap();
    let open = place(&mut client, "open", [3]).await.unwrap();
    upstream.sim.finish_all(&finished, DeviceResult::Success);
    watch(&mut client, &finished, "").await.unwrap().rest().await;
    let polls = upstream.sim.ledger().polls_of(&finished);
    let first = get_status(&mut client, status_call(&finished)).await.unwrap();
    assert_eq!(first.state(), RequestState::Succeeded);
    gateway.stop().await;

    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    // Long enough for another poll, if there were one.
    let enough = upstream.sim.ledger().polls_of(&open) + 5;
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls_of(&open) >= enough).await;
    assert_eq!(get_status(&mut client, status_call(&finished)).await.unwrap(), first);
    assert_eq!(upstream.sim.ledger().polls_of(&finished), polls);
    gateway.stop().await;
}

#[tokio::test]
async fn a_long_poll_ends_with_a_change() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", [1, 2]).await.unwrap();
    let mut waiting = client.clone();
    let status_call = long_poll(&id, Duration::from_secs(45), 1);
    let answer = tokio::spawn(async move { get_status(&mut waiting, status_call).await });
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls_of(&id) >= 2).await;
    assert!(!answer.is_finished());
    upstream.sim.finish(&id, &device(1).eid, DeviceResult::Success);
    let status = answer.await.unwrap().unwrap();
    assert_eq!((status.revision, counts(&status)), (2, [2, 1, 1, 0]));
    // A lower revision is answered at once.
    let behind = get_status(&mut client, long_poll(&id, Duration::from_secs(45), 0)).await.unwrap();
    assert_eq!(behind, status);
    gateway.stop().await;
}

#[tokio::test]
async fn a_long_poll_ends_with_the_request() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", [1]).await.unwrap();
    upstream.sim.finish_all(&id, DeviceResult::Failed);
    let status_call = || long_poll(&id, Duration::from_secs(45), 1_000);
    let status = get_status(&mut client, status_call()).await.unwrap();
    assert_eq!((status.state(), status.revision), (RequestState::Failed, 2));
    assert_eq!(get_status(&mut client, status_call()).await.unwrap(), status);
    gateway.stop().await;
}

#[tokio::test]
async fn a_long_poll_ends_in_time() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", [1]).await.unwrap();
    let ended =
        get_status(&mut client, long_poll(&id, Duration::from_millis(50), 1)).await.unwrap();
    assert_eq!((ended.state(), ended.revision), (RequestState::Pending, 1));
    // The caller's own deadline is sooner: it gets an answer, no error.
    let mut request = Request::new(long_poll(&id, Duration::from_secs(45), 1));
    request.set_timeout(Duration::from_secs(1));
    let answer = client.get_request_status(request).await.unwrap().into_inner();
    assert_eq!(answer.status.unwrap(), ended);
    gateway.stop().await;
}

#[tokio::test]
async fn a_drain_answers_long_polls() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", [1]).await.unwrap();
    let status_call = long_poll(&id, Duration::from_secs(45), 1);
    let answer = tokio::spawn(async move { get_status(&mut client, status_call).await });
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.polls_of(&id) >= 2).await;
    gateway.stop().await;
    assert_eq!(answer.await.unwrap().unwrap().revision, 1);
}

#[tokio::test]
async fn a_request_that_was_given_up_is_queried_once_by_each_call() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.config();
    config.polling.give_up = Duration::from_millis(1);
    config.polling.min_age = Duration::ZERO;
    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", [1]).await.unwrap();
    let stopped =
        get_status(&mut client, long_poll(&id, Duration::from_secs(45), 1)).await.unwrap();
    assert!(stopped.polling_stopped);
    upstream.sim.finish_all(&id, DeviceResult::Success);
    let status = get_status(&mut client, long_poll(&id, Duration::from_secs(45), stopped.revision))
        .await
        .unwrap();
    assert_eq!(status.state(), RequestState::Succeeded);
    gateway.stop().await;
}

#[tokio::test]
async fn an_order_that_thingspace_does_not_know_yet_is_pending() {
    let upstream = Upstream::start(Options {
        mode: thingspace_gateway::simulator::Mode::Manual,
        readable_after: HOUR,
        ..Options::default()
    })
    .await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..2).await.unwrap();
    for polls in 1..=2 {
        let status = get_status(&mut client, status_call(&id)).await.unwrap();
        assert_eq!((status.state(), status.revision), (RequestState::Pending, 1));
        assert_eq!(states(&status), [Pending; 2]);
        assert_eq!(upstream.sim.ledger().polls_of(&id), polls);
    }
    gateway.stop().await;
}

#[tokio::test]
async fn without_thingspace_only_what_is_finished_or_recent_is_answered() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let finished = place(&mut client, "finished", [1]).await.unwrap();
    let open = place(&mut client, "open", [2]).await.unwrap();
    upstream.sim.finish_all(&finished, DeviceResult::Success);
    let done = get_status(&mut client, status_call(&finished)).await.unwrap();
    let seen = get_status(&mut client, status_call(&open)).await.unwrap();

    let html = || What::Status {
        status: StatusCode::BAD_GATEWAY,
        content_type: "text/html",
        body: "<html>".to_owned(),
    };
    // One request each, because a failure is the answer for all calls within a second.
    for (n, what) in (3..).zip([html(), What::Drop, What::CutBody]) {
        let another = place(&mut client, &format!("open {n}"), [n]).await.unwrap();
        upstream.sim.inject(Fault::always(Endpoint::Status, When::AfterEffect, what));
        let status = get_status(&mut client, status_call(&another)).await.unwrap_err();
        assert_eq!(kind(&status), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".to_owned()));
        upstream.sim.clear_faults();
    }
    upstream.cut();
    let status = get_status(&mut client, status_call(&open)).await.unwrap_err();
    assert_eq!(kind(&status), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".to_owned()));
    assert_eq!(get_status(&mut client, status_call(&finished)).await.unwrap(), done);
    let recent = GetRequestStatusRequest { max_age: Some(span(HOUR)), ..status_call(&open) };
    assert_eq!(get_status(&mut client, recent).await.unwrap(), seen);
    gateway.stop().await;
}

#[tokio::test]
async fn while_thingspace_fails_callers_do_not_cause_more_queries() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", [0]).await.unwrap();
    let down = What::Status {
        status: StatusCode::SERVICE_UNAVAILABLE,
        content_type: "text/html",
        body: String::new(),
    };
    upstream.sim.inject(Fault::always(Endpoint::Status, When::BeforeEffect, down));
    let began = Instant::now();
    for _ in 0..100 {
        let status = get_status(&mut client, status_call(&id)).await.unwrap_err();
        assert_eq!(kind(&status), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".to_owned()));
    }
    // One status query a second, with three attempts.
    let polls = upstream.sim.ledger().polls();
    assert!(polls <= 3 * (1 + began.elapsed().as_secs()), "{polls}");
    gateway.stop().await;
}

#[tokio::test]
async fn throttling_says_when_to_repeat_the_call() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    for (key, retry_after) in [("first", Some(17)), ("second", None)] {
        let id = place(&mut client, key, [1]).await.unwrap();
        let throttle = What::Throttle { retry_after };
        upstream.sim.inject(Fault::once(Endpoint::Status, When::BeforeEffect, throttle));
        let status = get_status(&mut client, status_call(&id)).await.unwrap_err();
        assert_eq!(kind(&status), (Code::ResourceExhausted, "UPSTREAM_THROTTLED".to_owned()));
        let delay = status.get_details_retry_info().unwrap().retry_delay.unwrap();
        assert!(
            retry_after.is_none_or(|seconds| delay == Duration::from_secs(seconds)),
            "{delay:?}"
        );
        assert!(!delay.is_zero());
    }
    let id = place(&mut client, "third", [1]).await.unwrap();
    get_status(&mut client, status_call(&id)).await.unwrap();
    gateway.stop().await;
}
