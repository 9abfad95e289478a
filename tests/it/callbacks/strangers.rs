//! Senders that know only the URL. Their callbacks never replace those of ThingSpace.

use futures_util::future::join_all;
use thingspace_gateway::{callbacks::CallbackOutcome, identity::AccountName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Sender, about};
use crate::harness::{ACCOUNT, Gateway, Upstream, device, place, within};

/// It names no request, so it is quarantined if its pair is right.
const WITHOUT_REQUEST: &str = r#"{"username":"user","password":"secret","news":"of a new kind"}"#;

#[tokio::test]
async fn a_flood_of_strangers_leaves_room_in_the_quarantine() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.with_callbacks()).await;
    let id = place(&mut gateway.client().await, "key", 0..1).await.unwrap();
    let sender = Sender::new(&gateway);
    assert_eq!(sender.post(WITHOUT_REQUEST).await, 200);
    let mut answers = Vec::new();
    for n in 0..60 {
        answers.push(sender.post_bytes(format!("stranger {n}").into_bytes()).await);
    }
    assert_eq!(answers.iter().filter(|status| **status == 200).count(), 50);
    assert_eq!((answers[59], sender.count(CallbackOutcome::NotKept)), (503, 10));

    // Everything with the pair is kept, and other accounts have their own quotas.
    assert_eq!(sender.post(WITHOUT_REQUEST).await, 200);
    assert_eq!(sender.post(&about(&id, &device(0), "warning")).await, 200);
    let other = Sender::of(&gateway, upstream.accounts[1].as_str());
    assert_eq!(other.post("stranger").await, 200);
    let listed = sender.callbacks.quarantine().list().await.unwrap();
    assert_eq!(listed.len(), 53);
    let shown = sender.callbacks.quarantine().show(1).await.unwrap().unwrap();
    assert!(shown.body.contains("of a new kind"), "{shown:?}");
    gateway.stop().await;
}

#[tokio::test]
async fn a_wrong_pair_is_refused_also_in_a_callback_without_a_request() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.with_callbacks()).await;
    let sender = Sender::new(&gateway);
    for wrong in
        [WITHOUT_REQUEST.to_owned(), sender.sign(&WITHOUT_REQUEST.replace("secret", "sesame"))]
    {
        assert_eq!(sender.post_bytes(wrong.into_bytes()).await, 401);
    }
    assert!(sender.callbacks.quarantine().list().await.unwrap().is_empty());
    // A replaced pair is still accepted.
    let account = AccountName::parse(ACCOUNT).unwrap();
    sender.callbacks.secrets().rotate(&account).await.unwrap();
    assert_eq!(sender.post(WITHOUT_REQUEST).await, 200);
    assert_eq!(
        (sender.count(CallbackOutcome::WrongPair), sender.count(CallbackOutcome::Quarantined)),
        (2, 1)
    );
    gateway.stop().await;
}

/// Their control frames would cost the gateway unbounded work.
#[tokio::test]
async fn connections_that_begin_http_2_are_closed_at_once() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.with_callbacks()).await;
    let callbacks = gateway.callbacks.as_ref().unwrap().0;
    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let answer = within("a refusal", client.post(format!("http://{callbacks}/x")).send()).await;
    assert!(answer.is_err(), "{answer:?}");

    let floods = [SETTINGS, PING].map(async |frame| {
        let mut connection = TcpStream::connect(callbacks).await.unwrap();
        connection.write_all(PREFACE).await.unwrap();
        let frames = frame.repeat(100);
        // This ends only when the connection is closed.
        let flood = async { while connection.write_all(&frames).await.is_ok() {} };
        within("it is closed", flood).await;
    });
    join_all(floods).await;
    let mut connection = TcpStream::connect(callbacks).await.unwrap();
    connection.write_all(&[PREFACE, SETTINGS].concat()).await.unwrap();
    let mut answer = Vec::new();
    // A reset closes the connection, too.
    let _ = within("it is closed", connection.read_to_end(&mut answer)).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{} bytes", answer.len());
    assert_eq!(Sender::new(&gateway).post(WITHOUT_REQUEST).await, 200);
    gateway.stop().await;
}
