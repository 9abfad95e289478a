//! Callers without a valid token, as fast as they can.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use futures_util::future::join_all;
use tokio::time::Instant;
use tonic::Code;

use super::{ATTACK, Scene, with};
use crate::harness::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_tokens() {
    const CALLS: usize = 64;
    let scene = Scene::start().await;
    let part = |json: &str| BASE64_URL_SAFE_NO_PAD.encode(json);
    let unsigned =
        [part(r#"{"alg":"none"}"#), part(r#"{"sub":"orders"}"#), String::new()].join(".");
    let forged =
        [part(r#"{"alg":"ES256","kid":"k"}"#), part("{}"), part(&"s".repeat(64))].join(".");
    let tokens = ["unknown".to_owned(), String::new(), "t".repeat(10_000), unsigned, forged];
    let client = scene.gateway.client().await;
    let id = scene.request();
    let end = Instant::now() + ATTACK;
    let calls = join_all((0..CALLS).map(async |n| {
        let (mut client, mut calls) = (client.clone(), 0);
        while Instant::now() < end {
            let call = with(status_call(&id), &tokens[n % tokens.len()]);
            let refused = client.get_request_status(call).await.unwrap_err();
            let reason = kind(&refused);
            assert_eq!(reason, (Code::Unauthenticated, "CALLER_UNAUTHENTICATED".to_owned()));
            calls += 1;
        }
        calls
    }));
    eprintln!("{} calls", calls.await.iter().sum::<u32>());
    scene.end("invalid tokens").await;
}
