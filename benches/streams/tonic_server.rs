//! A bare tonic server: each watch gets a message at its beginning, then what is broadcast.

use std::{io, pin::Pin};

use futures_util::{Stream, StreamExt as _, stream};
use thingspace_gateway::proto::esim::{
    DeviceStatus, DownloadProfileRequest, DownloadProfileResponse, GetRequestStatusRequest,
    GetRequestStatusResponse, RequestChange, RequestStatus, WatchRequestRequest,
    WatchRequestResponse,
    esim_service_server::{EsimService, EsimServiceServer},
    watch_request_response::Event,
};
use tokio::{net::TcpListener, sync::broadcast};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

use test_support::harness::device;

/// Changes that a watch may be behind.
const CAPACITY: usize = 16;

#[derive(Clone)]
struct Broadcast(broadcast::Sender<WatchRequestResponse>);

/// Prints the address, and sends a change for each line of standard input.
pub(crate) async fn run() {
    let (sender, _) = broadcast::channel(CAPACITY);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    let service = EsimServiceServer::new(Broadcast(sender.clone()));
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = Server::builder().add_service(service).serve_with_incoming(incoming);
    tokio::spawn(serving);
    let changes = tokio::task::spawn_blocking(move || {
        for (n, line) in io::stdin().lines().enumerate() {
            line.unwrap();
            let _ = sender.send(change(n));
        }
    });
    changes.await.unwrap();
}

/// A change as the gateway sends it.
fn change(n: usize) -> WatchRequestResponse {
    let device = DeviceStatus { identifiers: Some(device(n)), ..DeviceStatus::default() };
    let change = RequestChange { devices: vec![device], ..RequestChange::default() };
    message(Event::Change(change))
}

fn message(event: Event) -> WatchRequestResponse {
    WatchRequestResponse { event: Some(event), resume_token: "t".repeat(98), more: false }
}

#[tonic::async_trait]
impl EsimService for Broadcast {
    async fn download_profile(
        &self,
        _: Request<DownloadProfileRequest>,
    ) -> Result<Response<DownloadProfileResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_request_status(
        &self,
        _: Request<GetRequestStatusRequest>,
    ) -> Result<Response<GetRequestStatusResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type WatchRequestStream =
        Pin<Box<dyn Stream<Item = Result<WatchRequestResponse, Status>> + Send>>;

    async fn watch_request(
        &self,
        _: Request<WatchRequestRequest>,
    ) -> Result<Response<Self::WatchRequestStream>, Status> {
        let first = message(Event::Snapshot(RequestStatus::default()));
        let changes = stream::unfold(self.0.subscribe(), async |mut changes| {
            let change = changes.recv().await.map_err(|_| Status::data_loss(""));
            Some((change, changes))
        });
        Ok(Response::new(Box::pin(stream::iter([Ok(first)]).chain(changes))))
    }
}
