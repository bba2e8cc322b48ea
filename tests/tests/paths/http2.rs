//! A client of HTTP/2, by the h2 crate: one connection for each row.

use std::{future::poll_fn, net::SocketAddr, pin::Pin, sync::Arc, task::Poll, time::Duration};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use causeway_tests::harness::tls;
use h2::{
    Reason, RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
    ext::Protocol,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request as Message, Uri, Version};
use rustls::ClientConfig;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    backend::excerpt,
    case::{Behind, Body, Case, Pace, Request},
    exchange::{Exchange, ID},
    got::{After, Ended, Got, Head, Heard},
    http1::backend_has,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Sends the request of `case` on a connection of its own, and reads what comes.
pub(crate) async fn play(
    address: SocketAddr,
    clients: &Arc<ClientConfig>,
    case: &Case,
    exchange: &Exchange,
    next: &Exchange,
) -> Result<Got> {
    let stream = tls::connect_from(case.request.from, address).await?;
    let stream = tls::handshake(clients, stream).await?;
    let (client, connection) = h2::client::handshake(stream).await?;
    // Ends the connection when it is dropped.
    let mut driving = JoinSet::new();
    driving.spawn(async move { connection.await.err() });
    let mut client = client.ready().await?;
    let request = &case.request;
    if request.upgrade.is_some() {
        // The settings of the edge come with its first bytes.
        let announced = async {
            while !client.is_extended_connect_protocol_enabled() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let announced = timeout(PATIENCE, announced).await;
        announced.context("extended CONNECT is not announced")?;
    }
    let (heard, hears) = watch::channel(Heard::Nothing);
    let bodiless = matches!(&request.body, Body::None)
        || matches!(&request.body, Body::Length(0, pieces) if pieces.is_empty());
    let end = bodiless && request.upgrade.is_none();
    let (mut response, mut sending) = client.send_request(message(request, exchange)?, end)?;
    let mut got = Got::default();

    if request.behind == Behind::Leave {
        send(&mut sending, request, exchange, hears).await;
        let all = request.body.pieces().iter().map(Vec::len).sum();
        backend_has(exchange, all).await;
        sending.send_reset(Reason::CANCEL);
        // For the frame to leave before the connection does.
        got.after = after(&mut client, request, next, &mut got).await;
        got.end = Ended::Left;
        return Ok(got);
    }
    let pipelined = match request.behind {
        Behind::Pipelined => Some(client.send_request(next_request(request, next)?, true)?.0),
        _ => None,
    };
    let open = {
        let receive = receive(
            &mut response,
            &mut got,
            exchange,
            &heard,
            request.upgrade.is_some(),
        );
        let send = send(&mut sending, request, exchange, hears);
        tokio::pin!(receive, send);
        let mut sent = end;
        let open = loop {
            tokio::select! {
                open = &mut receive => break open,
                () = &mut send, if !sent => sent = true,
            }
        };
        if !sent {
            timeout(PATIENCE, send).await.ok();
        }
        open
    };
    if let Some(body) = open {
        tunnel(body, &mut sending, case, &mut got).await;
    }
    if request.behind == Behind::Nothing {
        return Ok(got);
    }
    got.after = match pipelined {
        Some(response) => answered(response, next, &mut got).await,
        None => after(&mut client, request, next, &mut got).await,
    };
    Ok(got)
}

fn message(request: &Request, exchange: &Exchange) -> Result<Message<()>> {
    let mut message = Message::new(());
    *message.version_mut() = Version::HTTP_2;
    *message.method_mut() = match request.upgrade {
        Some(_) => Method::CONNECT,
        None => Method::from_bytes(request.method.as_bytes())?,
    };
    *message.uri_mut() = uri(request, request.target)?;
    if request.upgrade.is_some() {
        message
            .extensions_mut()
            .insert(Protocol::from_static("websocket"));
        let version = HeaderValue::from_static("13");
        message
            .headers_mut()
            .append("sec-websocket-version", version);
    }
    message
        .headers_mut()
        .append(ID, HeaderValue::from(exchange.id));
    for (name, value) in &request.headers {
        append(message.headers_mut(), name, value)?;
    }
    if let Body::Length(length, _) = request.body {
        let length = HeaderValue::from(length);
        message.headers_mut().append("content-length", length);
    }
    Ok(message)
}

fn next_request(request: &Request, next: &Exchange) -> Result<Message<()>> {
    let mut message = Message::new(());
    *message.version_mut() = Version::HTTP_2;
    *message.uri_mut() = uri(request, request.next)?;
    message.headers_mut().append(ID, HeaderValue::from(next.id));
    Ok(message)
}

fn uri(request: &Request, target: &str) -> Result<Uri> {
    let uri = Uri::builder()
        .scheme("https")
        .authority(request.host)
        .path_and_query(target)
        .build();
    uri.with_context(|| format!("no URL of {target}"))
}

fn append(headers: &mut HeaderMap, name: &str, value: &str) -> Result<()> {
    let name = HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes())?;
    headers.append(name, HeaderValue::from_bytes(value.as_bytes())?);
    Ok(())
}

/// Sends the body, as far as the other side takes it.
async fn send(
    sending: &mut SendStream<Bytes>,
    request: &Request,
    exchange: &Exchange,
    mut hears: watch::Receiver<Heard>,
) {
    if let Some(upgrade) = &request.upgrade {
        data(sending, &upgrade.early, false).await.ok();
        return;
    }
    let pieces = request.body.pieces();
    let leaves = request.behind == Behind::Leave;
    let mut before = 0;
    for (number, piece) in pieces.iter().enumerate() {
        match request.pace {
            _ if number == 0 => {}
            Pace::AtOnce => {}
            Pace::BackendHas => backend_has(exchange, before).await,
            Pace::ResponseCame => {
                let came = hears.wait_for(|heard| *heard == Heard::Response);
                if timeout(PATIENCE, came).await.is_err() {
                    exchange.complain("no response while the body was still being sent");
                }
            }
        }
        before += piece.len();
        let last = number + 1 == pieces.len();
        let declared = match &request.body {
            Body::Length(length, _) => before < *length,
            Body::Unknown {
                trailers,
                empty_last,
                ..
            } => *empty_last || !trailers.is_empty(),
            Body::None => false,
        };
        if data(sending, piece, last && !declared && !leaves)
            .await
            .is_err()
        {
            return;
        }
    }
    let Body::Unknown {
        trailers,
        empty_last,
        ..
    } = &request.body
    else {
        return;
    };
    if leaves {
        return;
    }
    if !trailers.is_empty() {
        let mut map = HeaderMap::new();
        for (name, value) in trailers {
            append(&mut map, name, value).ok();
        }
        sending.send_trailers(map).ok();
    } else if *empty_last || pieces.is_empty() {
        sending.send_data(Bytes::new(), true).ok();
    }
}

/// Sends `bytes` in frames of their own.
async fn data(sending: &mut SendStream<Bytes>, bytes: &[u8], end: bool) -> Result<()> {
    let mut rest = Bytes::copy_from_slice(bytes);
    while !rest.is_empty() {
        sending.reserve_capacity(rest.len());
        let capacity = poll_fn(|cx| sending.poll_capacity(cx)).await;
        let capacity = capacity.context("the stream is closed")??;
        let part = rest.split_to(capacity.min(rest.len()));
        sending.send_data(part, end && rest.is_empty())?;
    }
    Ok(())
}

/// Reads interim responses and the response into `got`. Returns the stream of a tunnel that is open.
async fn receive(
    response: &mut ResponseFuture,
    got: &mut Got,
    exchange: &Exchange,
    heard: &watch::Sender<Heard>,
    tunnels: bool,
) -> Option<RecvStream> {
    let interim = &mut got.interim;
    let came = poll_fn(|cx| {
        loop {
            match response.poll_informational(cx) {
                Poll::Ready(Some(Ok(response))) => {
                    interim.push(head(response.status().as_u16(), response.headers()))
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        Pin::new(&mut *response).poll(cx)
    });
    let came = match came.await {
        Ok(came) => came,
        // A reset in place of a response: the stream has ended.
        Err(_) => return None,
    };
    heard.send_replace(Heard::Response);
    let status = came.status();
    got.head = Some(head(status.as_u16(), came.headers()));
    let mut body = came.into_body();
    if tunnels && status.is_success() {
        return Some(body);
    }
    got.end = loop {
        match body.data().await {
            Some(Ok(piece)) => {
                body.flow_control().release_capacity(piece.len()).ok();
                got.body.extend_from_slice(&piece);
                exchange.client_got(got.body.len());
            }
            Some(Err(error)) => break Ended::Cut(error.to_string()),
            None => {
                break match body.trailers().await {
                    Ok(trailers) => {
                        got.trailers = head(0, &trailers.unwrap_or_default()).headers;
                        Ended::Whole
                    }
                    Err(error) => Ended::Cut(error.to_string()),
                };
            }
        }
    };
    None
}

fn head(status: u16, headers: &HeaderMap) -> Head {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    Head {
        status,
        headers: headers
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), text(value)))
            .collect(),
    }
}

/// Uses a tunnel that is open, and ends it from this side.
async fn tunnel(mut body: RecvStream, sending: &mut SendStream<Bytes>, case: &Case, got: &mut Got) {
    got.end = Ended::Whole;
    let then = case
        .request
        .upgrade
        .as_ref()
        .map(|upgrade| &upgrade.then[..]);
    let then = then.unwrap_or_default();
    let mut read = async |got: &mut Got, most: usize| {
        while got.tunnel.len() < most
            && let Some(Ok(piece)) = body.data().await
        {
            body.flow_control().release_capacity(piece.len()).ok();
            got.tunnel.extend_from_slice(&piece);
        }
    };
    let wanted = case.client.tunnel.len();
    // At the same time: what comes back while it is sent may be more than the windows hold.
    let (sent, came) = tokio::join!(
        data(sending, then, false),
        timeout(PATIENCE, read(got, wanted))
    );
    sent.ok();
    if came.is_err() {
        got.faults
            .push("the tunnel has no bytes in time".to_owned());
    }
    sending.send_data(Bytes::new(), true).ok();
    if timeout(PATIENCE, read(got, usize::MAX)).await.is_err() {
        got.faults.push("the tunnel has no end in time".to_owned());
    }
}

/// Sends another request over the same connection.
async fn after(
    client: &mut SendRequest<Bytes>,
    request: &Request,
    next: &Exchange,
    got: &mut Got,
) -> After {
    let sent = async {
        poll_fn(|cx| client.poll_ready(cx)).await?;
        let (response, _) = client.send_request(next_request(request, next)?, true)?;
        anyhow::Ok(response)
    };
    match sent.await {
        Ok(response) => answered(response, next, got).await,
        Err(_) => After::Closed,
    }
}

async fn answered(response: ResponseFuture, next: &Exchange, got: &mut Got) -> After {
    let read = async {
        let response = response.await?;
        let mut body = response.into_body();
        let mut all = Vec::new();
        while let Some(piece) = body.data().await {
            let piece = piece?;
            body.flow_control().release_capacity(piece.len())?;
            all.extend_from_slice(&piece);
        }
        if all != next.next_body().as_bytes() {
            bail!("the next request got {}", excerpt(&all));
        }
        Ok(())
    };
    match read.await {
        Ok(()) => After::Kept,
        Err(error)
            if error
                .downcast_ref::<h2::Error>()
                .is_some_and(|error| !error.is_reset()) =>
        {
            After::Closed
        }
        Err(error) => {
            got.faults.push(format!("{error:#}"));
            After::Unknown
        }
    }
}
