//! Answers that no simulator would give: too much, too slow, or in between.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use super::*;

/// Serves tokens, and hands everything else to `serve`, which has a connection for itself.
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

/// The head of a request; what is sent of a body comes with it or is of no interest.
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

/// What a question comes to, and whether it took less time than the time-out.
async fn asked<F: Future<Output = ()> + Send>(
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

/// The same bytes for whoever asks.
async fn answered(bytes: Vec<u8>) -> Result<StatusLookup, Error> {
    asked(move |mut stream| {
        let bytes = bytes.clone();
        async move {
            let _ = stream.write_all(&bytes).await;
            // The end of the connection would end the answer, too.
            let _ = stream.read(&mut [0]).await;
        }
    })
    .await
}

fn many_headers(count: usize) -> String {
    (0..count).flat_map(|n| ["x-".to_owned(), n.to_string(), ": y\r\n".to_owned()]).collect()
}

#[tokio::test]
async fn headers_are_bounded_in_number_and_size() {
    // Two are there already.
    assert!(answered(whole(&many_headers(98), STATUS)).await.is_ok());
    let too_many = answered(whole(&many_headers(99), STATUS)).await;
    assert!(
        matches!(&too_many, Err(Error::Ambiguous { reason, .. }) if !reason.contains("in time")),
        "{too_many:?}"
    );
    assert!(answered(whole(&format!("x: {}\r\n", "y".repeat(390_000)), STATUS)).await.is_ok());
    let too_long = answered(whole(&format!("x: {}\r\n", "y".repeat(1 << 20)), STATUS)).await;
    assert!(
        matches!(&too_long, Err(Error::Ambiguous { reason, .. }) if !reason.contains("in time")),
        "{too_long:?}"
    );
}

#[tokio::test]
async fn headers_without_end_end_the_call_in_time() {
    let endless = asked(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
        while stream.write_all(&[b'y'; 1_000]).await.is_ok() {}
    })
    .await;
    assert!(
        matches!(&endless, Err(Error::Ambiguous { reason, .. }) if !reason.contains("in time")),
        "{endless:?}"
    );
}

#[tokio::test]
async fn interim_answers_are_passed_over_and_never_the_answer() {
    let interim = [
        &b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"[..],
        &whole("", STATUS),
    ]
    .concat();
    assert!(answered(interim).await.is_ok());
    // One that changes the protocol was not asked for.
    let switched = answered(
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n".to_vec(),
    )
    .await;
    assert!(matches!(switched, Err(Error::Ambiguous { .. })), "{switched:?}");
    let forever = asked(|mut stream| async move {
        while stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(
        matches!(&forever, Err(Error::Ambiguous { reason, .. }) if reason.contains("in time")),
        "{forever:?}"
    );
}

/// Each byte in time, the whole not.
#[tokio::test]
async fn the_time_is_that_of_the_whole_answer() {
    let began = Instant::now();
    let trickle = asked(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await;
        while stream.write_all(b"{").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(matches!(trickle, Err(Error::Ambiguous { .. })), "{trickle:?}");
    // Three tries.
    assert!(began.elapsed() < Duration::from_secs(3 * 2 + 5));
}

/// The body, so many times.
fn gzip(body: &[u8], times: usize) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    (0..times).for_each(|_| encoder.write_all(body).unwrap());
    encoder.finish().unwrap()
}

/// What is bounded is what comes out: 64 KiB that are 64 MiB are too much, and are not read to
/// their end.
#[tokio::test]
async fn a_compressed_answer_is_bounded_by_what_it_holds() {
    let gzipped = "content-encoding: gzip\r\n";
    let bomb = gzip(&[b' '; 1 << 13], 1 << 13);
    assert!(bomb.len() < 1 << 17);
    let refused = answered(whole(gzipped, &bomb)).await;
    assert!(
        matches!(&refused, Err(Error::Ambiguous { reason, .. }) if reason.contains("too long")),
        "{refused:?}"
    );

    assert!(answered(whole(gzipped, &gzip(STATUS, 1))).await.is_ok());
}

/// Only the configured one, for everything, and the environment's never.
#[tokio::test]
async fn a_proxy_is_used_if_it_is_configured() {
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
