//! Callers without a valid token, as fast as they can.

use futures_util::future::join_all;
use jiff::Timestamp;
use serde_json::json;
use thingspace_gateway::config::Config;
use tokio::time::Instant;
use tonic::Code;

use super::{ATTACK, Scene, lazily, with};
use crate::{
    harness::*,
    issuer::{Issuer, KeyServer, SUBJECT, claims, key_set, unsigned},
};

/// The time in which tokens with unknown key ids may cause one fetch of the key set, in seconds
/// (`docs/operations.md`).
const SECONDS_OF_FETCH: u64 = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_tokens() {
    const CALLS: usize = 64;
    const UNKNOWN_KEYS: usize = 8;
    const HUGE: usize = 1 << 20;
    let (issuer, impostor, stranger) = (Issuer::new("one"), Issuer::new("one"), Issuer::new("two"));
    let keys = KeyServer::start(key_set(&[&issuer])).await;
    let start = Instant::now();
    let accept = |config: &mut Config| {
        keys.configure(config);
        config.auth.allow[0].callers.push(format!("jwt:{SUBJECT}"));
    };
    let scene = Scene::start_with(accept, |command| command, lazily).await;
    let client = scene.gateway.client().await;
    let id = scene.request();
    let read = async |mut client: Client, token: &str| {
        let call = client.get_request_status(with(status_call(&id), token));
        within("an answer", call).await.map(drop)
    };

    let now = Timestamp::now().as_second();
    let valid = claims(now + 600);
    let changed = |key: &str, value: String| {
        let mut claims = valid.clone();
        claims[key] = value.into();
        claims
    };
    let good = issuer.token(&valid);
    eventually("the keys are fetched", async || read(client.clone(), &good).await.is_ok()).await;
    let mut tokens = vec![
        "unknown".to_owned(),
        String::new(),
        "t".repeat(10_000),
        issuer.token(&claims(now - 600)),
        issuer.token(&changed("aud", "https://other.example".to_owned())),
        format!("{}.", unsigned(&json!({ "alg": "none" }), &valid)),
        impostor.token(&valid),
        issuer.token(&changed("padding", "x".repeat(9_000))),
    ];
    tokens.extend(
        (0..UNKNOWN_KEYS).map(|n| {
            stranger.sign(&json!({ "alg": "ES256", "kid": format!("unknown {n}") }), &valid)
        }),
    );
    let huge = issuer.token(&changed("padding", "x".repeat(HUGE)));

    let end = Instant::now() + ATTACK;
    let refused = join_all((0..CALLS).map(async |n| {
        let mut calls = 0;
        while Instant::now() < end {
            let refused = read(client.clone(), &tokens[n % tokens.len()]).await.unwrap_err();
            let reason = kind(&refused);
            assert_eq!(reason, (Code::Unauthenticated, "CALLER_UNAUTHENTICATED".to_owned()));
            calls += 1;
        }
        calls
    }));
    // The limit for headers refuses them. Their connections need not survive that.
    let too_large = join_all((0..CALLS / 16).map(async |_| {
        let mut calls = 0;
        while Instant::now() < end {
            read(scene.gateway.client().await, &huge).await.unwrap_err();
            calls += 1;
        }
        calls
    }));
    let served = async {
        let mut calls = 0;
        while Instant::now() < end {
            read(client.clone(), &good).await.unwrap();
            calls += 1;
        }
        calls
    };
    let (refused, too_large, served) = tokio::join!(refused, too_large, served);
    let sum = |calls: Vec<u32>| calls.into_iter().sum::<u32>();
    eprintln!("{} refused, {} too large, {served} served", sum(refused), sum(too_large));
    let (fetches, most) = (keys.requests().len(), 1 + start.elapsed().as_secs() / SECONDS_OF_FETCH);
    assert!((1..=most).contains(&(fetches as u64)), "{fetches} fetches, at most {most} allowed");
    scene.end("invalid tokens").await;
}
