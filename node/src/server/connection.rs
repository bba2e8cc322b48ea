//! One TCP connection: HTTP/1.1 until it ends or becomes a WebSocket.
//!
//! hyper owns a connection only while a request is read or a response written: it needs two buffers of
//! 8 KiB each, and more. Between two requests, and while a poll waits, a connection is a socket and a
//! deadline. A WebSocket gets a task of its own without any HTTP state.
//!
//! Invariant: the connection is taken from hyper only at the end of a request that was read whole, with all
//! previous responses written to the socket; bytes that hyper has read ahead are kept.

use std::convert::Infallible;
use std::future;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use futures_util::FutureExt;
use http::HeaderMap;
use http::HeaderValue;
use http::Request;
use http::Response;
use http::StatusCode;
use http::Version;
use http::header;
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time;
use tokio::time::Instant;
use tracing::debug;

use crate::server::Server;
use crate::server::admin::{Admin, Asked};
use crate::server::admission::Admitted;
use crate::server::routing::ClientUpgrade;
use crate::server::routing::HttpOutcome;
use crate::server::routing::Upgrade;
use crate::server::routing::WaitingPoll;
use crate::transport::Body;
use crate::transport::websocket::Upgraded;

mod io;
mod progress;
mod rest;

use io::Io;
use io::ReadBody;
use io::WrittenBody;
use progress::Progress;
use progress::Step;

/// The response to a client whose request head was not complete in time.
const LATE: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// An idle connection.
struct Socket {
    stream: TcpStream,
    /// Bytes that were read and belong to the next request.
    read_ahead: Bytes,
}

/// The state of a connection that is taken from hyper.
enum Outcome {
    /// Nothing was received.
    Silent(Socket),
    /// It waits for the next request.
    Idle(Socket),
    /// Its request waits for its response.
    Resting(Socket, WaitingPoll),
    /// The 101 is sent.
    Upgraded(Socket, Upgrade),
    /// It is evicted before its first request.
    Evicted(TcpStream),
    /// It is finished.
    Ended(TcpStream),
}

/// Serves one connection until it ends.
pub(super) async fn run(
    server: Arc<Server>,
    stream: TcpStream,
    peer: SocketAddr,
    admitted: Admitted,
) {
    let limits = server.config.limits.get();
    let mut socket = Socket {
        stream,
        read_ahead: Bytes::new(),
    };
    let mut admitted = Mutex::new(admitted);
    let mut due = Instant::now() + limits.head_timeout;
    loop {
        let eviction = admitted.get_mut().eviction();
        if let Some(eviction) = eviction {
            // Boxed because rarely present: an idle connection keeps no room for it.
            let readable = time::timeout_at(due, socket.stream.readable());
            let open = server.closing.run_until_cancelled(readable);
            if Box::pin(eviction.run_until_cancelled(open)).await.is_none() {
                server.evict(&socket.stream, admitted.get_mut());
                return;
            }
        }
        if socket.read_ahead.is_empty() {
            tokio::select! {
                biased;
                readable = time::timeout_at(due, socket.stream.readable()) => match readable {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return,
                },
                () = server.closing.cancelled() => return,
            }
        }
        // Boxed, so that an idle connection keeps no room for them.
        socket = match Box::pin(serve(&server, socket, peer, &admitted)).await {
            Outcome::Silent(socket) => socket,
            Outcome::Idle(socket) => {
                due = Instant::now() + limits.keepalive;
                socket
            }
            Outcome::Resting(socket, poll) => {
                let Some(socket) = Box::pin(rest::rest(&server, socket, poll)).await else {
                    return;
                };
                due = Instant::now() + limits.keepalive;
                socket
            }
            Outcome::Upgraded(socket, upgrade) => {
                let websockets = Arc::clone(&server.services.websockets);
                let admitted = admitted.into_inner();
                match upgrade {
                    Upgrade::Client(upgrade) => {
                        let serving = websockets.serve(upgraded(socket, upgrade), admitted);
                        server.tasks.spawn(serving);
                    }
                    Upgrade::Handoff => {
                        let serving = websockets.serve_handed_off(socket.stream, admitted);
                        server.tasks.spawn(serving);
                    }
                }
                return;
            }
            Outcome::Evicted(stream) => {
                server.evict(&stream, admitted.get_mut());
                return;
            }
            Outcome::Ended(mut stream) => {
                let _ = stream.shutdown().await; // The client may have closed it already.
                return;
            }
        };
    }
}

/// Runs hyper until the connection is idle, upgraded or finished.
async fn serve(
    server: &Arc<Server>,
    socket: Socket,
    peer: SocketAddr,
    admitted: &Mutex<Admitted>,
) -> Outcome {
    let limits = server.config.limits.get();
    let progress = Arc::new(Progress::new(limits.send_timeout));
    let service = service_fn(|request| {
        Box::pin(respond(
            Arc::clone(server),
            request,
            peer,
            admitted,
            Arc::clone(&progress),
        ))
    });
    let mut http = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(limits.head_bytes_max)
        .serve_connection(Io::new(socket, Arc::clone(&progress)), service);
    let mut closing = pin!(server.closing.cancelled());
    let mut is_closing = false;
    let eviction = admitted.lock().eviction();
    let mut evicted = pin!(async {
        match &eviction {
            Some(eviction) => eviction.cancelled().await,
            None => future::pending().await,
        }
    });
    let head_due = Instant::now() + limits.head_timeout;
    let mut alarm = pin!(time::sleep_until(head_due));
    let step = poll_fn(|cx| {
        let mut ended = http.poll_without_shutdown(cx);
        if ended.is_pending() && !is_closing && closing.as_mut().poll(cx).is_ready() {
            is_closing = true;
            Pin::new(&mut http).graceful_shutdown();
            ended = http.poll_without_shutdown(cx);
        }
        if let Poll::Ready(ended) = ended {
            if let Err(error) = ended {
                debug!(%peer, %error, "connection ended");
            }
            return Poll::Ready(progress.upgrade().map_or(Step::Done, Step::Upgrade));
        }
        if progress.awaits_request() && evicted.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Step::Evicted);
        }
        let due = match progress.step() {
            Step::ReadingHead => head_due,
            Step::Busy { due: Some(due) } => due,
            Step::Busy { due: None } => return Poll::Pending,
            step => return Poll::Ready(step),
        };
        if alarm.deadline() != due {
            alarm.as_mut().reset(due);
        }
        alarm.as_mut().poll(cx).map(|()| progress.step())
    })
    .await;
    let parts = http.into_parts();
    let socket = parts.io.into_socket(&parts.read_buf);
    match step {
        Step::Silent => Outcome::Silent(socket),
        Step::Idle => Outcome::Idle(socket),
        Step::Rest(poll) => Outcome::Resting(socket, poll),
        Step::Upgrade(upgrade) => Outcome::Upgraded(socket, upgrade),
        Step::ReadingHead => {
            debug!(%peer, "the request's head was not complete in time");
            let _ = socket.stream.try_write(LATE); // Best effort: it is not waited for.
            Outcome::Ended(socket.stream)
        }
        Step::Busy { .. } => {
            debug!(%peer, "the client does not read its response");
            Outcome::Ended(socket.stream)
        }
        Step::Evicted => Outcome::Evicted(socket.stream),
        Step::Done => Outcome::Ended(socket.stream),
    }
}

async fn respond(
    server: Arc<Server>,
    request: Request<Incoming>,
    peer: SocketAddr,
    admitted: &Mutex<Admitted>,
    progress: Arc<Progress>,
) -> Result<Response<WrittenBody>, Infallible> {
    let is_http_11 = request.version() == Version::HTTP_11;
    let is_kept = keeps_alive(is_http_11, request.headers());
    progress.begin(request.body().is_end_stream());
    let (method, path) = (request.method(), request.uri().path());
    let purpose = || server.purpose(path, request.headers());
    if !server.admission.decide(&mut admitted.lock(), purpose) {
        let mut response = refusal();
        server.sign(response.headers_mut());
        return Ok(response.map(|body| WrittenBody::new(body, progress)));
    }
    // A full node closes a probe's connection, so that its permit is free for the next one.
    let is_kept = is_kept && (!Admin::is_probe(path) || admitted.lock().is_client());
    let asked = Asked {
        method,
        path,
        headers: request.headers(),
        peer: peer.ip(),
    };
    let outcome = match server.services.admin.probe(&asked) {
        Some(response) => HttpOutcome::Response(response),
        None => {
            let request = request.map(|body| ReadBody::new(body, Arc::clone(&progress)));
            server.services.http.respond(request, peer.ip()).await
        }
    };
    let is_kept = is_kept && progress.is_body_read();
    let mut response = match outcome {
        HttpOutcome::Response(response) => response,
        HttpOutcome::Upgrade(mut response, upgrade) => {
            progress.begin_upgrade(upgrade);
            server.sign(response.headers_mut());
            return Ok(response.map(|body| WrittenBody::new(body, progress)));
        }
        HttpOutcome::Poll(mut poll) => match (&mut poll).now_or_never() {
            Some(response) => response.map(Body::Whole),
            None if is_http_11 && is_kept => {
                progress.begin_rest(poll);
                future::pending().await
            }
            None => poll.await.map(Body::Whole),
        },
    };
    if server.sign(response.headers_mut()) && is_kept {
        progress.keep_alive();
    } else {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    Ok(response.map(|body| WrittenBody::new(body, progress)))
}

/// The response to a request for which a full node has no permit. The connection ends with it.
fn refusal() -> Response<Body> {
    let mut response = Response::new(Body::from("the node is full\n"));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, text);
    response
}

/// Whether the client sends further requests on this connection, RFC 9112 section 9.3.
fn keeps_alive(is_http_11: bool, headers: &HeaderMap) -> bool {
    let has = |option: &str| {
        let values = headers.get_all(header::CONNECTION).iter();
        values
            .flat_map(|value| value.to_str().unwrap_or_default().split(','))
            .any(|value| value.trim().eq_ignore_ascii_case(option))
    };
    !has("close") && (is_http_11 || has("keep-alive"))
}

fn upgraded(socket: Socket, upgrade: ClientUpgrade) -> Upgraded {
    Upgraded {
        stream: socket.stream,
        read_ahead: socket.read_ahead,
        endpoint: upgrade.endpoint,
        transport: upgrade.transport,
        can_hand_off: upgrade.can_hand_off,
        headers: upgrade.headers,
    }
}
