//! The largest possible order: no message exceeds its bound.

use std::collections::HashMap;

use prost::Message;
use thingspace_gateway::{
    identity::AccountName,
    proto::{
        esim::{
            DeviceIdentifiers, DeviceState, DeviceStatus, DownloadProfileRequest,
            GetRequestStatusRequest, RequestState, WatchRequestRequest, WatchRequestResponse,
            watch_request_response::Event,
        },
        storage,
    },
    requests::{
        fold::event::Kind,
        token::{Resume, TokenKey},
    },
    simulator::{DeviceResult, Identifiers, Mode, Options, Shape},
    store::{Position, Store, embedded::Embedded},
};

use crate::{RETENTION, append_all, harness::*};

const DEVICES: usize = 10_000;
const MIB: usize = 1 << 20;

/// A device whose fields have their longest values.
fn longest_device(n: usize) -> DeviceIdentifiers {
    DeviceIdentifiers {
        eid: format!("89049032{n:024}"),
        iccid: format!("891480000{n:010}0"),
        imei: format!("49{n:014}"),
        mdn: String::new(),
    }
}

fn longest_account() -> String {
    "0000123456-00001".repeat(2)
}

/// Reads all pages of a status, and checks their sizes.
pub(crate) async fn pages(client: &mut Client, account: &str, id: &str) -> Vec<DeviceStatus> {
    let mut devices = Vec::new();
    let mut status_call = GetRequestStatusRequest {
        account_name: account.to_owned(),
        request_id: id.to_owned(),
        page_size: 1_000,
        ..GetRequestStatusRequest::default()
    };
    loop {
        let page = within("a page", client.get_request_status(status_call.clone()))
            .await
            .unwrap()
            .into_inner();
        assert!(page.encoded_len() <= 4 * MIB, "a page of {} bytes", page.encoded_len());
        let more = page.status.unwrap().devices;
        assert!((1..=1_000).contains(&more.len()));
        devices.extend(more);
        if page.next_page_token.is_empty() {
            return devices;
        }
        status_call.page_token = page.next_page_token;
    }
}

/// Reads a watch to its end with OK. Checks the size of each message, and that each has a token
/// unless `more` is set.
async fn watch_all(
    client: &mut Client,
    account: &str,
    id: &str,
    token: &str,
) -> Vec<WatchRequestResponse> {
    let request = WatchRequestRequest {
        account_name: account.to_owned(),
        request_id: id.to_owned(),
        resume_token: token.to_owned(),
    };
    let mut stream = within("a watch", client.watch_request(request)).await.unwrap().into_inner();
    let mut messages = Vec::new();
    while let Some(message) = within("a message", stream.message()).await.unwrap() {
        assert!(message.encoded_len() <= MIB, "a message of {} bytes", message.encoded_len());
        assert_eq!(message.more, message.resume_token.is_empty());
        messages.push(message);
    }
    assert!(messages.last().is_some_and(|last| !last.more));
    messages
}

/// The devices in snapshots and in changes, in the order in which they came.
fn shown(messages: Vec<WatchRequestResponse>) -> (Vec<DeviceStatus>, Vec<DeviceStatus>) {
    let (mut snapshot, mut changes) = (Vec::new(), Vec::new());
    for message in messages {
        match message.event.unwrap() {
            Event::Snapshot(status) => snapshot.extend(status.devices),
            Event::Change(change) => changes.extend(change.devices),
            Event::Heartbeat(_) => {}
        }
    }
    (snapshot, changes)
}

/// An order for 10,000 devices with the longest fields, from the call to its last page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_order_end_to_end() {
    let account = longest_account();
    let upstream = Upstream::start(Options {
        mode: Mode::Manual,
        accounts: vec![AccountName::parse(&account).unwrap()],
        shape: Shape { identifiers: Identifiers::All, ..Shape::default() },
        ..Options::default()
    })
    .await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let order = DownloadProfileRequest {
        account_name: account.clone(),
        devices: (0..DEVICES).map(longest_device).collect(),
        service_plan: "\u{1f4f6}".repeat(128),
        idempotency_key: "k".repeat(128),
        validate_only: false,
    };
    let placed =
        within("the order", client.download_profile(order.clone())).await.unwrap().into_inner();
    let again = within("its repeat", client.download_profile(order)).await.unwrap().into_inner();
    assert_eq!((again.request_id.as_str(), again.replayed), (placed.request_id.as_str(), true));
    let ledger = upstream.sim.ledger();
    assert_eq!(ledger.orders.len(), 1);
    let id = ledger.orders[0].request_id.clone();
    assert_eq!(placed.request_id, id.as_str());

    let watching = tokio::spawn({
        let (mut client, account, id) =
            (gateway.client().await, account.clone(), placed.request_id.clone());
        async move { watch_all(&mut client, &account, &id, "").await }
    });
    let pending = pages(&mut client, &account, id.as_str()).await;
    let ordered: Vec<_> = (0..DEVICES).map(longest_device).collect();
    let identifiers = |devices: &[DeviceStatus]| -> Vec<_> {
        devices.iter().map(|device| device.identifiers.clone().unwrap()).collect()
    };
    assert!(identifiers(&pending) == ordered);
    assert!(pending.iter().all(|device| device.state() == DeviceState::Pending));

    upstream.sim.finish_all(&id, DeviceResult::Failed);
    let messages = watching.await.unwrap();
    let last = messages.last().unwrap().event.clone().unwrap();
    let state = match last {
        Event::Snapshot(status) => status.state(),
        Event::Change(change) => change.state(),
        Event::Heartbeat(heartbeat) => heartbeat.state(),
    };
    assert_eq!(state, RequestState::Failed);
    let (snapshot, changes) = shown(messages);
    assert!(identifiers(&snapshot) == ordered);
    let states: HashMap<_, _> = snapshot
        .iter()
        .chain(&changes)
        .map(|d| (d.identifiers.clone().unwrap().eid, d.state()))
        .collect();
    assert_eq!(states.len(), DEVICES);
    assert!(states.values().all(|state| *state == DeviceState::Failed));

    let failed = pages(&mut client, &account, id.as_str()).await;
    assert!(identifiers(&failed) == ordered);
    assert!(failed.iter().all(|device| device.state() == DeviceState::Failed));
    gateway.stop().await;
}

/// Every one of 10,000 devices failed, each with the longest text that is kept: 256 characters of
/// four bytes. Only callbacks have texts, so the test stores events of callbacks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_device_failed_with_a_long_text() {
    const ID: &str = "big";
    let upstream = Upstream::manual().await;
    let config = upstream.quiet();

    let stored = |n| {
        let ids = longest_device(n);
        storage::Device { eid: ids.eid, iccid: ids.iccid, imei: ids.imei, mdn: ids.mdn }
    };
    let text = "\u{1f4f6}".repeat(256);
    let accepted = Kind::Accepted(storage::Accepted {
        order_id: "order".to_owned(),
        account: ACCOUNT.to_owned(),
        service_plan: String::new(),
        devices: (0..DEVICES).map(stored).collect(),
        caller: String::new(),
    });
    let failed = |n| {
        Kind::CalledBack(storage::CalledBack {
            account: ACCOUNT.to_owned(),
            device: Some(stored(n)),
            status: storage::StatusClass::Failed.into(),
            fault: Some(storage::Fault { code: "9".repeat(128), message: text.clone() }),
            profile: None,
        })
    };
    let store = Embedded::open(&config.store.path, RETENTION).unwrap();
    let events = std::iter::once(accepted).chain((0..DEVICES).map(failed));
    let positions = append_all(&store, events.map(|kind| (ID.to_owned(), kind))).await;
    let from_the_first = resume_token(&store, ID, positions[0], 1).await;
    store.close().await;

    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    let is_long =
        |device: &DeviceStatus| device.fault.as_ref().is_some_and(|fault| fault.message == text);
    let pages = pages(&mut client, ACCOUNT, ID).await;
    assert_eq!(pages.len(), DEVICES);
    assert!(pages.iter().all(is_long));
    let (snapshot, changes) = shown(watch_all(&mut client, ACCOUNT, ID, "").await);
    assert!(changes.is_empty() && snapshot == pages);
    // And transition by transition, from the log.
    let (snapshot, changes) = shown(watch_all(&mut client, ACCOUNT, ID, &from_the_first).await);
    assert!(snapshot.is_empty() && changes == pages);
    gateway.stop().await;
}

/// Returns the token of a watch that has read a request up to a revision.
pub async fn resume_token(store: &Embedded, id: &str, position: Position, revision: u64) -> String {
    let key = TokenKey::load_or_create(store).await.unwrap();
    let id = thingspace_gateway::identity::RequestId::parse(id).unwrap();
    key.resume(&id, Resume { position, revision })
}
