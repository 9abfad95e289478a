//! External requests of an account, and requests that do not exist.

use thingspace_gateway::identity::AccountName;

use super::*;

fn account(name: &str) -> AccountName {
    AccountName::parse(name).unwrap()
}

const OTHER_ACCOUNT: &str = "0000123456-00002";

fn not_found() -> (Code, String) {
    (Code::NotFound, "REQUEST_NOT_FOUND".to_owned())
}

#[tokio::test]
async fn an_external_request_is_found() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = upstream.sim.add_request(account(ACCOUNT), (0..3).map(upstream_device));
    let status = get_status(&mut client, status_call(&id)).await.unwrap();
    assert_eq!((status.state(), states(&status)), (RequestState::Pending, vec![Pending; 3]));
    assert_eq!(status.account_name, ACCOUNT);
    assert_eq!(upstream.sim.ledger().polls_of(&id), 1, "one status call, one call");
    // "Success" above devices that are pending.
    upstream.sim.finish(&id, &device(1).iccid, DeviceResult::Success);
    let status = get_status(&mut client, status_call(&id)).await.unwrap();
    assert_eq!(
        (status.state(), states(&status)),
        (RequestState::Pending, vec![Pending, Succeeded, Pending])
    );
    upstream.sim.finish(&id, &device(0).iccid, DeviceResult::Failed);
    upstream.sim.finish(&id, &device(2).iccid, DeviceResult::Failed);
    let status = get_status(&mut client, status_call(&id)).await.unwrap();
    assert_eq!(
        (status.state(), states(&status)),
        (RequestState::PartiallySucceeded, vec![Failed, Succeeded, Failed])
    );
    gateway.stop().await;
}

#[tokio::test]
async fn it_is_pending_as_long_as_its_devices_may_not_be_complete() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = upstream.sim.add_request(account(ACCOUNT), (0..2).map(upstream_device));
    upstream.sim.finish_all(&id, DeviceResult::Success);
    upstream.sim.set_overall(&id, Some("Pending"));
    let status = get_status(&mut client, status_call(&id)).await.unwrap();
    assert_eq!((status.state(), states(&status)), (RequestState::Pending, vec![Succeeded; 2]));
    upstream.sim.set_overall(&id, None);
    let status = get_status(&mut client, status_call(&id)).await.unwrap();
    assert_eq!((status.state(), states(&status)), (RequestState::Succeeded, vec![Succeeded; 2]));
    gateway.stop().await;
}

#[tokio::test]
async fn without_a_list_of_devices_the_overall_status_is_all_there_is() {
    let upstream = Upstream::manual().await;
    upstream.sim.set_shape(Shape { list: List::Absent, ..Shape::default() });
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = upstream.sim.add_request(account(ACCOUNT), [upstream_device(1)]);
    for word in ["Pending", "Warning", "no such word"] {
        upstream.sim.set_overall(&id, Some(word));
        let status = get_status(&mut client, status_call(&id)).await.unwrap();
        assert_eq!((status.state(), counts(&status)), (RequestState::Pending, [0; 4]), "{word}");
    }
    upstream.sim.set_overall(&id, Some("Failed"));
    assert_eq!(
        get_status(&mut client, status_call(&id)).await.unwrap().state(),
        RequestState::Failed
    );
    gateway.stop().await;
}

#[tokio::test]
async fn it_can_be_waited_for() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let id = upstream.sim.add_request(account(ACCOUNT), (0..2).map(upstream_device));
    let first = get_status(&mut client, status_call(&id)).await.unwrap();
    let mut watching = watch(&mut client, &id, "").await.unwrap();
    watching.event().await;
    let mut waiting = client.clone();
    let status_call = long_poll(&id, Duration::from_secs(45), first.revision);
    let answer = tokio::spawn(async move { get_status(&mut waiting, status_call).await.unwrap() });
    upstream.sim.finish_all(&id, DeviceResult::Success);
    assert_eq!(answer.await.unwrap().state(), RequestState::Succeeded);
    assert!(!watching.rest().await.is_empty());
    gateway.stop().await;
}

#[tokio::test]
async fn a_request_of_another_account_is_not_found_without_asking() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", [1]).await.unwrap();
    let other =
        GetRequestStatusRequest { account_name: OTHER_ACCOUNT.to_owned(), ..status_call(&id) };
    assert_eq!(kind(&get_status(&mut client, other).await.unwrap_err()), not_found());
    assert_eq!(upstream.sim.ledger().polls(), 0);
    gateway.stop().await;
}

#[tokio::test]
async fn not_knowing_it_on_one_account_says_nothing_of_another() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = upstream.sim.add_request(account(OTHER_ACCOUNT), [upstream_device(1)]);
    let asked = |account: &str| GetRequestStatusRequest {
        account_name: account.to_owned(),
        ..status_call(&id)
    };
    assert_eq!(kind(&get_status(&mut client, asked(ACCOUNT)).await.unwrap_err()), not_found());
    assert_eq!(
        get_status(&mut client, asked(OTHER_ACCOUNT)).await.unwrap().account_name,
        OTHER_ACCOUNT
    );
    assert_eq!(kind(&get_status(&mut client, asked(ACCOUNT)).await.unwrap_err()), not_found());
    assert_eq!(upstream.sim.ledger().polls_of(&id), 2);
    gateway.stop().await;
}

#[tokio::test]
async fn an_unknown_request_is_queried_once() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let client = gateway.client().await;
    let id = RequestId::parse("00000000-0000-0000-0000-000000000000").unwrap();
    let asking = || {
        let mut client = client.clone();
        let status_call = status_call(&id);
        async move { get_status(&mut client, status_call).await.unwrap_err() }
    };
    for status in join_all((0..10).map(|_| asking())).await {
        assert_eq!(kind(&status), not_found());
    }
    for _ in 0..10 {
        assert_eq!(kind(&asking().await), not_found());
    }
    assert_eq!(upstream.sim.ledger().polls_of(&id), 1);
    gateway.stop().await;
}
