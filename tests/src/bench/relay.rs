//! The plain tokio-tungstenite relay that anyone would write first: a rival of the node.
//!
//! `/echo` sends each message back; every other path is a channel, whose messages go to all on it. Set as
//! well as it can be: small read buffers, and one flush for all that waits for a client.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::{SinkExt as _, StreamExt as _};
use parking_lot::Mutex;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config};
use tokio_util::task::TaskTracker;

use crate::bench::announce;

/// Messages that a client may be behind before it misses some.
const CHANNEL_MESSAGES: usize = 4_096;
/// The same for each further channel, all of which is allocated at once.
const MANY_CHANNEL_MESSAGES: usize = 64;
/// The size of a client's read buffer: the memory of an idle client is about this and what the task takes.
const READ_BUFFER_BYTES: usize = 1_024;

/// Serves until the process is ended.
///
/// # Errors
///
/// The listener fails.
pub async fn serve() -> anyhow::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let listener = socket.listen(4_096)?;
    announce(listener.local_addr()?)?;
    let channels = Arc::new(Channels::default());
    let clients = TaskTracker::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        clients.spawn(client(stream, Arc::clone(&channels)));
    }
}

/// The channels by path. They are as few as the bench's, and none is ever taken away.
#[derive(Default)]
struct Channels(Mutex<HashMap<String, broadcast::Sender<Message>>>);

impl Channels {
    fn at(&self, path: &str) -> broadcast::Sender<Message> {
        let mut channels = self.0.lock();
        // One ring for each channel: with one channel it is as long as it can be.
        let messages = match channels.len() {
            0 => CHANNEL_MESSAGES,
            _ => MANY_CHANNEL_MESSAGES,
        };
        let channel = channels.entry(path.to_owned());
        channel
            .or_insert_with(|| broadcast::channel(messages).0)
            .clone()
    }
}

/// Serves one client; an error is its end.
#[expect(clippy::result_large_err, reason = "tungstenite asks for this type")]
async fn client(stream: TcpStream, channels: Arc<Channels>) -> Result<(), Error> {
    let mut path = String::new();
    let read_path = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        request.uri().path().clone_into(&mut path);
        Ok(response)
    };
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(READ_BUFFER_BYTES);
    let stream = accept_hdr_async_with_config(stream, read_path, Some(config)).await?;
    if path == "/echo" {
        echo(stream).await
    } else {
        relay(stream, channels.at(&path)).await
    }
}

async fn echo(mut stream: WebSocketStream<TcpStream>) -> Result<(), Error> {
    while let Some(message) = stream.next().await {
        let message = message?;
        if message.is_text() || message.is_binary() {
            stream.send(message).await?;
        }
    }
    Ok(())
}

async fn relay(
    mut stream: WebSocketStream<TcpStream>,
    channel: broadcast::Sender<Message>,
) -> Result<(), Error> {
    let mut messages = channel.subscribe();
    loop {
        tokio::select! {
            message = messages.recv() => match message {
                Ok(message) => {
                    stream.feed(message).await?;
                    feed_waiting(&mut stream, &mut messages).await?;
                    stream.flush().await?;
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Ok(()),
            },
            message = stream.next() => match message {
                Some(message) => {
                    let message = message?;
                    if message.is_text() || message.is_binary() {
                        // It fails only without receivers, and this client is one.
                        let _ = channel.send(message);
                    }
                }
                None => return Ok(()),
            },
        }
    }
}

/// Takes all messages that wait already, so that they share a flush.
async fn feed_waiting(
    stream: &mut WebSocketStream<TcpStream>,
    messages: &mut broadcast::Receiver<Message>,
) -> Result<(), Error> {
    loop {
        match messages.try_recv() {
            Ok(message) => stream.feed(message).await?,
            Err(TryRecvError::Lagged(_)) => {}
            Err(TryRecvError::Empty | TryRecvError::Closed) => return Ok(()),
        }
    }
}
