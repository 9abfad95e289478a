//! Promise 8 with client certificates, and TLS of the API.

use std::{io, path::Path, process::Command, sync::Arc};

use rustls::ClientConfig;
use test_support::pki::{Authority, EXPIRED, Identity, VALID, handshake, tls_channel, tls_client};
use thingspace_gateway::{
    config::{ClientCert, Config},
    identity::RequestId,
};
use tokio::io::AsyncReadExt;
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::callers::{ORDERS, entry, guarded, with};
use crate::harness::*;
use crate::process::{run, text};

const ORDERS_ID: &str = "spiffe://example.org/ns/fleet/sa/orders";
const READER_NAME: &str = "reader.example";

/// A gateway with TLS that knows the clients of an authority.
struct Secured {
    upstream: Upstream,
    config: Config,
    /// Signs the gateway's certificate.
    ours: Authority,
    /// Signs the certificates of clients.
    clients: Authority,
}

impl Secured {
    async fn new() -> Self {
        let (upstream, ours, clients) =
            (Upstream::manual().await, Authority::new(), Authority::new());
        let file = |name: &str| upstream.dir.path().join(name);
        let mut config = guarded(&upstream);
        config.grpc.tls_cert_file = file("tls.pem");
        config.grpc.tls_key_file = file("tls.key");
        config.grpc.client_ca_file = file("clients.pem");
        config.auth.allow.extend([
            entry(&["spiffe://example.org/ns/fleet/*"], &["*"], &[ACCOUNT]),
            entry(&["dns:reader.example"], &["GetRequestStatus"], &[ACCOUNT]),
        ]);
        clients.write(&config.grpc.client_ca_file);
        let secured = Self { upstream, config, ours, clients };
        secured.renew();
        secured
    }

    /// Writes another certificate of the gateway.
    fn renew(&self) {
        let grpc = &self.config.grpc;
        let identity = self.ours.issue(test_support::pki::GATEWAY, VALID);
        identity.write(&grpc.tls_cert_file, &grpc.tls_key_file);
    }

    fn serve(&self) -> Process {
        Process::serve(&self.config, self.upstream.dir.path())
    }

    fn client(&self, gateway: &Process, identity: Option<&Identity>) -> Client {
        tls_client(gateway.address, self.ours.client(identity))
    }

    fn request(&self) -> RequestId {
        self.upstream.sim.add_request(self.upstream.accounts[0].clone(), [upstream_device(1)])
    }
}

async fn read(mut client: Client, id: &RequestId) -> Result<(), Status> {
    within("a status", client.get_request_status(status_call(id))).await.map(drop)
}

/// Connects, and reads the first bytes of the server. With TLS 1.3 a server refuses a certificate
/// after the client has finished its handshake.
async fn connects(gateway: &Process, client: &Arc<ClientConfig>) -> io::Result<()> {
    let mut connection = handshake(gateway.address, client).await?;
    connection.read_u8().await.map(drop)
}

#[tokio::test]
async fn a_certificate_names_its_caller() {
    let secured = Secured::new().await;
    let gateway = secured.serve();
    let id = secured.request();
    let issue = |name: &str| secured.clients.issue(name, VALID);
    let (orders, reader) = (issue(ORDERS_ID), issue(READER_NAME));
    let good = secured.client(&gateway, Some(&orders));
    read(good.clone(), &id).await.unwrap();
    let mut reads = secured.client(&gateway, Some(&reader));
    read(reads.clone(), &id).await.unwrap();
    let refused = reads.download_profile(order("k", [1])).await.unwrap_err();
    assert_eq!(kind(&refused), (Code::PermissionDenied, "CALLER_NOT_ALLOWED".to_owned()));

    for (name, code) in [
        ("spiffe://example.org/ns/other/sa/orders", Code::PermissionDenied),
        ("spiffe://example.org.evil/ns/fleet/sa/orders", Code::PermissionDenied),
        ("other.example", Code::PermissionDenied),
        // Without a usable name there is no caller.
        ("spiffe://Example.org/ns/fleet/sa/orders", Code::Unauthenticated),
        ("*.example", Code::Unauthenticated),
        ("127.0.0.1", Code::Unauthenticated),
    ] {
        let client = secured.client(&gateway, Some(&issue(name)));
        let refused = read(client, &id).await.unwrap_err();
        assert_eq!(refused.code(), code, "{name}");
        let is_nameless = refused.message().contains("certificate does not name a caller");
        assert_eq!(is_nameless, code == Code::Unauthenticated, "{name}: {refused:?}");
        read(good.clone(), &id).await.unwrap();
    }
    // A token decides, even if it is wrong.
    let with_token = async |token: &str| {
        let call = with(status_call(&id), token);
        within("a status", good.clone().get_request_status(call)).await
    };
    with_token(ORDERS).await.unwrap();
    assert_eq!(with_token("wrong").await.unwrap_err().code(), Code::Unauthenticated);

    let anonymous = secured.client(&gateway, None);
    assert_eq!(read(anonymous.clone(), &id).await.unwrap_err().code(), Code::Unauthenticated);
    let mut token_only = anonymous;
    token_only.get_request_status(with(status_call(&id), ORDERS)).await.unwrap();
    let channel = tls_channel(gateway.address, secured.ours.client(None));
    HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap();

    gateway.terminate();
    let (_, log) = gateway.wait().await;
    let denied = log.iter().filter(|line| line.contains("a call was denied"));
    assert!(denied.clone().any(|line| line.contains("dns:reader.example")));
    assert!(denied.clone().any(|line| line.contains("spiffe://example.org.evil/")));
}

#[tokio::test]
async fn wrong_certificates_are_refused_in_the_handshake() {
    let mut secured = Secured::new().await;
    let other = Authority::new();
    for required in [ClientCert::Optional, ClientCert::Required] {
        secured.config.grpc.client_cert = required;
        let gateway = secured.serve();
        let id = secured.request();
        let orders = secured.clients.issue(ORDERS_ID, VALID);
        let good = secured.client(&gateway, Some(&orders));
        for wrong in [
            secured.clients.issue(ORDERS_ID, EXPIRED),
            secured.clients.issue(ORDERS_ID, (4000, 4001)),
            other.issue(ORDERS_ID, VALID),
        ] {
            connects(&gateway, &secured.ours.client(Some(&wrong))).await.unwrap_err();
            read(good.clone(), &id).await.unwrap();
        }
        let without = connects(&gateway, &secured.ours.client(None)).await;
        assert_eq!(without.is_err(), required == ClientCert::Required);
        // A client verifies the gateway, too.
        connects(&gateway, &other.client(Some(&orders))).await.unwrap_err();
        read(good, &id).await.unwrap();
    }
}

/// The exit code and the output of `health`.
async fn health(secured: &Secured, gateway: &Process, more: &[&Path]) -> (Option<i32>, String) {
    let mut command = Command::new(binary());
    command.args(["health", "--tls", "--address", &gateway.address.to_string(), "--ca-file"]);
    command.arg(secured.upstream.dir.path().join("ours.pem"));
    for (option, file) in ["--cert-file", "--key-file"].iter().zip(more) {
        command.arg(option).arg(file);
    }
    let output = run(command).await;
    (output.status.code(), format!("{}{}", text(&output.stdout), text(&output.stderr)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_health_can_have_a_client_certificate() {
    let mut secured = Secured::new().await;
    secured.config.grpc.client_cert = ClientCert::Required;
    let file = |name: &str| secured.upstream.dir.path().join(name);
    secured.ours.write(&file("ours.pem"));
    let grpc = &secured.config.grpc;
    secured.ours.issue("127.0.0.1", VALID).write(&grpc.tls_cert_file, &grpc.tls_key_file);
    let gateway = secured.serve();
    let (cert, key) = (file("client.pem"), file("client.key"));
    secured.clients.issue(READER_NAME, VALID).write(&cert, &key);
    let ready = health(&secured, &gateway, &[&cert, &key]).await;
    assert_eq!(ready, (Some(0), format!("{} is ready\n", gateway.address)));
    let (code, why) = health(&secured, &gateway, &[]).await;
    assert!(
        code == Some(1) && why.contains("requires a client certificate, pass --cert-file"),
        "{why}"
    );
    let (code, why) = health(&secured, &gateway, &[&cert, &grpc.tls_key_file]).await;
    assert!(code == Some(1) && why.contains("does not belong to"), "{why}");
}

#[tokio::test]
async fn new_files_count_for_new_connections_and_old_connections_live() {
    let secured = Secured::new().await;
    let mut gateway = secured.serve();
    let id = secured.request();
    let orders = secured.clients.issue(ORDERS_ID, VALID);
    let trusting = secured.ours.client(Some(&orders));
    let certificate = async || {
        let connection = handshake(gateway.address, &trusting).await.unwrap();
        connection.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    };
    let old = secured.client(&gateway, Some(&orders));
    read(old.clone(), &id).await.unwrap();
    let first = certificate().await;
    secured.renew();
    eventually("new connections get the new certificate", async || {
        read(old.clone(), &id).await.unwrap();
        certificate().await != first
    })
    .await;

    let others = Authority::new();
    others.write(&secured.config.grpc.client_ca_file);
    let new = secured.ours.client(Some(&others.issue(ORDERS_ID, VALID)));
    eventually("clients of the new authority are accepted", async || {
        read(old.clone(), &id).await.unwrap();
        connects(&gateway, &new).await.is_ok()
    })
    .await;
    connects(&gateway, &trusting).await.unwrap_err();
    std::fs::write(&secured.config.grpc.client_ca_file, "nothing").unwrap();
    gateway.wait_for_line("the last content stays in use");
    connects(&gateway, &new).await.unwrap();
    read(old, &id).await.unwrap();
}
