//! Promise 8 with JSON Web Tokens, whose keys come from an HTTPS server.

use aws_lc_rs::hmac;
use jiff::Timestamp;
use serde_json::{Value, json};
use test_support::issuer::{Issuer, KeyServer, SUBJECT, claims, encode, key_set, unsigned};
use thingspace_gateway::config::Config;
use tonic::Code;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
};

use crate::callers::{entry, line, with};
use crate::control::json as operator_json;
use crate::doctor::{findings, has};
use crate::harness::*;

/// How much the clocks of the issuer and of the gateway may differ, in seconds.
const LEEWAY: i64 = 60;

fn in_seconds(seconds: i64) -> i64 {
    Timestamp::now().as_second() + seconds
}

fn config(upstream: &Upstream, keys: &KeyServer) -> Config {
    let mut config = upstream.quiet();
    keys.configure(&mut config);
    config.auth.allow = vec![entry(&[&format!("jwt:{SUBJECT}")], &["*"], &[ACCOUNT])];
    config
}

/// A token of a caller whose gateway accepts it for so many seconds.
fn brief(issuer: &Issuer, seconds: i64) -> String {
    issuer.token(&claims(in_seconds(seconds - LEEWAY)))
}

fn changed(key: &str, value: impl Into<Value>) -> Value {
    let mut claims = claims(in_seconds(600));
    claims[key] = value.into();
    claims
}

/// Signs like somebody who takes the public key for a shared secret.
fn signed_with_public_key(issuer: &Issuer) -> String {
    let header = json!({ "alg": "HS256", "kid": issuer.id });
    let signed = unsigned(&header, &claims(in_seconds(600)));
    let key = hmac::Key::new(hmac::HMAC_SHA256, issuer.public_key());
    format!("{signed}.{}", encode(hmac::sign(&key, signed.as_bytes())))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_tokens_are_refused_beside_a_caller_with_a_good_one() {
    let (issuer, stranger) = (Issuer::new("one"), Issuer::new("two"));
    let impostor = Issuer::new("one");
    let keys = KeyServer::start(key_set(&[&issuer])).await;
    let upstream = Upstream::manual().await;
    let gateway = Process::serve(&config(&upstream, &keys), upstream.dir.path());
    let client = gateway.client().await;
    let id = upstream.sim.add_request(upstream.accounts[0].clone(), [upstream_device(1)]);
    let read = async |token: &str| {
        let mut client = client.clone();
        let call = client.get_request_status(with(status_call(&id), token));
        within("a status", call).await.map(drop)
    };
    let good = issuer.token(&claims(in_seconds(600)));
    eventually("the keys are fetched", async || read(&good).await.is_ok()).await;

    let none =
        |alg: &str| format!("{}.", unsigned(&json!({ "alg": alg }), &claims(in_seconds(600))));
    for (wrong, token) in [
        ("expired", issuer.token(&claims(in_seconds(-LEEWAY - 30)))),
        ("of the future", issuer.token(&changed("nbf", in_seconds(LEEWAY + 30)))),
        ("for another audience", issuer.token(&changed("aud", json!(["https://other.example"])))),
        ("of another issuer", issuer.token(&changed("iss", "https://other.example"))),
        ("unsigned", none("none")),
        ("unsigned, in capitals", none("NONE")),
        ("signed with the public key", signed_with_public_key(&issuer)),
        (
            "of an algorithm for other keys",
            issuer.sign(&json!({ "alg": "RS256", "kid": "one" }), &claims(in_seconds(600))),
        ),
        ("signed by an unknown key", stranger.token(&claims(in_seconds(600)))),
        ("signed by an impostor", impostor.token(&claims(in_seconds(600)))),
        ("long", issuer.token(&changed("padding", "x".repeat(9_000)))),
        ("changed", good.replacen('.', ".A", 1)),
    ] {
        let refused = read(&token).await.unwrap_err();
        let expected = (Code::Unauthenticated, "CALLER_UNAUTHENTICATED".to_owned());
        assert_eq!(kind(&refused), expected, "a token that is {wrong}");
        read(&good).await.unwrap();
    }
    // The limit for headers refuses it. The connection need not survive that.
    let huge = issuer.token(&changed("padding", "x".repeat(1 << 20)));
    let mut lone = gateway.client().await;
    within("a status", lone.get_request_status(with(status_call(&id), &huge))).await.unwrap_err();
    read(&good).await.unwrap();
    // A good token of a caller that the policy does not name.
    let other = issuer.token(&changed("sub", "system:serviceaccount:fleet:other"));
    assert_eq!(read(&other).await.unwrap_err().code(), Code::PermissionDenied);
    // Two headers, one of them good.
    let mut twice = with(status_call(&id), &good);
    twice.metadata_mut().append("authorization", "Bearer other".parse().unwrap());
    let refused = client.clone().get_request_status(twice).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    // Unknown keys made no fetch, because the first one was less than a minute ago.
    assert_eq!(keys.requests().len(), 1);

    gateway.terminate();
    let (_, log) = gateway.wait().await;
    let signature = good.rsplit('.').next().unwrap();
    assert!(!log.iter().any(|line| line.contains(signature)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_ends_with_its_token_when_the_token_of_its_caller_expires() {
    let issuer = Issuer::new("one");
    let keys = KeyServer::start(key_set(&[&issuer])).await;
    let upstream = Upstream::manual().await;
    let gateway = Process::serve(&config(&upstream, &keys), upstream.dir.path());
    let mut client = gateway.client().await;
    let id = upstream.sim.add_request(upstream.accounts[0].clone(), [upstream_device(1)]);
    let request = |resume_token: &str| thingspace_gateway::proto::esim::WatchRequestRequest {
        account_name: ACCOUNT.to_owned(),
        request_id: id.to_string(),
        resume_token: resume_token.to_owned(),
    };
    // A token is accepted until the leeway has passed. On a busy machine the first one may expire
    // before the snapshot arrives.
    let mut lifetime = 3;
    let (ended, resume_token) = loop {
        let mut watch = eventually_ok("a watch begins", async || {
            let brief = brief(&issuer, lifetime);
            client.clone().watch_request(with(request(""), &brief)).await
        })
        .await
        .into_inner();
        let mut resume_token = String::new();
        let ended = loop {
            match within("a message", watch.message()).await {
                Ok(Some(message)) => resume_token = message.resume_token,
                Ok(None) => panic!("the watch ended with OK"),
                Err(status) => break status,
            }
        };
        if !resume_token.is_empty() {
            break (ended, resume_token);
        }
        lifetime *= 2;
    };
    assert_eq!(kind(&ended), (Code::Unauthenticated, "CALLER_UNAUTHENTICATED".to_owned()));
    let sent = tonic_types::StatusExt::get_details_error_info(&ended).unwrap().metadata;
    assert_eq!(sent.get("resumeToken"), Some(&resume_token));

    let fresh = issuer.token(&claims(in_seconds(600)));
    let resumed = client.watch_request(with(request(&resume_token), &fresh)).await;
    within("a heartbeat or an event", async { drop(resumed.unwrap()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_reflection_and_a_long_poll_end_when_the_token_expires() {
    let issuer = Issuer::new("one");
    let keys = KeyServer::start(key_set(&[&issuer])).await;
    let upstream = Upstream::manual().await;
    let mut config = config(&upstream, &keys);
    config.grpc.reflection = true;
    let gateway = Process::serve(&config, upstream.dir.path());
    let reflection = ServerReflectionClient::new(channel(gateway.address).await);
    let mut stream = eventually_ok("a stream begins", async || {
        let questions = tokio_stream::pending::<ServerReflectionRequest>();
        reflection.clone().server_reflection_info(with(questions, &brief(&issuer, 3))).await
    })
    .await
    .into_inner();
    let ended = within("the end", stream.message()).await.unwrap_err();
    assert_eq!(kind(&ended), (Code::Unauthenticated, "CALLER_UNAUTHENTICATED".to_owned()));

    let id = upstream.sim.add_request(upstream.accounts[0].clone(), [upstream_device(1)]);
    let client = gateway.client().await;
    // Without the end of the token, it would last longer than the test waits.
    eventually_ok("a long poll is answered", async || {
        let mut poll = status_call(&id);
        poll.wait = Some(prost_types::Duration { seconds: 50, nanos: 0 });
        poll.after_revision = 1;
        let mut client = client.clone();
        let call = client.get_request_status(with(poll, &brief(&issuer, 5)));
        within("an answer", call).await
    })
    .await;
}

/// A gateway that can verify no credentials at all is not ready, so that a rollout with a wrong URL
/// stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_with_only_json_web_tokens_is_ready_when_it_has_their_keys() {
    let issuer = Issuer::new("one");
    let keys = KeyServer::start("nothing".to_owned()).await;
    let upstream = Upstream::manual().await;
    let mut config = config(&upstream, &keys);
    let file = upstream.dir.path().join("gateway.toml");
    write_config(&config, upstream.dir.path());
    let about = "callers auth.jwt.jwks_url";
    let (_, found) = findings(&file).await;
    assert!(has(&found, &format!("failure {about}")), "{found:#?}");
    let mut gateway = Process::launch(&config, upstream.dir.path());
    let waits =
        "the key set of the callers' tokens has not been fetched yet: the answer holds no set";
    eventually("the problem is reported", async || {
        let answer = reqwest::get(format!("http://{}/readyz", gateway.admin)).await.unwrap();
        answer.status() == 503 && answer.text().await.unwrap().contains(waits)
    })
    .await;
    let status = operator_json(&file, &["status"]).await;
    assert!(status["ready"] == false && status["waits_for"].as_str().unwrap().contains(waits));
    let source = &status["caller_credentials"]["auth.jwt.jwks_url"];
    assert!(source["since"].is_null() && source["problem"].is_string(), "{status}");
    let action = status["issues"][0]["action"].as_str().unwrap();
    assert!(action.contains("check auth.jwt.jwks_url"), "{status}");
    let (_, found) = findings(&file).await;
    assert!(has(&found, &format!("failure {about}")), "{found:#?}");
    assert!(has(&found, "failure gateway ready"), "{found:#?}");
    keys.answer(200, key_set(&[&issuer]));
    gateway.wait_for_line("\"ready\"");
    let (_, found) = findings(&file).await;
    assert!(has(&found, &format!("ok {about}")), "{found:#?}");
    gateway.terminate();
    gateway.wait().await;
    let (_, found) = findings(&file).await;
    assert!(has(&found, &format!("ok {about}")), "{found:#?}");

    // Callers with other credentials do not wait for the keys.
    keys.answer(200, "nothing".to_owned());
    config.auth.tokens_file = upstream.dir.path().join("tokens");
    std::fs::write(&config.auth.tokens_file, line("orders", "a token")).unwrap();
    let gateway = Process::serve(&config, upstream.dir.path());
    let status = operator_json(&file, &["status"]).await;
    assert!(status["ready"] == true, "{status}");
    drop(gateway);
}
