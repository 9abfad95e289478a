//! `orders settle`: what ThingSpace must confirm, what an operator can force, and how a mistake is
//! corrected.

use thingspace_gateway::{identity::AccountName, proto::esim::RequestState};

use super::*;

fn account() -> AccountName {
    AccountName::parse(ACCOUNT).unwrap()
}

/// The ids of the orders of unknown outcome, oldest first.
async fn unknown_orders(file: &Path) -> Vec<String> {
    let listed = json(file, &["orders", "unknown"]).await;
    listed
        .as_array()
        .unwrap()
        .iter()
        .map(|order| order["order_id"].as_str().unwrap().to_owned())
        .collect()
}

fn devices(status: &thingspace_gateway::proto::esim::RequestStatus) -> Vec<String> {
    status.devices.iter().map(|device| device.identifiers.clone().unwrap().iccid).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_thingspace_does_not_confirm_settles_no_order() {
    let upstream = Upstream::manual().await;
    let process = Process::serve(&upstream.quiet(), upstream.dir.path());
    let file = upstream.dir.path().join("gateway.toml");
    let mut client = process.client().await;
    let placed = lose(&upstream, &mut client, "k", 0).await;
    let order = unknown_orders(&file).await.remove(0);
    let settle = async |request: &str| {
        refused(&file, &["orders", "settle", &order, "--request-id", request]).await
    };

    let nobody = settle("deadbeef").await;
    assert!(nobody.contains("knows no request deadbeef") && nobody.contains("--force"), "{nobody}");
    let other = upstream.sim.add_request(account(), [upstream_device(1)]);
    let wrong = settle(other.as_str()).await;
    assert!(wrong.contains("devices") && wrong.contains("not the order's"), "{wrong}");
    upstream.sim.inject(Fault::always(Endpoint::Status, When::BeforeEffect, What::Drop));
    let away = settle(placed.as_str()).await;
    assert!(away.contains("the status query about request"), "{away}");
    assert_eq!(unknown_orders(&file).await, std::slice::from_ref(&order));

    let done =
        told(&file, &["orders", "settle", &order, "--request-id", placed.as_str(), "--force"])
            .await;
    assert!(done.starts_with("Not confirmed: the status query about request"), "{done}");
    assert_eq!(place(&mut client, "k", [0]).await.unwrap(), placed);
    assert_eq!(unknown_orders(&file).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_settlement_can_be_corrected() {
    let upstream = Upstream::manual().await;
    let process = Process::serve(&upstream.quiet(), upstream.dir.path());
    let file = upstream.dir.path().join("gateway.toml");
    let mut client = process.client().await;
    let right = lose(&upstream, &mut client, "k", 0).await;
    let wrong = upstream.sim.add_request(account(), [upstream_device(1)]);
    let order = unknown_orders(&file).await.remove(0);
    let settle = |arguments: &[&str]| {
        let fixed = ["orders", "settle", &order].map(str::to_owned);
        fixed.into_iter().chain(arguments.iter().map(|&text| text.to_owned())).collect::<Vec<_>>()
    };
    let told = async |arguments: &[&str]| {
        let arguments = settle(arguments);
        told(&file, &arguments.iter().map(String::as_str).collect::<Vec<_>>()).await
    };
    let refused = async |arguments: &[&str]| {
        let arguments = settle(arguments);
        refused(&file, &arguments.iter().map(String::as_str).collect::<Vec<_>>()).await
    };
    let iccid = |n: usize| device(n).iccid;

    let done = told(&["--request-id", wrong.as_str(), "--force"]).await;
    assert!(done.contains("Not confirmed: the devices"), "{done}");
    assert_eq!(place(&mut client, "k", [0]).await.unwrap(), wrong);
    assert_eq!(
        devices(&get_status(&mut client, status_call(&wrong)).await.unwrap()),
        [iccid(0)],
        "believed"
    );
    let mut watching = watch(&mut client, &wrong, "").await.unwrap();
    let (_, token) = watching.event().await;

    let again = refused(&["--request-id", right.as_str()]).await;
    assert!(again.contains("already") && again.contains("--force"), "{again}");
    let done = told(&["--request-id", right.as_str(), "--force"]).await;
    assert!(!done.contains("Not confirmed"), "{done}");
    assert_eq!(place(&mut client, "k", [0]).await.unwrap(), right);
    assert_eq!(devices(&get_status(&mut client, status_call(&right)).await.unwrap()), [iccid(0)]);
    // The other one is an external request with its own devices.
    assert_eq!(devices(&get_status(&mut client, status_call(&wrong)).await.unwrap()), [iccid(1)]);
    // Its watch ends. The resumed watch begins with a snapshot.
    assert_eq!(kind(&watching.next().await.unwrap_err()).0, Code::Unavailable);
    let mut resumed = watch(&mut client, &wrong, &token).await.unwrap();
    let (event, _) = resumed.event().await;
    let thingspace_gateway::proto::esim::watch_request_response::Event::Snapshot(snapshot) = event
    else {
        panic!("{event:?}")
    };
    assert_eq!((devices(&snapshot), snapshot.state()), (vec![iccid(1)], RequestState::Pending));

    // Each new settlement replaces the last one, also after a restart.
    told(&["--request-id", wrong.as_str(), "--force"]).await;
    told(&["--request-id", right.as_str(), "--force"]).await;
    assert_eq!(devices(&get_status(&mut client, status_call(&wrong)).await.unwrap()), [iccid(1)]);
    told(&["--not-placed", "--force"]).await;
    process.kill();
    let process = Process::serve(&upstream.quiet(), upstream.dir.path());
    let mut client = process.client().await;
    assert_eq!(
        devices(&get_status(&mut client, status_call(&right)).await.unwrap()),
        [iccid(0)],
        "as ThingSpace says"
    );
    let new = place(&mut client, "k", [0]).await.unwrap();
    assert!(new != right && new != wrong, "the key is free");
    assert_eq!(upstream.sim.ledger().orders.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_orders_cannot_be_one_request_even_by_force() {
    let upstream = Upstream::manual().await;
    let process = Process::serve(&upstream.quiet(), upstream.dir.path());
    let file = upstream.dir.path().join("gateway.toml");
    let mut client = process.client().await;
    let other = place(&mut client, "other", [0]).await.unwrap();
    lose(&upstream, &mut client, "k", 0).await;
    let order = unknown_orders(&file).await.remove(0);
    let settle = ["orders", "settle", &order, "--request-id", other.as_str(), "--force"];
    let taken = refused(&file, &settle).await;
    assert!(taken.contains("another order"), "{taken}");
}
