//! Clients without a valid certificate or with a wrong name in it, and TLS handshakes that do not
//! end.

use std::sync::Arc;

use futures_util::future::join_all;
use rustls::ClientConfig;
use thingspace_gateway::config::{ClientCert, Config};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};
use tonic::Code;

use super::{ATTACK, DESCRIPTORS_AT_REST, Scene, usage};
use crate::{
    harness::*,
    pki::{Authority, EXPIRED, GATEWAY, VALID, client_hello, handshake, tls_client},
};

/// A caller who may do everything, and one who may do nothing.
const CALLER: &str = "spiffe://example.org/orders";
const STRANGER: &str = "spiffe://example.org.evil/orders";

/// A name in a certificate that is no name of a caller.
const NO_NAME: &str = "*.example.org";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_certificates_and_half_handshakes() {
    const HALF_HANDSHAKES: usize = 1_000;
    let (ours, clients, other) = (Authority::new(), Authority::new(), Authority::new());
    let certificate = |config: &mut Config| {
        let file = |name: &str| config.store.path.with_file_name(name);
        let (cert, key, ca) = (file("tls.pem"), file("tls.key"), file("clients.pem"));
        ours.issue(GATEWAY, VALID).write(&cert, &key);
        clients.write(&ca);
        (config.grpc.tls_cert_file, config.grpc.tls_key_file) = (cert, key);
        (config.grpc.client_ca_file, config.grpc.client_cert) = (ca, ClientCert::Required);
        config.auth.allow[0].callers.push("spiffe://example.org/*".to_owned());
    };
    let known = ours.client(Some(&clients.issue(CALLER, VALID)));
    let connect = move |address| tls_client(address, Arc::clone(&known));
    let mut scene = Scene::start_with(certificate, |command| command, connect).await;

    let hello = client_hello(&ours.client(None));
    // The gateway answers every other one.
    let begun = [&hello[..hello.len() / 2], &hello];
    let half = join_all((0..HALF_HANDSHAKES).map(async |n| {
        let mut tcp = TcpStream::connect(scene.address()).await.unwrap();
        tcp.write_all(begun[n % begun.len()]).await.unwrap();
        tcp
    }))
    .await;
    let wrong = [
        ours.client(None),
        ours.client(Some(&other.issue(CALLER, VALID))),
        ours.client(Some(&clients.issue(CALLER, EXPIRED))),
    ];
    let end = Instant::now() + ATTACK;
    let refused = join_all((0..4 * wrong.len()).map(async |n| {
        let mut refused = 0;
        while Instant::now() < end {
            assert!(!is_served(&scene, &wrong[n % wrong.len()]).await);
            refused += 1;
        }
        refused
    }));
    let id = scene.request();
    let call = async |name: &str, expected: Code| {
        let identity = ours.client(Some(&clients.issue(name, VALID)));
        let mut calls = 0;
        while Instant::now() < end {
            let mut client = tls_client(scene.address(), Arc::clone(&identity));
            let outcome = within("an answer", client.get_request_status(status_call(&id))).await;
            assert_eq!(outcome.map_or_else(|status| status.code(), |_| Code::Ok), expected);
            calls += 1;
        }
        calls
    };
    let (refused, served, nameless, denied) = tokio::join!(
        refused,
        call(CALLER, Code::Ok),
        call(NO_NAME, Code::Unauthenticated),
        call(STRANGER, Code::PermissionDenied),
    );
    let refused: u32 = refused.into_iter().sum();
    eprintln!("{refused} handshakes refused; {served} calls, {nameless} nameless, {denied} denied");
    // Every one of these is in the audit log.
    scene.lines_of_attack = denied;
    eventually("half handshakes end", async || {
        let now = usage(&scene.gateway).descriptors;
        now <= scene.idle.descriptors + DESCRIPTORS_AT_REST
    })
    .await;
    drop(half);
    // It does not hold up the end.
    let mut last = TcpStream::connect(scene.address()).await.unwrap();
    last.write_all(begun[0]).await.unwrap();
    scene.end("certificates").await;
}

/// With TLS 1.3 a server refuses a certificate after the client has finished its handshake.
async fn is_served(scene: &Scene, client: &Arc<ClientConfig>) -> bool {
    match handshake(scene.address(), client).await {
        Ok(mut connection) => connection.read_u8().await.is_ok(),
        Err(_) => false,
    }
}
