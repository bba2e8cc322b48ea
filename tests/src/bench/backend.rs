//! The backend of the edges: it echoes WebSocket messages and responds to requests once it has read their bodies, and is never the
//! bottleneck.
//!
//! One thread, one epoll loop. It sends nothing unless asked, so that a proxied connection is truly idle.

use std::io;
use std::net::SocketAddr;

use anyhow::Context as _;
use mio::event::Event;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::bench::announce;
use crate::bench::pipe::{Filled, Pipe, SCRATCH_BYTES};
use crate::bench::wire::{self, Parsed};

/// The listener's token; connection `n` has token `n`.
const LISTENER: Token = Token(usize::MAX);
const RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nhello, client";

/// Serves until the process is ended.
///
/// # Errors
///
/// The listener or the event loop fails.
pub fn serve() -> anyhow::Result<()> {
    let mut poll = Poll::new()?;
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut listener = TcpListener::bind(loopback).context("cannot listen")?;
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    announce(listener.local_addr()?)?;
    let mut events = Events::with_capacity(1024);
    let mut clients = Clients::default();
    let mut scratch = vec![0; SCRATCH_BYTES];
    let mut out = Vec::new();
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        }
        for event in &events {
            if event.token() == LISTENER {
                clients.accept_all(&listener, &poll)?;
            } else {
                clients.advance(event, &mut scratch, &mut out);
            }
        }
    }
}

/// The open connections by token, and the tokens that are free.
#[derive(Default)]
struct Clients {
    slots: Vec<Option<Client>>,
    free: Vec<usize>,
}

impl Clients {
    fn accept_all(&mut self, listener: &TcpListener, poll: &Poll) -> io::Result<()> {
        loop {
            let (mut stream, _) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            stream.set_nodelay(true)?;
            let index = self.free.pop().unwrap_or(self.slots.len());
            let both = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut stream, Token(index), both)?;
            let client = Client {
                pipe: Pipe::new(stream),
                is_upgraded: false,
            };
            if index == self.slots.len() {
                self.slots.push(Some(client));
            } else {
                self.slots[index] = Some(client);
            }
        }
    }

    fn advance(&mut self, event: &Event, scratch: &mut [u8], out: &mut Vec<u8>) {
        let index = event.token().0;
        let slot = &mut self.slots[index];
        if let Some(client) = slot
            && client.advance(event, scratch, out).is_err()
        {
            *slot = None;
            self.free.push(index);
        }
    }
}

struct Client {
    pipe: Pipe,
    is_upgraded: bool,
}

impl Client {
    /// Responds to all that has come. An error is the end of the connection, for whatever reason.
    fn advance(&mut self, event: &Event, scratch: &mut [u8], out: &mut Vec<u8>) -> io::Result<()> {
        if event.is_writable() {
            self.pipe.flush()?;
        }
        if !event.is_readable() && !event.is_read_closed() {
            return Ok(());
        }
        loop {
            match self.pipe.fill(scratch)? {
                Filled::Bytes { length, more } => {
                    out.clear();
                    let used = self.respond(&mut scratch[..length], out)?;
                    self.pipe.keep(&scratch[used..length]);
                    self.pipe.send(out)?;
                    if !more && !event.is_read_closed() {
                        return Ok(());
                    }
                }
                Filled::Nothing => return Ok(()),
                Filled::End => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    /// Appends the responses to all that is whole in `bytes`, and says how much of them that was.
    fn respond(&mut self, bytes: &mut [u8], out: &mut Vec<u8>) -> io::Result<usize> {
        let mut used = 0;
        while used < bytes.len() {
            let rest = &mut bytes[used..];
            let taken = if self.is_upgraded {
                echo(rest, out)?
            } else {
                self.request(rest, out)?
            };
            if taken == 0 {
                break;
            }
            used += taken;
        }
        Ok(used)
    }

    fn request(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> io::Result<usize> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        let httparse::Status::Complete(length) = request.parse(bytes).map_err(io::Error::other)?
        else {
            return Ok(0);
        };
        let find = |name: &str| {
            let mut headers = request.headers.iter();
            headers.find(|header| header.name.eq_ignore_ascii_case(name))
        };
        if find("transfer-encoding").is_some() {
            // No client of the bench sends chunks, so an edge that does changes the framing.
            return Err(io::ErrorKind::InvalidData.into());
        }
        let body = match find("content-length") {
            Some(length) => std::str::from_utf8(length.value)
                .map_err(io::Error::other)?
                .parse()
                .map_err(io::Error::other)?,
            None => 0,
        };
        if bytes.len() - length < body {
            return Ok(0);
        }
        match find("sec-websocket-key") {
            Some(key) => {
                out.extend_from_slice(
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: ",
                );
                out.extend_from_slice(derive_accept_key(key.value).as_bytes());
                out.extend_from_slice(b"\r\n\r\n");
                self.is_upgraded = true;
            }
            None => out.extend_from_slice(RESPONSE),
        }
        Ok(length + body)
    }
}

/// Appends the echo of the WebSocket frame at the beginning of `bytes`, if it is whole.
fn echo(bytes: &mut [u8], out: &mut Vec<u8>) -> io::Result<usize> {
    let head = match wire::parse(bytes) {
        Parsed::Frame(head) => head,
        Parsed::Incomplete => return Ok(0),
        Parsed::Fragment => return Err(io::ErrorKind::InvalidData.into()),
    };
    let payload = &mut bytes[head.payload_start..head.end];
    wire::unmask(payload, head.mask.unwrap_or_default());
    match head.opcode {
        wire::TEXT | wire::BINARY => wire::append(out, head.opcode, payload),
        wire::PING => wire::append(out, wire::PONG, payload),
        wire::CLOSE => return Err(io::ErrorKind::ConnectionAborted.into()),
        _ => {}
    }
    Ok(head.end)
}
