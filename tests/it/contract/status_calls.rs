//! Status calls, watches and tokens with wrong fields.

use prost_types::Duration as Span;

use super::*;

/// Returns the fields that an error names when a valid status call is changed. Nothing was sent.
async fn wrong_status_call(change: impl FnOnce(&mut GetRequestStatusRequest)) -> Vec<String> {
    let mut fresh = Fresh::start(|_| ()).await;
    let mut status_call = GetRequestStatusRequest {
        account_name: ACCOUNT.to_owned(),
        request_id: "r1".to_owned(),
        ..GetRequestStatusRequest::default()
    };
    change(&mut status_call);
    let status = get_status(&mut fresh.client, status_call).await.unwrap_err();
    fresh.end().await;
    paths(&status)
}

#[tokio::test]
async fn every_violation_of_a_status_call_at_once() {
    let paths = wrong_status_call(|status_call| {
        *status_call = GetRequestStatusRequest {
            account_name: String::new(),
            request_id: "..".to_owned(),
            max_age: Some(Span { seconds: -1, nanos: 0 }),
            wait: Some(Span { seconds: -1, nanos: 0 }),
            after_revision: -1,
            view: 17,
            page_size: -1,
            page_token: String::new(),
        }
    })
    .await;
    let expected =
        ["account_name", "request_id", "max_age", "wait", "after_revision", "page_size", "view"];
    assert_eq!(paths, expected);
}

#[tokio::test]
async fn no_account() {
    assert_eq!(
        wrong_status_call(|status_call| status_call.account_name.clear()).await,
        ["account_name"]
    );
}

#[tokio::test]
async fn path_characters_in_a_request_id() {
    for id in ["", "a/b", "..", "a%2fb", "a?b", "a#b", "a b", "ä", &"1".repeat(65)] {
        assert_eq!(
            wrong_status_call(|status_call| status_call.request_id = id.to_owned()).await,
            ["request_id"],
            "{id}"
        );
    }
}

#[tokio::test]
async fn a_watch_of_no_account_and_no_request() {
    let mut fresh = Fresh::start(|_| ()).await;
    let status = fresh.client.watch_request(WatchRequestRequest::default()).await;
    assert_eq!(paths(&status.unwrap_err()), ["account_name", "request_id"]);
    fresh.end().await;
}

#[tokio::test]
async fn negative_durations() {
    for negative in [Span { seconds: -1, nanos: 0 }, Span { seconds: 0, nanos: -1 }] {
        let paths = wrong_status_call(|status_call| {
            status_call.wait = Some(negative);
            status_call.max_age = Some(negative);
        });
        assert_eq!(paths.await, ["max_age", "wait"]);
    }
}

#[tokio::test]
async fn an_unknown_view() {
    for view in [-1, 3] {
        assert_eq!(wrong_status_call(|status_call| status_call.view = view).await, ["view"]);
    }
}

#[tokio::test]
async fn a_resume_token_that_is_none() {
    let mut fresh = Fresh::start(|_| ()).await;
    let id = RequestId::parse("r1").unwrap();
    for garbage in ["x", "AAAA", "é", &"A".repeat(84), &"A".repeat(10_000)] {
        let status = watch(&mut fresh.client, &id, garbage).await.err().unwrap();
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::InvalidArgument, "INVALID_RESUME_TOKEN")
        );
    }
    fresh.end().await;
}

#[tokio::test]
async fn a_resume_token_of_another_request() {
    let mut fresh = Fresh::start(|_| ()).await;
    let one = place(&mut fresh.client, "1", [1]).await.unwrap();
    let other = place(&mut fresh.client, "2", [2]).await.unwrap();
    let (_, token) = watch(&mut fresh.client, &one, "").await.unwrap().event().await;
    let status = watch(&mut fresh.client, &other, &token).await.err().unwrap();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::InvalidArgument, "INVALID_RESUME_TOKEN")
    );
    assert_eq!(fresh.upstream.sim.ledger().polls(), 0);
    fresh.gateway.stop().await;
}

#[tokio::test]
async fn a_page_token_that_is_none() {
    for garbage in ["x", "AAAA", "é", &"A".repeat(66), &"A".repeat(10_000)] {
        assert_eq!(
            wrong_status_call(|status_call| status_call.page_token = garbage.to_owned()).await,
            ["page_token"]
        );
    }
}

#[tokio::test]
async fn a_page_token_of_another_request() {
    let mut fresh = Fresh::start(|_| ()).await;
    let one = place(&mut fresh.client, "1", [1, 2]).await.unwrap();
    let other = place(&mut fresh.client, "2", [3, 4]).await.unwrap();
    let first = GetRequestStatusRequest { page_size: 1, ..status_call(&one) };
    let page_token =
        fresh.client.get_request_status(first).await.unwrap().into_inner().next_page_token;
    let (_, resume_token) = watch(&mut fresh.client, &other, "").await.unwrap().event().await;
    let before = fresh.upstream.sim.ledger().polls();
    for page_token in [page_token, resume_token] {
        let status = get_status(
            &mut fresh.client,
            GetRequestStatusRequest { page_token, ..status_call(&other) },
        )
        .await;
        assert_eq!(paths(&status.unwrap_err()), ["page_token"]);
    }
    assert_eq!(fresh.upstream.sim.ledger().polls(), before);
    fresh.gateway.stop().await;
}
