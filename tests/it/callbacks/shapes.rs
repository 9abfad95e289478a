//! Every documented or observed shape of a callback, from the listener to a caller, and arbitrary
//! bodies.

use proptest::prelude::*;
use thingspace_gateway::{
    callbacks::CallbackOutcome,
    proto::esim::{DeviceIdentifiers, DeviceState, DownloadProfileRequest},
};

use super::{Sender, sender::about};
use crate::harness::{
    Gateway, Upstream, device, eventually, get_status, order, place, states, status_call, within,
};

macro_rules! fixture {
    ($name:literal, $state:ident) => {
        (
            $name,
            DeviceState::$state,
            include_str!(concat!("../../fixtures/callbacks/", $name, ".json")),
        )
    };
}

const FIXTURES: [(&str, DeviceState, &str); 12] = [
    fixture!("page_example", Succeeded),
    fixture!("with_credentials", Succeeded),
    fixture!("pascal_case", Succeeded),
    fixture!("lists", Succeeded),
    fixture!("unknown_fields", Succeeded),
    fixture!("failure", Failed),
    fixture!("fault_without_status", Failed),
    fixture!("warning", Waiting),
    fixture!("missing_ids", Succeeded),
    fixture!("ids_in_two_places", Succeeded),
    fixture!("without_first_brace", Succeeded),
    fixture!("numbers", Succeeded),
];

#[tokio::test]
async fn every_shape_moves_its_request() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.with_callbacks()).await;
    let sender = Sender::new(&gateway);
    let mut client = gateway.client().await;
    for (name, state, body) in FIXTURES {
        let device = DeviceIdentifiers {
            eid: "89049032007008882600086299134038".to_owned(),
            iccid: "89148000004292933820".to_owned(),
            imei: "490154203237518".to_owned(),
            mdn: String::new(),
        };
        let order = DownloadProfileRequest { devices: vec![device], ..order(name, []) };
        let placed = within("an order", client.download_profile(order)).await.unwrap().into_inner();
        let mut body = body.replace("r-1", &placed.request_id);
        if !body.to_lowercase().contains("username") {
            body = body.replacen('{', r#"{"username":"user","password":"secret","#, 1);
        }
        assert_eq!(sender.post(&body).await, 200, "{name}");
        let id = thingspace_gateway::identity::RequestId::parse(&placed.request_id).unwrap();
        eventually(name, async || {
            states(&get_status(&mut gateway.client().await, status_call(&id)).await.unwrap())
                == [state]
        })
        .await;
    }
    gateway.stop().await;
}

/// It goes to the quarantine, whether the other account is configured or not.
#[tokio::test]
async fn a_callback_that_names_another_account_moves_no_request() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.with_callbacks()).await;
    let sender = Sender::new(&gateway);
    let mut client = gateway.client().await;
    let id = place(&mut client, "key", 0..1).await.unwrap();
    let named = |name: &str| {
        about(&id, &device(0), "Failed").replacen('{', &format!(r#"{{"accountName":"{name}","#), 1)
    };
    for name in [upstream.accounts[1].as_str(), "0000999999-00009"] {
        assert_eq!(sender.post(&named(name)).await, 200);
    }
    assert_eq!(
        (sender.count(CallbackOutcome::Quarantined), sender.count(CallbackOutcome::Stored)),
        (2, 0)
    );
    assert_eq!(
        states(&get_status(&mut client, status_call(&id)).await.unwrap()),
        [DeviceState::Pending]
    );
    assert_eq!(sender.post(&named(upstream.accounts[0].as_str())).await, 200);
    eventually("its own account's callback is folded", async || {
        states(&get_status(&mut gateway.client().await, status_call(&id)).await.unwrap())
            == [DeviceState::Failed]
    })
    .await;
    gateway.stop().await;
}

/// Every body is answered, and never with an error of the gateway.
#[test]
fn no_body_makes_the_listener_fail() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (upstream, gateway) = runtime.block_on(async {
        let upstream = Upstream::manual().await;
        let gateway = Gateway::start(upstream.with_callbacks()).await;
        (upstream, gateway)
    });
    let sender = Sender::new(&gateway);
    let damaged = (
        any::<prop::sample::Index>(),
        any::<prop::sample::Index>(),
        0_usize..30,
        "[\\PC\"{}\\[\\],:0-9]{0,12}",
    )
        .prop_map(|(fixture, at, length, insert)| (fixture.get(&FIXTURES).2, at, length, insert))
        .prop_map(|(body, at, length, insert)| {
            let mut body = body.as_bytes().to_vec();
            let at = at.index(body.len() + 1);
            let end = (at + length).min(body.len());
            body.splice(at..end, insert.bytes());
            String::from_utf8_lossy(&body).into_owned()
        });
    let bodies = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..4000),
        damaged.prop_map(|body| sender.sign(&body).into_bytes()),
        (1_usize..30_000, "[\\[{\"]{1,9}")
            .prop_map(|(times, text)| text.repeat(times).into_bytes()),
    ];
    let config =
        ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(body in bodies)| {
        let status = runtime.block_on(sender.post_bytes(body));
        prop_assert!([200, 401, 413, 503].contains(&status), "{status}");
    });
    // Only a bounded number of unreadable bodies without a password is kept.
    assert_eq!(
        (sender.count(CallbackOutcome::NotStored), sender.count(CallbackOutcome::TooMany)),
        (0, 0)
    );
    runtime.block_on(async {
        let (_, _, body) = FIXTURES[1];
        assert_eq!(sender.post(body).await, 200);
        gateway.stop().await;
        drop(upstream);
    });
}
