//! Wrong fields: all violations of a call are reported at once, each with its path, and nothing is
//! sent to ThingSpace.

mod status_calls;

use thingspace_gateway::{
    config::Config,
    identity::RequestId,
    proto::esim::{
        DeviceIdentifiers, DownloadProfileRequest, DownloadProfileResponse,
        GetRequestStatusRequest, WatchRequestRequest,
    },
    simulator::{Endpoint, Ledger},
};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::*;

/// A gateway that has not been called yet.
struct Fresh {
    upstream: Upstream,
    gateway: Gateway,
    client: Client,
}

impl Fresh {
    async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let upstream = Upstream::manual().await;
        let mut config = upstream.quiet();
        change(&mut config);
        let gateway = Gateway::start(config).await;
        let client = gateway.client().await;
        Self { upstream, gateway, client }
    }

    async fn end(self) {
        self.gateway.stop().await;
        assert_eq!(calls(&self.upstream.sim.ledger()), [0; 4]);
    }
}

/// The numbers of all calls to ThingSpace.
fn calls(ledger: &Ledger) -> [u64; 4] {
    [Endpoint::Token, Endpoint::Login, Endpoint::Download, Endpoint::Status]
        .map(|e| ledger.calls(e))
}

/// The path and the description of each violation in a status.
fn violations(status: &Status) -> Vec<(String, String)> {
    assert_eq!(
        (status.code(), reason(status).as_str()),
        (Code::InvalidArgument, "INVALID_FIELD"),
        "{status:?}"
    );
    let bad =
        status.get_details_bad_request().unwrap_or_else(|| panic!("no BadRequest: {status:?}"));
    bad.field_violations.into_iter().map(|v| (v.field, v.description)).collect()
}

fn paths(status: &Status) -> Vec<String> {
    violations(status).into_iter().map(|(path, _)| path).collect()
}

/// The paths of the violations of a valid order after a change. Checks that nothing was sent.
async fn wrong_order(change: impl FnOnce(&mut DownloadProfileRequest)) -> Vec<String> {
    wrong_order_where(|_| (), change).await
}

async fn wrong_order_where(
    configure: impl FnOnce(&mut Config),
    change: impl FnOnce(&mut DownloadProfileRequest),
) -> Vec<String> {
    let mut fresh = Fresh::start(configure).await;
    let mut order = order("k", 0..3);
    change(&mut order);
    let status = within("a refusal", fresh.client.download_profile(order)).await.unwrap_err();
    fresh.end().await;
    paths(&status)
}

#[tokio::test]
async fn every_violation_of_an_order_at_once() {
    let paths = wrong_order(|order| {
        *order = DownloadProfileRequest {
            account_name: "a/b".to_owned(),
            service_plan: "it's".to_owned(),
            idempotency_key: String::new(),
            ..order.clone()
        };
        order.devices[0].eid.pop();
        order.devices[1].iccid.push_str("00");
        order.devices[1].mdn = "5551234567".to_owned();
        order.devices[2].imei = order.devices[0].imei.clone();
    })
    .await;
    let expected = [
        "account_name",
        "devices[0].eid",
        "devices[1].iccid",
        "devices[1].mdn",
        "devices[2].imei",
        "service_plan",
        "idempotency_key",
    ];
    assert_eq!(paths, expected);
}

#[tokio::test]
async fn no_device() {
    assert_eq!(wrong_order(|order| order.devices.clear()).await, ["devices"]);
}

#[tokio::test]
async fn more_devices_than_an_order_may_have() {
    let at_most_two = |config: &mut Config| config.thingspace.max_devices_per_order = 2;
    assert_eq!(wrong_order_where(at_most_two, |_| ()).await, ["devices"]);
}

#[tokio::test]
async fn an_eid_twice() {
    let twice =
        |order: &mut DownloadProfileRequest| order.devices[2].eid = order.devices[0].eid.clone();
    assert_eq!(wrong_order(twice).await, ["devices[2].eid"]);
}

#[tokio::test]
async fn an_iccid_twice() {
    let twice = |order: &mut DownloadProfileRequest| {
        order.devices[1].iccid = order.devices[0].iccid.clone();
    };
    assert_eq!(wrong_order(twice).await, ["devices[1].iccid"]);
}

#[tokio::test]
async fn an_imei_twice() {
    let twice =
        |order: &mut DownloadProfileRequest| order.devices[2].imei = order.devices[1].imei.clone();
    assert_eq!(wrong_order(twice).await, ["devices[2].imei"]);
}

#[tokio::test]
async fn a_repeated_id_names_the_first() {
    let mut fresh = Fresh::start(|_| ()).await;
    let mut order = order("k", [0, 1]);
    order.devices[1].eid = order.devices[0].eid.clone();
    let status = fresh.client.download_profile(order).await.unwrap_err();
    let [(path, description)] = &violations(&status)[..] else { panic!("{status:?}") };
    assert_eq!(
        (path.as_str(), description.as_str()),
        ("devices[1].eid", "is the same as devices[0].eid")
    );
    fresh.end().await;
}

#[tokio::test]
async fn ids_of_wrong_lengths_or_digits() {
    let eids = [
        "",
        "1",
        &"8".repeat(31),
        &"8".repeat(33),
        &format!("{}x", "8".repeat(31)),
        "8904903200700888٢",
    ];
    let iccids = ["", &"8".repeat(18), &"8".repeat(21), &format!("+{}", "8".repeat(19))];
    let imeis = ["1", &"8".repeat(14), &"8".repeat(17), " 49015420323751"];
    let devices = eids.len() + iccids.len() + imeis.len();
    let paths = wrong_order(|order| {
        order.devices = (0..devices).map(device).collect();
        let mut next = order.devices.iter_mut();
        eids.iter().zip(&mut next).for_each(|(&eid, device)| device.eid = eid.to_owned());
        iccids.iter().zip(&mut next).for_each(|(&iccid, device)| device.iccid = iccid.to_owned());
        imeis.iter().zip(&mut next).for_each(|(&imei, device)| device.imei = imei.to_owned());
    })
    .await;
    let kinds = [("eid", eids.len()), ("iccid", iccids.len()), ("imei", imeis.len())];
    let kinds = kinds.into_iter().flat_map(|(kind, count)| std::iter::repeat_n(kind, count));
    let expected: Vec<_> =
        kinds.enumerate().map(|(at, kind)| format!("devices[{at}].{kind}")).collect();
    assert_eq!(paths, expected);
}

#[tokio::test]
async fn characters_that_thingspace_refuses() {
    for character in ['\'', '<', '\\'] {
        let paths = wrong_order(|order| {
            order.account_name.insert(3, character);
            order.service_plan.push(character);
            order.devices[0].eid.replace_range(..1, &character.to_string());
            order.devices[1].iccid.replace_range(..1, &character.to_string());
            order.devices[2].imei.replace_range(..1, &character.to_string());
        })
        .await;
        let ids = ["devices[0].eid", "devices[1].iccid", "devices[2].imei"];
        assert_eq!(paths, [&["account_name"], &ids[..], &["service_plan"]].concat(), "{character}");
    }
}

#[tokio::test]
async fn no_account() {
    assert_eq!(wrong_order(|order| order.account_name.clear()).await, ["account_name"]);
}

#[tokio::test]
async fn a_service_plan_too_long_or_with_control_characters() {
    assert_eq!(wrong_order(|order| order.service_plan = "p".repeat(129)).await, ["service_plan"]);
    assert_eq!(wrong_order(|order| order.service_plan = "p\n".to_owned()).await, ["service_plan"]);
}

#[tokio::test]
async fn no_key() {
    assert_eq!(wrong_order(|order| order.idempotency_key.clear()).await, ["idempotency_key"]);
}

#[tokio::test]
async fn a_key_that_is_too_long_or_not_printable() {
    for key in ["k".repeat(129), "k\n".to_owned(), "\u{7f}".to_owned(), "ключ".to_owned()] {
        assert_eq!(wrong_order(|order| order.idempotency_key = key).await, ["idempotency_key"]);
    }
}

#[tokio::test]
async fn an_mdn_in_an_order() {
    let given = |order: &mut DownloadProfileRequest| order.devices[1].mdn = "5551234567".to_owned();
    assert_eq!(wrong_order(given).await, ["devices[1].mdn"]);
}

#[tokio::test]
async fn more_violations_than_a_status_can_carry() {
    const DEVICES: usize = 10_000;
    let mut fresh = Fresh::start(|_| ()).await;
    let mut order = order("k", 0..DEVICES);
    for device in &mut order.devices {
        device.eid.clear();
        device.iccid.clear();
    }
    let status = within("a refusal", fresh.client.download_profile(order)).await.unwrap_err();
    let violations = violations(&status);
    let (last, told) = violations.split_last().unwrap();
    assert_eq!(
        told[..2],
        [
            ("devices[0].eid".to_owned(), "is required".to_owned()),
            ("devices[0].iccid".to_owned(), "is required".to_owned())
        ]
    );
    let more = 2 * DEVICES - told.len();
    assert_eq!(*last, (String::new(), format!("and {more} more violations")));
    assert!(status.details().len() <= 2_000, "{}", status.details().len());
    assert!(trailer_bytes(&status) < NGINX_HEADER_BYTES, "{}", trailer_bytes(&status));
    let begin = "devices[0].eid: is required; and 19999 more";
    assert_eq!(status.message(), begin);
    fresh.end().await;
}

/// The bytes of headers or trailers that nginx accepts by default (`grpc_buffer_size`).
const NGINX_HEADER_BYTES: usize = 4 << 10;

/// The bytes of a status's trailers in HTTP/1, which is longer than in HPACK.
fn trailer_bytes(status: &Status) -> usize {
    let mut trailers = http::HeaderMap::new();
    status.add_header(&mut trailers).unwrap();
    trailers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// Trailers with two violations for each of 42 devices were too large for nginx. It answered 502,
/// which clients took for UNAVAILABLE and retried forever.
#[tokio::test]
async fn violations_of_an_order_pass_through_nginx() {
    let mut fresh = Fresh::start(|_| ()).await;
    let mut order = order("k", 0..42);
    for device in &mut order.devices {
        device.eid.pop();
        device.iccid = "89148".to_owned();
    }
    let status = within("a refusal", fresh.client.download_profile(order)).await.unwrap_err();
    assert_eq!(status.message(), "devices[0].eid: must be 32 digits; and 83 more");
    assert!(trailer_bytes(&status) < NGINX_HEADER_BYTES, "{}", trailer_bytes(&status));
    fresh.end().await;
}

#[tokio::test]
async fn wrong_check_digits_are_accepted_unless_configured() {
    let mut fresh = Fresh::start(|_| ()).await;
    place(&mut fresh.client, "k", 0..3).await.unwrap();
    assert_eq!(fresh.upstream.sim.ledger().orders.len(), 1);
    fresh.gateway.stop().await;
}

#[tokio::test]
async fn wrong_check_digits_are_refused_when_configured() {
    let strict = |config: &mut Config| config.thingspace.strict_checksums = true;
    let right = |device: &mut DeviceIdentifiers| {
        device.eid = "89049032007008882600086299134038".to_owned();
        device.iccid = "89148000004292933820".to_owned();
        device.imei = "490154203237518".to_owned();
    };
    let paths = wrong_order_where(strict, |order| {
        order.devices.truncate(2);
        right(&mut order.devices[0]);
        order.devices[1].eid = "89049032007008882600086299134039".to_owned();
        order.devices[1].iccid = "89148000000800139708".to_owned();
        order.devices[1].imei = "990013907835573".to_owned();
    });
    assert_eq!(paths.await, ["devices[1].eid", "devices[1].iccid", "devices[1].imei"]);
}

#[tokio::test]
async fn an_order_that_is_only_validated() {
    let mut fresh = Fresh::start(|_| ()).await;
    let mut order = order(&"k".repeat(128), 0..3);
    order.validate_only = true;
    let answer = fresh.client.download_profile(order.clone()).await.unwrap().into_inner();
    assert_eq!(answer, DownloadProfileResponse::default());
    order.account_name = "0000123456-00009".to_owned();
    let status = fresh.client.download_profile(order.clone()).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "ACCOUNT_NOT_CONFIGURED")
    );
    order.devices.clear();
    assert_eq!(paths(&fresh.client.download_profile(order).await.unwrap_err()), ["devices"]);
    fresh.end().await;
}

#[tokio::test]
async fn validating_does_not_use_up_the_key() {
    let mut fresh = Fresh::start(|_| ()).await;
    let mut validated = order("k", 0..3);
    validated.validate_only = true;
    fresh.client.download_profile(validated).await.unwrap();
    let placed = fresh.client.download_profile(order("k", 5..6)).await.unwrap().into_inner();
    assert!(!placed.replayed);
    fresh.gateway.stop().await;
}

#[tokio::test]
async fn an_account_without_credentials() {
    const OTHER: &str = "0000123456-00009";
    let mut fresh = Fresh::start(|_| ()).await;
    let id = RequestId::parse("r1").unwrap();
    let order = DownloadProfileRequest { account_name: OTHER.to_owned(), ..order("k", 0..3) };
    let asked = GetRequestStatusRequest { account_name: OTHER.to_owned(), ..status_call(&id) };
    let watched = WatchRequestRequest {
        account_name: OTHER.to_owned(),
        request_id: id.to_string(),
        resume_token: String::new(),
    };
    let refusals = [
        fresh.client.download_profile(order).await.unwrap_err(),
        fresh.client.get_request_status(asked).await.unwrap_err(),
        fresh.client.watch_request(watched).await.unwrap_err(),
    ];
    for status in refusals {
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::NotFound, "ACCOUNT_NOT_CONFIGURED")
        );
    }
    fresh.end().await;
}
