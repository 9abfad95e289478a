//! Requests that the listener refuses. Nothing of them is stored, and they delay no other sender.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use thingspace_gateway::{
    callbacks::{CallbackOutcome, Callbacks},
    identity::AccountName,
    requests::Requests,
    simulator::Endpoint,
    store::{Store, embedded::Embedded},
    thingspace::Client,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Sender, about, sender::drip};
use crate::harness::{
    ACCOUNT, Gateway, Upstream, device, eventually, get_status, place, serve_command, status_call,
    within,
};

/// Opens a connection and writes this text.
async fn begun(gateway: &Gateway, text: &str) -> TcpStream {
    let (address, _) = gateway.callbacks.as_ref().unwrap();
    let mut tcp = within("a connection", TcpStream::connect(address)).await.unwrap();
    tcp.write_all(text.as_bytes()).await.unwrap();
    tcp
}

/// Reads the status of the answer on a connection.
async fn answer(tcp: &mut TcpStream) -> String {
    let mut line = vec![0; 12];
    within("an answer", tcp.read_exact(&mut line)).await.unwrap();
    String::from_utf8(line).unwrap()
}

#[tokio::test]
async fn what_is_refused_leaves_no_trace() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.with_callbacks()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "key", 0..1).await.unwrap();
    let (sender, other) =
        (Sender::new(&gateway), Sender::of(&gateway, upstream.accounts[1].as_str()));
    let events = gateway.requests.events_read();
    let body = about(&id, &device(0), "Success");
    let path = &sender.path;

    // Headers without a body. The gateway does not wait for the body.
    let headers = |path: &str, length: u64| {
        format!("POST /{path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")
    };
    for wrong in ["", "wrong", &path[1..], &format!("{path}/x"), &path.to_lowercase()] {
        assert_eq!(
            answer(&mut begun(&gateway, &headers(wrong, 10 << 30)).await).await,
            "HTTP/1.1 404",
            "{wrong}"
        );
    }
    // ThingSpace may list and call the registered URL with a slash at its end.
    for right in [path, &format!("{path}/")] {
        assert_eq!(
            answer(&mut begun(&gateway, &headers(right, 10 << 30)).await).await,
            "HTTP/1.1 413"
        );
    }
    let cut = format!("{}{{\"requestId\"", headers(path, 500));
    let mut cut = begun(&gateway, &cut).await;
    cut.shutdown().await.unwrap();
    assert_eq!(answer(&mut cut).await, "HTTP/1.1 400");

    // An oversized body without a length. The answer may come before the end of the body.
    let mut chunked = begun(
        &gateway,
        &format!("POST /{path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),
    )
    .await;
    for _ in 0..5 {
        let _ =
            chunked.write_all(format!("10000\r\n{}\r\n", " ".repeat(0x1_0000)).as_bytes()).await;
    }
    eventually("the oversized body is refused", async || {
        sender.count(CallbackOutcome::TooLarge) == 3
    })
    .await;

    for method in [reqwest::Method::GET, reqwest::Method::PUT, reqwest::Method::HEAD] {
        let answer =
            within("an answer", sender.http.request(method, &sender.url).send()).await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["allow"]),
            (405, &"POST".parse().unwrap())
        );
    }

    for wrong in [
        body.clone(),
        sender.sign(&body.replace("secret", "sesame")),
        sender.sign(&body.replace("\"user\"", "\"somebody\"")),
        sender.sign(&body).replace("password", "passphrase"),
        other.sign(&body),
    ] {
        assert_eq!(sender.post_bytes(wrong.into_bytes()).await, 401);
    }

    let refused = [
        (CallbackOutcome::UnknownPath, 5),
        (CallbackOutcome::WrongMethod, 3),
        (CallbackOutcome::TooLarge, 3),
        (CallbackOutcome::Broken, 1),
        (CallbackOutcome::WrongPair, 5),
        (CallbackOutcome::Stored, 0),
        (CallbackOutcome::Quarantined, 0),
    ];
    assert_eq!(refused.map(|(outcome, _)| (outcome, sender.count(outcome))), refused);
    assert!(gateway.callbacks.as_ref().unwrap().1.quarantine().list().await.unwrap().is_empty());
    assert_eq!(gateway.requests.events_read(), events);

    let full =
        format!("{}{}", sender.sign(&body), " ".repeat((256 << 10) - sender.sign(&body).len()));
    assert_eq!(sender.post_bytes(full.into_bytes()).await, 200);
    gateway.stop().await;
}

#[tokio::test]
async fn another_accounts_callback_changes_nothing() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.with_callbacks()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "key", 0..1).await.unwrap();
    let other = Sender::of(&gateway, upstream.accounts[1].as_str());
    let events = gateway.requests.events_read();
    assert_eq!(other.post(&about(&id, &device(0), "Success")).await, 200);
    eventually("the callback is folded", async || gateway.requests.events_read() > events).await;
    assert_eq!(get_status(&mut client, status_call(&id)).await.unwrap().counts.unwrap().pending, 1);
    gateway.stop().await;
}

/// A sender that knows the path can begin bodies and never end them, also from the address of
/// ThingSpace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_senders_do_not_keep_out_others() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.with_callbacks()).await;
    let id = place(&mut gateway.client().await, "key", 0..1).await.unwrap();
    let sender = Arc::new(Sender::new(&gateway));
    let (address, _) = *gateway.callbacks.as_ref().unwrap();
    let headers =
        format!("POST /{} HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n", sender.path);
    let (mut slow, begun) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for n in 0..600 {
        let beginning = if n % 6 == 0 { String::new() } else { headers.clone() };
        let from = [127, 0, 0, if n % 3 == 0 { 2 } else { 1 }];
        slow.spawn(drip(address, from.into(), beginning, Arc::clone(&begun)));
    }
    eventually("slow senders have begun again", async || begun.load(Ordering::Relaxed) > 2_000)
        .await;

    let mut genuine = JoinSet::new();
    for _ in 0..8 {
        let (sender, body) = (Arc::clone(&sender), about(&id, &device(0), "warning"));
        genuine.spawn(async move {
            for _ in 0..25 {
                assert_eq!(sender.post(&body).await, 200);
            }
        });
    }
    while let Some(posted) = genuine.join_next().await {
        posted.unwrap();
    }
    assert_eq!(slow.len(), 600, "the slow ones are still there");
    slow.shutdown().await;
    assert_eq!(
        (sender.count(CallbackOutcome::Stored), sender.count(CallbackOutcome::TooMany)),
        (200, 0)
    );
    gateway.stop().await;
}

/// Only the configured networks are served.
#[tokio::test]
async fn connections_from_elsewhere_are_not_served() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.with_callbacks();
    config.callbacks.networks = "192.0.2.0/24, 127.0.0.2/32".into();
    let gateway = Gateway::start(config).await;
    let sender = Sender::new(&gateway);
    for (from, served) in [(1, false), (2, true)] {
        let http = reqwest::Client::builder()
            .local_address(IpAddr::from([127, 0, 0, from]))
            .build()
            .unwrap();
        let answer = within("an answer", http.get(&sender.url).send()).await;
        assert_eq!(answer.is_ok(), served, "{from}");
    }
    gateway.stop().await;
}

/// Connections that send nothing, half a header, or a body without an end are closed, and delay no
/// other sender.
#[tokio::test]
async fn slow_connections_delay_no_other_sender() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.with_callbacks()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "key", 0..1).await.unwrap();
    let sender = Sender::new(&gateway);
    let beginnings = [
        String::new(),
        "PRI * HT".to_owned(),
        "POST /".to_owned(),
        format!("POST /{} HTTP/1.1\r\nHost: a\r\nX: ", sender.path),
        format!("POST /{} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{{", sender.path),
    ];
    let mut slow = Vec::new();
    for text in beginnings.iter().cycle().take(60) {
        slow.push(begun(&gateway, text).await);
    }
    let mut body = about(&id, &device(0), "warning");
    for word in ["Pending", "Success"] {
        assert_eq!(sender.post(&body).await, 200);
        body = body.replace("warning", word);
    }
    assert_eq!(sender.count(CallbackOutcome::Broken), 0, "the slow ones are still there");
    for mut tcp in slow {
        let mut rest = Vec::new();
        // Reset or closed.
        let _ = within("the end of a slow connection", tcp.read_to_end(&mut rest)).await;
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_callback_that_cannot_be_stored_is_answered_503() {
    let upstream = Upstream::manual().await;
    let config = upstream.with_callbacks();
    let store: Arc<dyn Store> =
        Arc::new(Embedded::open(&config.store.path, Duration::from_hours(1)).unwrap());
    let tasks = TaskTracker::new();
    let client = Client::new(&config.thingspace, &config.credentials, &store, &tasks).unwrap();
    let requests = Requests::new(&config, Arc::clone(&store), client, &tasks);
    let account = AccountName::parse(ACCOUNT).unwrap();
    let callbacks =
        Callbacks::new(&config.callbacks, Arc::clone(&store), &[account], requests).await.unwrap();
    let listener = TcpListener::bind(config.callbacks.listen).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(callbacks.clone().serve(listener, stop.clone()));
    let sender = Sender::at(address, callbacks, ACCOUNT);
    let id = thingspace_gateway::identity::RequestId::parse("request-1").unwrap();
    let body = about(&id, &device(0), "Success");
    assert_eq!(sender.post(&body).await, 200);
    store.close().await;
    for refused in [&*body, "not a callback"] {
        assert_eq!(sender.post(refused).await, 503, "{refused}");
    }
    assert_eq!(sender.count(CallbackOutcome::NotStored), 2);
    stop.cancel();
    drop(sender);
    within("the listener ends", serving).await.unwrap();
}

/// ThingSpace still sends an earlier password.
#[tokio::test]
async fn an_earlier_password_of_callbacks_never_logs_in() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.with_callbacks();
    let file = |name: &str| upstream.dir.path().join(name);
    (config.callbacks.username_file, config.callbacks.password_file) =
        (file("sender"), file("sent"));
    std::fs::write(file("sender"), "sender").unwrap();
    std::fs::write(file("sent"), "sent first").unwrap();
    let right = std::fs::read(file("password")).unwrap();
    let gateway = Gateway::start(config).await;
    std::fs::write(file("sender"), "another").unwrap();
    std::fs::write(file("sent"), "sent now").unwrap();
    let sender = Sender::new(&gateway);
    sender.callbacks.secrets().refresh().await.unwrap();
    for sent in ["sent first", "sent now"] {
        std::fs::write(file("password"), sent).unwrap();
        let refused = place(&mut gateway.client().await, sent, [0]).await.unwrap_err();
        assert_eq!(crate::harness::reason(&refused), "UPSTREAM_CREDENTIALS_UNAVAILABLE");
        assert_eq!(upstream.sim.ledger().calls(Endpoint::Login), 0);
    }
    std::fs::write(file("password"), right).unwrap();
    eventually("it logs in with the right one", async || {
        place(&mut gateway.client().await, "k", [0]).await.is_ok()
    })
    .await;
    gateway.stop().await;
}

/// ThingSpace would send the password of a user in every callback.
#[tokio::test]
async fn the_callbacks_password_never_logs_in() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.with_callbacks();
    let file = |name: &str| upstream.dir.path().join(name);
    (config.callbacks.username_file, config.callbacks.password_file) =
        (file("sender"), file("sent"));
    std::fs::write(file("sender"), "sender").unwrap();
    std::fs::write(file("sent"), "sent in callbacks").unwrap();
    let right = std::fs::read(file("password")).unwrap();
    let gateway = Gateway::start(config.clone()).await;
    std::fs::write(file("password"), "sent in callbacks\n").unwrap();
    place(&mut gateway.client().await, "k", [0]).await.unwrap_err();
    assert_eq!(upstream.sim.ledger().calls(Endpoint::Login), 0);
    gateway.stop().await;
    let refused = crate::process::run(serve_command(&config, upstream.dir.path())).await;
    let said = crate::process::text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(78), "{said}");
    assert!(
        said.contains("callbacks.password_file: ") && !said.contains("sent in callbacks"),
        "{said}"
    );

    std::fs::write(file("password"), right).unwrap();
    let gateway = Gateway::start(config).await;
    place(&mut gateway.client().await, "k", [0]).await.unwrap();
    gateway.stop().await;
}
