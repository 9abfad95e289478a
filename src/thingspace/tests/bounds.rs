//! Answers that the simulator cannot give: too large, too slow, or interim.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use super::*;

/// Answers token requests and logins. Hands each other connection to `serve`.
async fn raw<F: Future<Output = ()> + Send>(
    serve: impl Fn(TcpStream) -> F + Clone + Send + 'static,
) -> (String, tokio::task::AbortHandle) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let running = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let serve = serve.clone();
            tokio::spawn(async move {
                let head = head(&mut stream).await;
                let token = match head {
                    _ if head.contains("/oauth2/token ") => r#"{"access_token":"b"}"#,
                    _ if head.contains("/session/login ") => r#"{"sessionToken":"s"}"#,
                    _ => return serve(stream).await,
                };
                let _ = stream.write_all(&whole("", token.as_bytes())).await;
            });
        }
    });
    (format!("http://{address}/api"), running.abort_handle())
}

/// Reads the head of a request and ignores its body.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        assert!(stream.read_buf(&mut head).await.unwrap() > 0, "cut");
    }
    String::from_utf8(head).unwrap()
}

fn whole(headers: &str, body: &[u8]) -> Vec<u8> {
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(body);
    answer
}

const STATUS: &[u8] = br#"{"requestId":"r","status":"Pending"}"#;

/// The result of a status query to this server.
async fn queried<F: Future<Output = ()> + Send>(
    serve: impl Fn(TcpStream) -> F + Clone + Send + 'static,
) -> Result<StatusLookup, Error> {
    let (base_url, _running) = raw(serve).await;
    let files = tempfile::tempdir().unwrap();
    let mut config = thingspace(base_url);
    config.call_timeout = Duration::from_secs(2);
    let client = cold(&config, &files, &store(&files));
    let request = RequestId::parse("r").unwrap();
    let lookup = poll(&client, &request).await;
    lookup.map(|(lookup, _)| lookup)
}

/// The result of a status query that is answered with these bytes.
async fn answered(bytes: Vec<u8>) -> Result<StatusLookup, Error> {
    queried(move |mut stream| {
        let bytes = bytes.clone();
        async move {
            let _ = stream.write_all(&bytes).await;
            // The connection stays open, because its end would end the answer.
            let _ = stream.read(&mut [0]).await;
        }
    })
    .await
}

/// Why the outcome is unknown.
fn reason<T: std::fmt::Debug>(result: &Result<T, Error>) -> &str {
    match result {
        Err(Error::OutcomeUnknown { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

fn many_headers(count: usize) -> String {
    (0..count).flat_map(|n| ["x-".to_owned(), n.to_string(), ": y\r\n".to_owned()]).collect()
}

#[tokio::test]
async fn headers_are_bounded_in_number_and_size() {
    // Two headers are there already.
    assert!(answered(whole(&many_headers(98), STATUS)).await.is_ok());
    let too_many = answered(whole(&many_headers(99), STATUS)).await;
    assert!(!reason(&too_many).contains("in time"), "{too_many:?}");
    assert!(answered(whole(&format!("x: {}\r\n", "y".repeat(390_000)), STATUS)).await.is_ok());
    let too_long = answered(whole(&format!("x: {}\r\n", "y".repeat(1 << 20)), STATUS)).await;
    assert!(!reason(&too_long).contains("in time"), "{too_long:?}");
}

#[tokio::test]
async fn headers_without_end_end_the_call_in_time() {
    let endless = queried(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
        while stream.write_all(&[b'y'; 1_000]).await.is_ok() {}
    })
    .await;
    assert!(!reason(&endless).contains("in time"), "{endless:?}");
}

#[tokio::test]
async fn interim_answers_are_passed_over_and_never_the_answer() {
    let interim = [
        &b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"[..],
        &whole("", STATUS),
    ]
    .concat();
    assert!(answered(interim).await.is_ok());
    // The gateway requests no change of protocol.
    let switched = answered(
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n".to_vec(),
    )
    .await;
    assert!(matches!(switched, Err(Error::OutcomeUnknown { .. })), "{switched:?}");
    let forever = queried(|mut stream| async move {
        while stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(
        matches!(&forever, Err(Error::OutcomeUnknown { reason, .. }) if reason.contains("in time")),
        "{forever:?}"
    );
}

#[tokio::test]
async fn the_time_out_is_that_of_the_whole_answer() {
    let began = Instant::now();
    let trickle = queried(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await;
        while stream.write_all(b"{").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(matches!(trickle, Err(Error::OutcomeUnknown { .. })), "{trickle:?}");
    // Three tries.
    assert!(began.elapsed() < Duration::from_secs(3 * 2 + 5));
}

/// This body, repeated.
fn gzip(body: &[u8], times: usize) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    (0..times).for_each(|_| encoder.write_all(body).unwrap());
    encoder.finish().unwrap()
}

/// The bound is that of the decompressed bytes: 64 KiB that become 64 MiB are not read to their
/// end.
#[tokio::test]
async fn a_compressed_answer_is_bounded_by_what_it_holds() {
    let gzipped = "content-encoding: gzip\r\n";
    let bomb = gzip(&[b' '; 1 << 13], 1 << 13);
    assert!(bomb.len() < 1 << 17);
    let refused = answered(whole(gzipped, &bomb)).await;
    assert!(reason(&refused).contains("too long"), "{refused:?}");

    assert!(answered(whole(gzipped, &gzip(STATUS, 1))).await.is_ok());
}

#[tokio::test]
async fn only_the_configured_proxy_is_used() {
    let (proxy, _running) = raw(|mut stream| async move {
        let _ = stream.write_all(&whole("", STATUS)).await;
    })
    .await;
    let mut config = thingspace("http://thingspace.invalid/api".into());
    config.proxy_url = proxy.trim_end_matches("/api").to_owned();
    let files = tempfile::tempdir().unwrap();
    let client = cold(&config, &files, &store(&files));
    let request = RequestId::parse("r").unwrap();
    poll(&client, &request).await.unwrap();
}
