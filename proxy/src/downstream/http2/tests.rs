//! HTTP/2 connections between the edge and the client of the `h2` crate: the deadline of each state, and memory limits.

use std::sync::Mutex;

use h2::client::SendRequest;
use http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::Instant;

use super::*;
use crate::http::http1::{Framing, ResponseBody};

const PREFACE: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(75);
const SEND_BUFFER: usize = 64 * 1024;

fn http2(connections: &Arc<Connections>) -> Http2 {
    Http2 {
        limits: Http2Limits {
            preface: PREFACE,
            idle: IDLE,
            streams: 100,
            send_buffer: SEND_BUFFER,
            head_size: 16 * 1024,
            websockets: true,
        },
        connections: Arc::clone(connections),
    }
}

/// A connection that is served, each request with `serve`. The task ends with it.
fn served<F>(
    connections: &Arc<Connections>,
    serve: impl Fn(Http2Request) -> F + Send + 'static,
) -> (DuplexStream, JoinSet<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (client, edge) = duplex(256 * 1024);
    let http2 = http2(connections);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { http2.serve(Box::new(edge), serve).await });
    (client, tasks)
}

fn connections() -> Arc<Connections> {
    Connections::new(Duration::from_secs(1))
}

/// A client after its handshake.
async fn client(io: DuplexStream, tasks: &mut JoinSet<()>) -> SendRequest<Bytes> {
    let (client, connection) = h2::client::handshake(io).await.unwrap();
    tasks.spawn(async move {
        let _ = connection.await;
    });
    client.ready().await.unwrap()
}

fn get() -> Request<()> {
    Request::get("https://a/").body(()).unwrap()
}

/// Responds to every request at once.
async fn respond(mut accepted: Http2Request) {
    let head = pingora::http::ResponseHeader::build(204, None).unwrap();
    let nothing = Bytes::new();
    accepted
        .stream
        .own_response(&head, nothing, &http::Method::GET, false);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_no_preface_or_half_of_one_is_closed_at_its_deadline() {
    for sent in ["", "PRI * HTTP/2.0\r\n\r\n"] {
        let (mut client, mut tasks) = served(&connections(), respond);
        let started = Instant::now();
        client.write_all(sent.as_bytes()).await.unwrap();
        tasks.join_next().await.unwrap().unwrap();
        assert_eq!(started.elapsed(), PREFACE, "{sent:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_nothing_after_its_preface_is_closed_as_idle() {
    let (mut client, mut tasks) = served(&connections(), respond);
    client
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    let started = Instant::now();
    tasks.join_next().await.unwrap().unwrap();
    let took = started.elapsed();
    assert!(IDLE <= took && took <= IDLE + CLOSE_GRACE, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_closed_when_it_has_had_no_stream_for_a_while() {
    let (io, mut tasks) = served(&connections(), respond);
    let mut clients = JoinSet::new();
    let mut client = client(io, &mut clients).await;
    tokio::time::sleep(IDLE / 2).await;
    let (response, _) = client.send_request(get(), true).unwrap();
    assert_eq!(response.await.unwrap().status(), 204);
    let started = Instant::now();
    tasks.join_next().await.unwrap().unwrap();
    let took = started.elapsed();
    assert!(IDLE <= took && took <= IDLE + CLOSE_GRACE, "{took:?}");
    assert!(client.ready().await.is_err(), "it received a GOAWAY");
}

#[tokio::test(start_paused = true)]
async fn a_connection_with_an_open_stream_is_not_idle_and_a_drain_waits_for_it() {
    let connections = connections();
    let (io, mut tasks) = served(&connections, |mut accepted: Http2Request| async move {
        tokio::time::sleep(10 * IDLE).await;
        let head = pingora::http::ResponseHeader::build(204, None).unwrap();
        let stream = &mut accepted.stream;
        stream.own_response(&head, Bytes::new(), &http::Method::GET, false);
    });
    let mut clients = JoinSet::new();
    let mut client = client(io, &mut clients).await;
    let (response, _) = client.send_request(get(), true).unwrap();
    tokio::time::sleep(IDLE).await;
    connections.drain();
    tokio::time::sleep(IDLE).await;
    assert!(client.ready().await.is_err(), "no new stream is accepted");
    assert_eq!(response.await.unwrap().status(), 204);
    tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_an_idle_connection_at_once() {
    let connections = connections();
    let (io, mut tasks) = served(&connections, respond);
    let mut clients = JoinSet::new();
    let _client = client(io, &mut clients).await;
    let started = Instant::now();
    connections.drain();
    tasks.join_next().await.unwrap().unwrap();
    assert!(started.elapsed() <= CLOSE_GRACE);
}

/// A stream whose client reads nothing holds the client's window, the connection's send buffer, and one piece.
#[tokio::test]
async fn a_stream_that_is_not_read_buffers_a_bounded_amount() {
    let forwarded = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&forwarded);
    let (io, _tasks) = served(&connections(), move |mut accepted: Http2Request| {
        let counted = Arc::clone(&counted);
        async move {
            let mut head = crate::http::http1::ResponseHead::parse(
                bytes::BytesMut::from(&b"HTTP/1.1 200 OK\r\n\r\n"[..]),
                9,
            )
            .unwrap();
            let mut body = ResponseBody::new(Framing::Bytes(u64::MAX));
            let stream = &mut accepted.stream;
            stream.begin_response(&mut head, &body, false);
            loop {
                std::future::poll_fn(|cx| {
                    let room = ready!(stream.poll_room(cx)).unwrap();
                    stream.pass(cx, &mut body, &vec![7; room]).unwrap();
                    *counted.lock().unwrap() += room;
                    Poll::Ready(())
                })
                .await;
            }
        }
    });
    let mut clients = JoinSet::new();
    let mut client = client(io, &mut clients).await;
    let (response, _) = client.send_request(get(), true).unwrap();
    // Its body is not read.
    let response: Response<h2::RecvStream> = response.await.unwrap();
    let mut last = 0;
    loop {
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = *forwarded.lock().unwrap();
        if now > 0 && now == last {
            break;
        }
        last = now;
    }
    assert!(last <= 65_535 + SEND_BUFFER + 2 * 16 * 1024, "{last}");
    drop(response);
}

#[tokio::test]
async fn a_connection_that_is_not_http2_is_closed() {
    let (mut client, mut tasks) = served(&connections(), respond);
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    tasks.join_next().await.unwrap().unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
}
