//! Orders, status calls and watches, as callers make them.

use std::ops::Range;

use thingspace_gateway::{
    identity::{self, Digits, RequestId},
    proto::esim::{
        DeviceIdentifiers, DeviceState, DeviceStatus, DownloadProfileRequest,
        GetRequestStatusRequest, RequestStatus, WatchRequestRequest, WatchRequestResponse,
        watch_request_response::Event,
    },
    simulator::{Endpoint, Fault, Gate, What, When},
};
use tokio::task::JoinHandle;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use super::{Client, DEADLINE, Upstream, within};

pub const ACCOUNT: &str = "0000123456-00001";

/// The `n`th device. Its identifiers have the right shape and differ from those of all others.
pub fn device(n: usize) -> DeviceIdentifiers {
    DeviceIdentifiers {
        eid: format!("89049032{n:024}"),
        iccid: format!("8914800000{n:09}0"),
        imei: format!("49{n:013}"),
        mdn: String::new(),
    }
}

/// The same device as ThingSpace knows it.
pub fn upstream_device(n: usize) -> identity::Device {
    let ids = device(n);
    let [eid, iccid, imei] = [&ids.eid, &ids.iccid, &ids.imei].map(|text| Digits::new(text));
    identity::Device { eid, iccid, imei, mdn: Digits::default() }
}

/// An order for some devices.
pub fn order(key: &str, devices: impl IntoIterator<Item = usize>) -> DownloadProfileRequest {
    DownloadProfileRequest {
        account_name: ACCOUNT.to_owned(),
        devices: devices.into_iter().map(device).collect(),
        service_plan: "plan 1".to_owned(),
        idempotency_key: key.to_owned(),
        validate_only: false,
    }
}

pub async fn place(
    client: &mut Client,
    key: &str,
    devices: impl IntoIterator<Item = usize>,
) -> Result<RequestId, Status> {
    let answer =
        within("an order", client.download_profile(order(key, devices))).await?.into_inner();
    Ok(RequestId::parse(&answer.request_id).unwrap())
}

/// An order that ThingSpace has received, and whose answer it holds until the test opens the gate.
pub struct HeldOrder {
    /// The request that ThingSpace made of it.
    pub id: RequestId,
    gate: Gate,
    placing: JoinHandle<Result<RequestId, Status>>,
}

impl HeldOrder {
    pub async fn begin(
        upstream: &Upstream,
        client: &Client,
        key: &'static str,
        devices: Range<usize>,
    ) -> Self {
        let gate = Gate::default();
        let hold = What::Hold(gate.clone());
        upstream.sim.inject(Fault::once(Endpoint::Download, When::AfterEffect, hold));
        let (mut client, before) = (client.clone(), upstream.sim.ledger().orders.len());
        let placing = tokio::spawn(async move { place(&mut client, key, devices).await });
        let ledger = upstream.sim.wait_until(DEADLINE, |ledger| ledger.orders.len() > before).await;
        Self { id: ledger.orders[before].request_id.clone(), gate, placing }
    }

    pub fn is_answered(&self) -> bool {
        self.placing.is_finished()
    }

    /// Waits for the result of the call, while ThingSpace does not answer.
    pub async fn fails(self) -> Result<RequestId, Status> {
        self.placing.await.unwrap()
    }

    /// Ends the call. ThingSpace answers when the gate is opened.
    pub fn leave(self) -> Gate {
        self.placing.abort();
        self.gate
    }

    /// Lets ThingSpace answer, and waits for the result of the call.
    pub async fn answer(self) -> Result<RequestId, Status> {
        self.gate.open();
        self.placing.await.unwrap()
    }
}

pub fn status_call(id: &RequestId) -> GetRequestStatusRequest {
    GetRequestStatusRequest {
        account_name: ACCOUNT.to_owned(),
        request_id: id.to_string(),
        ..GetRequestStatusRequest::default()
    }
}

pub async fn get_status(
    client: &mut Client,
    status_call: GetRequestStatusRequest,
) -> Result<RequestStatus, Status> {
    let answer = within("a status", client.get_request_status(status_call)).await?.into_inner();
    Ok(answer.status.unwrap())
}

/// The states of the devices in a status.
pub fn states(status: &RequestStatus) -> Vec<DeviceState> {
    status.devices.iter().map(DeviceStatus::state).collect()
}

/// Code and reason of an error.
pub fn kind(status: &Status) -> (Code, String) {
    (status.code(), reason(status))
}

/// A watch whose waits are bounded.
pub struct Watching(Streaming<WatchRequestResponse>);

pub async fn watch(
    client: &mut Client,
    id: &RequestId,
    resume_token: &str,
) -> Result<Watching, Status> {
    let request = WatchRequestRequest {
        account_name: ACCOUNT.to_owned(),
        request_id: id.to_string(),
        resume_token: resume_token.to_owned(),
    };
    Ok(Watching(within("a watch", client.watch_request(request)).await?.into_inner()))
}

impl Watching {
    /// The next message; `None` at the end with OK.
    pub async fn next(&mut self) -> Result<Option<WatchRequestResponse>, Status> {
        within("a message of a watch", self.0.message()).await
    }

    /// The next message that is no heartbeat.
    pub async fn event(&mut self) -> (Event, String) {
        loop {
            let message = self.next().await.unwrap().expect("the watch goes on");
            match message.event.expect("a message has an event") {
                Event::Heartbeat(_) => {}
                event => return (event, message.resume_token),
            }
        }
    }

    /// The snapshot that comes next, complete, and its token.
    pub async fn snapshot(&mut self) -> (RequestStatus, String) {
        let mut whole: Option<RequestStatus> = None;
        loop {
            let (Event::Snapshot(part), token) = self.event().await else { panic!("no snapshot") };
            match &mut whole {
                Some(whole) => whole.devices.extend(part.devices),
                None => whole = Some(part),
            }
            if let Some(whole) = whole.take_if(|_| !token.is_empty()) {
                return (whole, token);
            }
        }
    }

    /// All messages up to the end with OK.
    pub async fn rest(mut self) -> Vec<WatchRequestResponse> {
        let mut messages = Vec::new();
        while let Some(message) = self.next().await.unwrap() {
            messages.push(message);
        }
        messages
    }
}

/// The reason of an error. Checks that the error says when to repeat the call, if that helps.
pub fn reason(status: &Status) -> String {
    let info =
        status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "thingspace-gateway");
    if matches!(status.code(), Code::Unavailable | Code::ResourceExhausted) {
        let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
        assert!(retry.is_some(), "no RetryInfo: {status:?}");
    }
    info.reason
}
