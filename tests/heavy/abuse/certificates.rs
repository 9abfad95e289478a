//! Clients without a valid certificate, and TLS handshakes that do not end.

use std::sync::Arc;

use futures_util::future::join_all;
use rustls::ClientConfig;
use thingspace_gateway::config::{ClientCert, Config};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use super::{ATTACK, DESCRIPTORS_AT_REST, Scene, usage};
use crate::{
    harness::*,
    pki::{Authority, EXPIRED, GATEWAY, VALID, handshake, tls_client},
};

const CALLER: &str = "spiffe://example.org/orders";

/// The first bytes of a TLS handshake.
const HALF: &[u8] = b"\x16\x03\x01\x02\x00\x01";

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
    };
    let known = ours.client(Some(&clients.issue(CALLER, VALID)));
    let connect = move |address| tls_client(address, Arc::clone(&known));
    let scene = Scene::start_with(certificate, |command| command, connect).await;

    let half = join_all((0..HALF_HANDSHAKES).map(async |_| {
        let mut tcp = TcpStream::connect(scene.address()).await.unwrap();
        tcp.write_all(HALF).await.unwrap();
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
    eprintln!("{} handshakes", refused.await.iter().sum::<u32>());
    eventually("half handshakes end", async || {
        let now = usage(&scene.gateway).descriptors;
        now <= scene.idle.descriptors + DESCRIPTORS_AT_REST
    })
    .await;
    drop(half);
    // It does not hold up the end.
    let mut last = TcpStream::connect(scene.address()).await.unwrap();
    last.write_all(HALF).await.unwrap();
    scene.end("certificates").await;
}

/// With TLS 1.3 a server refuses a certificate after the client has finished its handshake.
async fn is_served(scene: &Scene, client: &Arc<ClientConfig>) -> bool {
    match handshake(scene.address(), client).await {
        Ok(mut connection) => connection.read_u8().await.is_ok(),
        Err(_) => false,
    }
}
