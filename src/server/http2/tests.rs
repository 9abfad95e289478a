use std::{pin::Pin, task::Poll};

use h2::{
    RecvStream,
    client::{self, SendRequest},
};
use http_body::Frame;
use tokio::{net::TcpStream, task::JoinHandle};
use tower::service_fn;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

const CHUNK: usize = 10_000;

/// A body that never ends. It sends data as fast as its reader reads, or nothing.
struct Endless(bool);

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.0 {
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[7; CHUNK])))))
        } else {
            Poll::Pending
        }
    }
}

fn trailers(text: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("end"), text.parse().unwrap())])
}

/// Answers with an endless body. The path says whether it has data, and whether it ends early.
fn answer(request: &Request<ReceivedBody>) -> Response<Endless> {
    let path = request.uri().path();
    let mut response = Response::new(Endless(path.contains("data")));
    if path.contains("end") {
        let at = Instant::now() + Duration::from_millis(100);
        response.extensions_mut().insert(ResponseEnd { at, trailers: || trailers("at its time") });
    }
    response
}

struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

async fn serve_with(options: Http2Options) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let listener_options = ListenerOptions {
        name: "test",
        max_connections: 10,
        max_connections_of_address: 10,
        descriptors_part: 2,
        networks: Vec::new(),
        connections: tokio_util::task::TaskTracker::new(),
    };
    let stop = CancellationToken::new();
    let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(&request)) });
    let serving =
        tokio::spawn(serve(listener_options, options, listener, None, service, stop.clone()));
    Server { address, stop, serving }
}

fn options() -> Http2Options {
    let (age, grace) = (Duration::from_hours(1), Duration::from_hours(1));
    Http2Options {
        max_concurrent_streams: 100,
        age,
        grace,
        slow_reader: trailers("slow"),
        aged: trailers("aged"),
        stopped: trailers("stopped"),
    }
}

/// Connects. The task ends with the connection.
async fn connect(server: &Server) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (client, connection) = client::handshake(stream).await.unwrap();
    (client, tokio::spawn(connection))
}

/// Begins a call, and returns the body of its response.
async fn call(client: &mut SendRequest<Bytes>, path: &str) -> Result<RecvStream, h2::Error> {
    let request = Request::post(format!("http://test/{path}")).body(()).unwrap();
    let (response, _) = client.send_request(request, true)?;
    Ok(response.await?.into_body())
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.expect("in time")
}

#[tokio::test]
async fn a_response_ends_at_its_time_also_if_nobody_reads_it() {
    let server = serve_with(options()).await;
    let (mut client, _connection) = connect(&server).await;
    for path in ["end", "end/data"] {
        // Nothing is read until the trailers arrive. So the window is used up.
        let mut body = within(call(&mut client, path)).await.unwrap();
        let (mut received, mut unread) = (0, Vec::new());
        while let Some(data) = within(body.data()).await {
            received += data.as_ref().unwrap().len();
            unread.push(data);
        }
        let trailers = within(body.trailers()).await.unwrap().unwrap();
        assert_eq!(trailers["end"], "at its time");
        assert_eq!(received > 0, path.contains("data"), "{received}");
    }
}

#[tokio::test]
async fn an_old_connection_takes_no_new_calls_and_is_closed_after_the_grace() {
    let age = Duration::from_millis(200);
    let server = serve_with(Http2Options { age, grace: 2 * age, ..options() }).await;
    let (mut client, connection) = connect(&server).await;
    let mut body = within(call(&mut client, "nothing")).await.unwrap();
    // GOAWAY ends the acceptance of calls, but not the open call.
    while within(client.clone().ready()).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (mut other, _other_connection) = connect(&server).await;
    let _other_body = within(call(&mut other, "nothing")).await.unwrap();
    assert!(within(body.data()).await.is_none());
    assert_eq!(within(body.trailers()).await.unwrap().unwrap()["end"], "aged");
    within(connection).await.unwrap().unwrap();
}

#[tokio::test]
async fn connections_without_calls_hold_nothing_up() {
    let server = serve_with(options()).await;
    let (_client, connection) = connect(&server).await;
    let _silent = TcpStream::connect(server.address).await.unwrap();
    server.stop.cancel();
    within(connection).await.unwrap().unwrap();
    // The silent peer has the time of the preface.
    within(server.serving).await.unwrap();
}

#[tokio::test]
async fn a_call_that_is_reset_is_dropped() {
    let server = serve_with(options()).await;
    let (mut client, connection) = connect(&server).await;
    for _ in 0..300 {
        drop(within(call(&mut client, "nothing")).await.unwrap());
        within(client.clone().ready()).await.unwrap();
    }
    drop(client);
    server.stop.cancel();
    within(connection).await.unwrap().unwrap();
    within(server.serving).await.unwrap();
}
