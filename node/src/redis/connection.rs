//! A connection to Redis that subscribes: connecting, logging in, reading, writing.
//!
//! It never waits for room to write before it reads: Redis disconnects a subscriber whose output buffer grows
//! (32 MiB, or 8 MiB for a minute), so reading never stops.

use std::future;
use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::io::ReadHalf;
use tokio::io::WriteHalf;
use tokio::net::TcpStream;
use tokio::net::UnixStream;
use tokio::time;

use super::reply::Parser;
use super::reply::ProtocolError;
use super::reply::Reply;
use super::tls;
use crate::config::RedisAddress;
use crate::config::RedisServer;

/// How much is read at once, at most: one read is one delivery to the hub.
const READ_BYTES: usize = 64 << 10;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An open, logged-in connection.
pub(crate) struct Connection {
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    input: BytesMut,
    output: BytesMut,
    parser: Parser,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The connection was refused, or there is no route: retry.
    #[error("cannot connect to redis at {address}")]
    Unreachable {
        address: RedisAddress,
        #[source]
        source: io::Error,
    },
    /// The server did not respond: retry.
    #[error("redis at {address} did not respond within {timeout:?}")]
    Timeout {
        address: RedisAddress,
        timeout: Duration,
    },
    /// A wrong password, a database that does not exist, a Redis that has too many clients.
    #[error("redis at {address} rejected the login: {answer}")]
    Refused {
        address: RedisAddress,
        answer: String,
    },
    /// The server may not be Redis.
    #[error("cannot log in to redis at {address}")]
    Login {
        address: RedisAddress,
        #[source]
        source: ReadError,
    },
}

/// Why a connection can no longer be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("redis closed the connection")]
    Closed,
    #[error("the connection to redis broke")]
    Broken(#[source] io::Error),
    #[error(transparent)]
    ProtocolError(#[from] ProtocolError),
}

/// How to open a connection.
pub(crate) struct Opening<'a> {
    pub(crate) server: &'a RedisServer,
    /// For all of it: name lookup, connecting, logging in.
    pub(crate) timeout: Duration,
    /// The largest publication that is accepted.
    pub(crate) message_bytes_max: usize,
    /// What `CLIENT LIST` shows.
    pub(crate) name: &'a str,
}

impl Connection {
    /// Connects and logs in.
    ///
    /// # Errors
    ///
    /// [`ConnectError`]; the connection is closed.
    pub(crate) async fn open(opening: Opening<'_>) -> Result<Self, ConnectError> {
        let address = &opening.server.address;
        let opened = time::timeout(opening.timeout, async {
            let stream =
                connect(opening.server)
                    .await
                    .map_err(|source| ConnectError::Unreachable {
                        address: address.clone(),
                        source,
                    })?;
            let (reader, writer) = tokio::io::split(stream);
            let mut connection = Self {
                reader,
                writer,
                input: BytesMut::new(),
                output: BytesMut::new(),
                parser: Parser::new(opening.message_bytes_max),
            };
            connection.log_in(opening.server, opening.name).await?;
            Ok(connection)
        });
        opened.await.unwrap_or_else(|_| {
            Err(ConnectError::Timeout {
                address: address.clone(),
                timeout: opening.timeout,
            })
        })
    }

    async fn log_in(&mut self, server: &RedisServer, name: &str) -> Result<(), ConnectError> {
        let mut answers = 0;
        if let Some(password) = &server.password {
            let password = password.expose();
            match &server.username {
                Some(username) => self.queue(&["AUTH", username, password]),
                None => self.queue(&["AUTH", password]),
            }
            answers += 1;
        }
        if server.database != 0 {
            self.queue(&["SELECT", &server.database.to_string()]);
            answers += 1;
        }
        for _ in 0..answers {
            if let Reply::Error(answer) = self.answer(server).await? {
                return Err(ConnectError::Refused {
                    address: server.address.clone(),
                    answer,
                });
            }
        }
        // Sent last and always, so that a Redis which does not respond, has too many clients or requires a password
        // is noticed here. Naming the connection may fail, by an ACL or a proxy.
        self.queue(&["CLIENT", "SETNAME", name]);
        match self.answer(server).await? {
            Reply::Error(answer)
                if !answer.starts_with("NOPERM") && !answer.starts_with("ERR unknown") =>
            {
                Err(ConnectError::Refused {
                    address: server.address.clone(),
                    answer,
                })
            }
            _ => Ok(()),
        }
    }

    async fn answer(&mut self, server: &RedisServer) -> Result<Reply, ConnectError> {
        loop {
            let progress = match self.next_reply() {
                Ok(Some(reply)) => return Ok(reply),
                Ok(None) => self.progress().await,
                Err(error) => Err(error),
            };
            progress.map_err(|source| ConnectError::Login {
                address: server.address.clone(),
                source,
            })?;
        }
    }

    /// Adds a command to what will be written by [`progress`](Self::progress).
    pub(crate) fn queue<T: AsRef<[u8]>>(&mut self, arguments: &[T]) {
        let head = format!("*{}\r\n", arguments.len());
        self.output.extend_from_slice(head.as_bytes());
        for argument in arguments {
            let argument = argument.as_ref();
            let head = format!("${}\r\n", argument.len());
            self.output.extend_from_slice(head.as_bytes());
            self.output.extend_from_slice(argument);
            self.output.extend_from_slice(b"\r\n");
        }
    }

    /// Reads something or writes some of what is queued, whatever is possible first.
    ///
    /// # Errors
    ///
    /// [`ReadError`]: the connection can no longer be used.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped: bytes are in the buffers or in the kernel.
    pub(crate) async fn progress(&mut self) -> Result<(), ReadError> {
        if self.input.capacity() - self.input.len() < READ_BYTES / 4 {
            self.input.reserve(READ_BYTES);
        }
        let write = async {
            if self.output.is_empty() {
                future::pending().await
            } else {
                self.writer.write_buf(&mut self.output).await
            }
        };
        tokio::select! {
            read = self.reader.read_buf(&mut self.input) => match read {
                Ok(0) => Err(ReadError::Closed),
                Ok(_) => Ok(()),
                Err(error) => Err(ReadError::Broken(error)),
            },
            written = write => match written {
                Ok(_) => Ok(()),
                Err(error) => Err(ReadError::Broken(error)),
            },
        }
    }

    /// The next complete reply of the input.
    ///
    /// # Errors
    ///
    /// [`ReadError::ProtocolError`]: the connection can no longer be used.
    pub(crate) fn next_reply(&mut self) -> Result<Option<Reply>, ReadError> {
        Ok(self.parser.next(&mut self.input)?)
    }
}

async fn connect(server: &RedisServer) -> io::Result<Box<dyn Stream>> {
    match &server.address {
        RedisAddress::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            match &server.tls {
                Some(tls) => Ok(Box::new(tls::connect(stream, host, tls).await?)),
                None => Ok(Box::new(stream)),
            }
        }
        RedisAddress::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
    }
}
