//! An issuer of JSON Web Tokens, and the HTTPS server of its keys.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tempfile::TempDir;
use thingspace_gateway::config::Config;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::pki::{Authority, VALID};

pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
pub const AUDIENCE: &str = "gateway";
pub const SUBJECT: &str = "system:serviceaccount:fleet:orders";

/// An issuer with one P-256 key.
pub struct Issuer {
    pair: EcdsaKeyPair,
    pub id: &'static str,
}

impl Issuer {
    pub fn new(id: &'static str) -> Self {
        Self { pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(), id }
    }

    /// The public key: the point is 4, x, y.
    pub fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        json!({
            "kty": "EC", "crv": "P-256", "kid": self.id, "use": "sig",
            "x": encode(&point[1..33]), "y": encode(&point[33..]),
        })
    }

    /// The point of the public key, with which an attacker may sign.
    pub fn public_key(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = unsigned(header, claims);
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", encode(signature))
    }

    pub fn token(&self, claims: &Value) -> String {
        self.sign(&json!({ "alg": "ES256", "kid": self.id }), claims)
    }
}

/// The header and the claims of a token without its signature.
pub fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}", encode(header.to_string()), encode(claims.to_string()))
}

pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// A set of public keys.
pub fn key_set(issuers: &[&Issuer]) -> String {
    json!({ "keys": issuers.iter().map(|issuer| issuer.jwk()).collect::<Vec<_>>() }).to_string()
}

/// Claims like those of a projected Kubernetes token, valid until `exp`, in seconds since 1970.
pub fn claims(exp: i64) -> Value {
    json!({
        "aud": ["https://other.example", AUDIENCE], "iss": ISSUER, "sub": SUBJECT,
        "exp": exp, "iat": exp - 3607, "nbf": exp - 3607, "jti": "token-1",
        "kubernetes.io": {
            "namespace": "fleet",
            "serviceaccount": { "name": "orders", "uid": "00000000-0000-4000-8000-000000000002" },
        },
    })
}

/// An HTTPS server that answers every request with the same status and body.
pub struct KeyServer {
    pub url: String,
    /// The authority of its certificate.
    pub ca_file: PathBuf,
    state: Arc<Mutex<ServerState>>,
    _dir: TempDir,
}

struct ServerState {
    status: u16,
    body: String,
    requests: Vec<String>,
}

impl KeyServer {
    pub async fn start(body: String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let ca_file = dir.path().join("keys.pem");
        authority.write(&ca_file);
        let acceptor = authority.issue("127.0.0.1", VALID).acceptor();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(ServerState { status: 200, body, requests: Vec::new() }));
        let serving = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, state) = (acceptor.clone(), Arc::clone(&serving));
                tokio::spawn(async move {
                    // A client that does not trust the certificate closes the connection.
                    let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = tls.read_u8().await else { return };
                        request.push(byte);
                    }
                    let answer = {
                        let mut state = state.lock().unwrap();
                        state.requests.push(String::from_utf8(request).unwrap());
                        format!(
                            "HTTP/1.1 {} .\r\nconnection: close\r\nlocation: /other\r\n\
                             content-length: {}\r\n\r\n{}",
                            state.status,
                            state.body.len(),
                            state.body
                        )
                    };
                    let _ = tls.write_all(answer.as_bytes()).await;
                    let _ = tls.shutdown().await;
                });
            }
        });
        let url = format!("https://{address}/keys");
        Self { url, ca_file, state, _dir: dir }
    }

    /// Makes a gateway accept the tokens that these keys have signed.
    pub fn configure(&self, config: &mut Config) {
        let jwt = &mut config.auth.jwt;
        ISSUER.clone_into(&mut jwt.issuer);
        AUDIENCE.clone_into(&mut jwt.audience);
        jwt.jwks_url.clone_from(&self.url);
        jwt.jwks_ca_file.clone_from(&self.ca_file);
    }

    /// Changes the answer to later requests.
    pub fn answer(&self, status: u16, body: String) {
        let mut state = self.state.lock().unwrap();
        (state.status, state.body) = (status, body);
    }

    /// The heads of all requests.
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }
}
