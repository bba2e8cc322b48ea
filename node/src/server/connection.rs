//! One TCP connection: HTTP/1.1 until it ends or becomes a WebSocket.
//!
//! A WebSocket gets a task of its own that holds nothing of HTTP any more.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::Request;
use http::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use tokio::net::TcpStream;
use tokio::time;
use tracing::debug;

use crate::http::Answer;
use crate::http::Upgrade;
use crate::server::Admitted;
use crate::server::NODE;
use crate::server::Server;
use crate::transport::Body;
use crate::transport::websocket::Upgraded;

/// Serves one connection until it ends.
pub(super) async fn run(
    server: Arc<Server>,
    stream: TcpStream,
    peer: SocketAddr,
    admitted: Admitted,
) {
    let limits = &server.config.limits;
    let admitted = Arc::new(admitted);
    let heard = AtomicBool::new(false);
    let service = service_fn(|request| {
        heard.store(true, Ordering::Relaxed);
        answer(Arc::clone(&server), request, peer, Arc::clone(&admitted))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Runs between requests too; the head of the first has its own deadline below.
        .header_read_timeout(limits.keepalive.max(limits.head_timeout))
        .max_buf_size(limits.head_bytes_max)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut first_head = pin!(time::sleep(limits.head_timeout));
    let (mut is_closing, mut is_first) = (false, true);
    let ended = loop {
        tokio::select! {
            biased;
            () = server.closing.cancelled(), if !is_closing => {
                is_closing = true;
                connection.as_mut().graceful_shutdown();
            }
            ended = connection.as_mut() => break ended,
            () = first_head.as_mut(), if is_first => {
                is_first = false;
                if !heard.load(Ordering::Relaxed) {
                    debug!(%peer, "no request in time");
                    return;
                }
            }
        }
    };
    if let Err(error) = ended {
        debug!(%peer, %error, "connection ended");
    }
}

async fn answer(
    server: Arc<Server>,
    mut request: Request<Incoming>,
    peer: SocketAddr,
    admitted: Arc<Admitted>,
) -> Result<Response<Body>, Infallible> {
    let on_upgrade = hyper::upgrade::on(&mut request);
    let mut answer = match server
        .services
        .admin
        .answer(request.method(), request.uri().path())
    {
        Some(response) => Answer::from(response),
        None => server.services.http.answer(request, peer.ip()).await,
    };
    answer
        .response
        .headers_mut()
        .insert(NODE, server.config.node_id.clone());
    if let Some(upgrade) = answer.upgrade {
        let websockets = Arc::clone(&server.services.websockets);
        server.tasks.spawn(async move {
            if let Some(upgraded) = take_over(on_upgrade, upgrade).await {
                websockets.serve(upgraded).await;
            }
            drop(admitted);
        });
    }
    Ok(answer.response)
}

/// Waits until the 101 is written and takes the socket out of hyper.
async fn take_over(on_upgrade: OnUpgrade, upgrade: Upgrade) -> Option<Upgraded> {
    let upgraded = match on_upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => {
            debug!(%error, "connection ended before the upgrade");
            return None;
        }
    };
    let parts = upgraded.downcast::<TokioIo<TcpStream>>().ok()?;
    Some(Upgraded {
        stream: parts.io.into_inner(),
        // A copy, mostly empty: hyper's buffer is 8 KiB.
        read_ahead: Bytes::copy_from_slice(&parts.read_buf),
        endpoint: upgrade.endpoint,
        transport: upgrade.transport,
    })
}
