//! The floor: what anybody would write first. A bare tonic server calls ThingSpace with a pooled
//! reqwest client and fixed tokens. It checks nothing, remembers nothing and repeats nothing.
//!
//! With a journal it writes each order to a file before and after the call, and syncs both writes.
//! All orders that wait share a sync. It also broadcasts a change to all watches.

use std::{
    fs::File,
    io::{self, Write as _},
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::mpsc,
    thread,
};

use futures_util::{Stream, StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use test_support::{
    bench::{Core, Helper, on_core},
    harness::device,
};
use thingspace_gateway::proto::esim::{
    DeviceCounts, DeviceIdentifiers, DeviceState, DeviceStatus, DownloadProfileRequest,
    DownloadProfileResponse, GetRequestStatusRequest, GetRequestStatusResponse, RequestChange,
    RequestState, RequestStatus, WatchRequestRequest, WatchRequestResponse,
    esim_service_server::{EsimService, EsimServiceServer},
    watch_request_response::Event,
};
use tokio::{
    net::TcpListener,
    sync::{broadcast, oneshot},
};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

use crate::{gateway::SERVICE, load::Target, upstream::FINISHED};

/// Changes that a watch may be behind.
const CAPACITY: usize = 16;

/// A floor in a process of its own.
pub(crate) struct Floor {
    process: Helper,
    address: SocketAddr,
}

impl Floor {
    /// Starts one without a journal.
    pub(crate) fn start(upstream: &str) -> Self {
        Self::start_with(&["floor", upstream])
    }

    pub(crate) fn with_journal(upstream: &str, journal: &Path) -> Self {
        Self::start_with(&["floor", upstream, journal.to_str().unwrap()])
    }

    fn start_with(arguments: &[&str]) -> Self {
        let mut process = on_core(Core::Server, || Helper::start(arguments));
        let address = process.line().parse().unwrap();
        Self { process, address }
    }

    pub(crate) fn target(&self) -> Target {
        Target { address: self.address, pid: self.process.pid(), service: SERVICE }
    }

    /// Sends a change to all watches.
    pub(crate) fn change(&mut self) {
        self.process.write("change");
    }
}

struct Bare {
    http: reqwest::Client,
    upstream: String,
    journal: Option<Journal>,
    changes: broadcast::Sender<WatchRequestResponse>,
}

/// Prints the address, and sends a change for each line of standard input.
pub(crate) async fn run(upstream: &str, journal: Option<&str>) {
    let (changes, _) = broadcast::channel(CAPACITY);
    let bare = Bare {
        // Without TLS, no certificates are needed.
        http: reqwest::Client::builder().tls_certs_only([]).http1_only().build().unwrap(),
        upstream: upstream.to_owned(),
        journal: journal.map(|path| Journal::start(Path::new(path))),
        changes: changes.clone(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    let service = EsimServiceServer::new(bare).max_decoding_message_size(16 << 20);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    let lines = tokio::task::spawn_blocking(move || {
        for (n, line) in io::stdin().lines().enumerate() {
            line.unwrap();
            let _ = changes.send(change(n));
        }
    });
    lines.await.unwrap();
}

/// A file to which writes are appended. All that wait share a sync.
#[derive(Clone)]
struct Journal(mpsc::Sender<(Vec<u8>, oneshot::Sender<()>)>);

impl Journal {
    fn start(path: &Path) -> Self {
        let mut file = File::create(path).unwrap();
        let (sender, waiting) = mpsc::channel::<(Vec<u8>, oneshot::Sender<()>)>();
        thread::spawn(move || {
            while let Ok(first) = waiting.recv() {
                let mut writes = vec![first];
                writes.extend(waiting.try_iter());
                let bytes: Vec<u8> = writes.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
                file.write_all(&bytes).unwrap();
                file.sync_data().unwrap();
                for (_, done) in writes {
                    let _ = done.send(());
                }
            }
        });
        Self(sender)
    }

    async fn write(&self, bytes: &[u8]) {
        let (done, written) = oneshot::channel();
        self.0.send((bytes.to_vec(), done)).unwrap();
        written.await.unwrap();
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OrderBody<'a> {
    account_name: &'a str,
    devices: Vec<DeviceBody<'a>>,
    service_plan: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeviceBody<'a> {
    device_ids: Vec<Id<'a>>,
}

#[derive(Serialize)]
struct Id<'a> {
    kind: &'static str,
    id: &'a str,
}

impl<'a> DeviceBody<'a> {
    fn of(device: &'a DeviceIdentifiers) -> Self {
        let ids = [("eid", &device.eid), ("iccid", &device.iccid), ("imei", &device.imei)];
        Self { device_ids: ids.map(|(kind, id)| Id { kind, id }).into() }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OrderAnswer {
    request_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StatusAnswer {
    request_id: String,
    sub_requests: Vec<SubRequest>,
}

#[derive(Deserialize)]
struct SubRequest {
    ids: Vec<SubRequestId>,
    status: String,
}

#[derive(Deserialize)]
struct SubRequestId {
    id: String,
}

/// Adds the tokens of a request to ThingSpace.
fn authorized(request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
    request
        .header("authorization", "Bearer bearer-0")
        .header("vz-m2m-token", "session-0")
        .header("content-type", "application/json")
}

impl Bare {
    async fn ask(&self, call: GetRequestStatusRequest) -> reqwest::Result<RequestStatus> {
        let (account, request) = (&call.account_name, &call.request_id);
        let path = format!("m2m/v2/accounts/{account}/requests/{request}/status");
        let request = authorized(self.http.get(format!("{}/{path}", self.upstream)));
        let answer: StatusAnswer = request.send().await?.error_for_status()?.json().await?;
        let devices = answer.sub_requests.into_iter().map(|sub| {
            let iccid = sub.ids.into_iter().next().map(|id| id.id).unwrap_or_default();
            (DeviceIdentifiers { iccid, ..device(0) }, sub.status == "Success")
        });
        Ok(status(call.account_name, answer.request_id, devices))
    }

    async fn order(&self, call: &DownloadProfileRequest) -> reqwest::Result<String> {
        let body = serde_json::to_vec(&OrderBody {
            account_name: &call.account_name,
            devices: call.devices.iter().map(DeviceBody::of).collect(),
            service_plan: &call.service_plan,
        })
        .unwrap();
        let written = body.clone();
        if let Some(journal) = &self.journal {
            journal.write(&written).await;
        }
        let url = format!("{}/m2m/v1/devices/profile/actions/download", self.upstream);
        let request = authorized(self.http.post(url)).body(body);
        let answer: OrderAnswer = request.send().await?.error_for_status()?.json().await?;
        if let Some(journal) = &self.journal {
            journal.write(&written).await;
        }
        Ok(answer.request_id)
    }
}

/// Returns a status with all fields that the gateway fills.
fn status(
    account_name: String,
    request_id: String,
    devices: impl Iterator<Item = (DeviceIdentifiers, bool)>,
) -> RequestStatus {
    let now = Some(prost_types::Timestamp::default());
    let mut counts = DeviceCounts::default();
    let devices: Vec<_> = devices
        .map(|(identifiers, has_succeeded)| {
            counts.total += 1;
            counts.succeeded += i32::from(has_succeeded);
            counts.pending += i32::from(!has_succeeded);
            let state = if has_succeeded { DeviceState::Succeeded } else { DeviceState::Pending };
            DeviceStatus {
                identifiers: Some(identifiers),
                state: state.into(),
                update_time: now,
                ..DeviceStatus::default()
            }
        })
        .collect();
    let state = if counts.pending == 0 { RequestState::Succeeded } else { RequestState::Pending };
    RequestStatus {
        account_name,
        request_id,
        state: state.into(),
        counts: Some(counts),
        devices,
        revision: 1,
        create_time: now,
        update_time: now,
        polling_stopped: false,
    }
}

fn change(n: usize) -> WatchRequestResponse {
    let device = DeviceStatus { identifiers: Some(device(n)), ..DeviceStatus::default() };
    let change = RequestChange { devices: vec![device], ..RequestChange::default() };
    message(Event::Change(change))
}

fn message(event: Event) -> WatchRequestResponse {
    WatchRequestResponse { event: Some(event), resume_token: "t".repeat(98), more: false }
}

fn unavailable(error: &reqwest::Error) -> Status {
    Status::unavailable(error.to_string())
}

#[tonic::async_trait]
impl EsimService for Bare {
    async fn download_profile(
        &self,
        request: Request<DownloadProfileRequest>,
    ) -> Result<Response<DownloadProfileResponse>, Status> {
        let call = request.into_inner();
        let request_id = self.order(&call).await.map_err(|error| unavailable(&error))?;
        Ok(Response::new(DownloadProfileResponse { request_id, replayed: false }))
    }

    /// Answers from memory if the id says that the request is finished.
    async fn get_request_status(
        &self,
        request: Request<GetRequestStatusRequest>,
    ) -> Result<Response<GetRequestStatusResponse>, Status> {
        let call = request.into_inner();
        let status = if call.request_id.starts_with(FINISHED) {
            status(call.account_name, call.request_id, [(device(0), true)].into_iter())
        } else {
            self.ask(call).await.map_err(|error| unavailable(&error))?
        };
        let next_page_token = String::new();
        Ok(Response::new(GetRequestStatusResponse { status: Some(status), next_page_token }))
    }

    type WatchRequestStream =
        Pin<Box<dyn Stream<Item = Result<WatchRequestResponse, Status>> + Send>>;

    async fn watch_request(
        &self,
        _: Request<WatchRequestRequest>,
    ) -> Result<Response<Self::WatchRequestStream>, Status> {
        let first = message(Event::Snapshot(RequestStatus::default()));
        let changes = stream::unfold(self.changes.subscribe(), async |mut changes| {
            let change = changes.recv().await.map_err(|_| Status::data_loss(""));
            Some((change, changes))
        });
        Ok(Response::new(Box::pin(stream::iter([Ok(first)]).chain(changes))))
    }
}
