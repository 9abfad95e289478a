//! A sender of callbacks.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use secrecy::ExposeSecret;
use thingspace_gateway::{
    callbacks::{CallbackOutcome, Callbacks},
    identity::{AccountName, RequestId},
    proto::esim::DeviceIdentifiers,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
};

use crate::harness::{ACCOUNT, Gateway, within};

/// Sends callbacks to a URL, with a pair in place of the words `user` and `secret`.
pub struct Sender {
    pub url: String,
    pub path: String,
    pub username: String,
    pub password: String,
    pub http: reqwest::Client,
    pub callbacks: Callbacks,
}

impl Sender {
    pub fn new(gateway: &Gateway) -> Self {
        Self::of(gateway, ACCOUNT)
    }

    pub fn of(gateway: &Gateway, account: &str) -> Self {
        let (address, callbacks) = gateway.callbacks.clone().expect("the gateway takes callbacks");
        Self::at(address, callbacks, account)
    }

    pub fn at(address: SocketAddr, callbacks: Callbacks, account: &str) -> Self {
        let account = AccountName::parse(account).unwrap();
        let path = callbacks.secrets().path(&account);
        let pair = callbacks.secrets().pair(&account).unwrap();
        Self {
            url: format!("http://{address}/any/prefix/{path}"),
            path,
            username: pair.username,
            password: pair.password.expose_secret().to_owned(),
            http: reqwest::Client::new(),
            callbacks,
        }
    }

    /// Puts the sender's pair into a body.
    pub fn sign(&self, body: &str) -> String {
        body.replace(r#""user""#, &format!("{:?}", self.username))
            .replace(r#""secret""#, &format!("{:?}", self.password))
    }

    /// Posts a body with the sender's pair. Returns the status of the answer, which has no body.
    pub async fn post(&self, body: &str) -> u16 {
        self.post_bytes(self.sign(body).into_bytes()).await
    }

    pub async fn post_bytes(&self, body: Vec<u8>) -> u16 {
        let answer =
            within("an answer", self.http.post(&self.url).body(body).send()).await.unwrap();
        let status = answer.status().as_u16();
        assert!(answer.bytes().await.unwrap().is_empty());
        status
    }

    pub fn count(&self, outcome: CallbackOutcome) -> u64 {
        self.callbacks.count(outcome)
    }
}

/// Returns a callback about a device, with the words `user` and `secret` for the pair.
pub fn about(id: &RequestId, device: &DeviceIdentifiers, word: &str) -> String {
    format!(
        r#"{{"username":"user","password":"secret","requestId":"{id}","status":"{word}",
        "callbackCount":1,
        "deviceIds":[{{"kind":"Iccid","id":"{}"}},{{"kind":"Eid","id":"{}"}}],"faultResponse":null,
        "deviceResponse":{{"deviceProfileResponse":
        {{"state":"ACTIVE","profileStatus":"ENABLE","profileRole":"LOCAL"}}}}}}"#,
        device.iccid, device.eid
    )
}

/// Keeps a connection open: writes this text, then a byte five times a second. Opens a new
/// connection when this one is closed.
pub async fn drip(address: SocketAddr, from: IpAddr, beginning: String, begun: Arc<AtomicUsize>) {
    loop {
        begun.fetch_add(1, Ordering::Relaxed);
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        let Ok(mut tcp) = socket.connect(address).await else { continue };
        let mut answer = [0; 1];
        if tcp.write_all(beginning.as_bytes()).await.is_err() {
            continue;
        }
        while tokio::time::timeout(Duration::from_millis(200), tcp.read(&mut answer)).await.is_err()
            && tcp.write_all(b" ").await.is_ok()
        {}
    }
}
