//! The only place that connects to a Redis server: over TCP, TLS or a unix socket, with the login.
//!
//! Where Sentinels or a cluster name the server, the primary of the moment is connected to, once it says itself that it is one.
//!
//! What it returns has its user, its database and its name, speaks RESP2, and has no reply pending. The subscriber reads
//! publications from it ([`Connection`](super::Connection)); everything else sends commands over it
//! ([`Link`](super::Link)).

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::UnixStream;
use tokio::time;
use tokio::time::Instant;

use super::keys::Keys;
use super::login_reply;
use super::login_reply::LoginReply;
use super::reply::ProtocolError;
use super::tenure::CurrentPrimary;
use super::tenure::Tenure;
use super::tls;
use crate::config::RedisAddress;
use crate::config::RedisServer;
use crate::config::RedisTls;

/// The most of a role that an error repeats.
const ROLE_CHARS_MAX: usize = 32;

/// How much is read at once during the login.
const READ_BYTES: usize = 4 << 10;

/// A byte stream to a server.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connects to one server, or to the one that is the primary. A clone costs a reference count.
#[derive(Clone)]
pub(crate) struct Connector(Arc<Inner>);

struct Inner {
    target: Target,
    /// The login; its location is not used.
    server: RedisServer,
    role: ExpectedRole,
    options: ConnectOptions,
}

enum Target {
    At(RedisAddress),
    /// The primary that Sentinels or a cluster name.
    Primary(Arc<CurrentPrimary>),
}

/// Whether a server has to say of itself that it is a primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExpectedRole {
    Any,
    Primary,
}

/// What all connections of a node have in common.
#[derive(Clone)]
pub(super) struct ConnectOptions {
    pub(super) keys: Keys,
    pub(super) node_id: String,
    pub(super) connect_timeout: Duration,
    pub(super) response_timeout: Duration,
}

/// A connection that is logged in.
pub(crate) struct Opened {
    pub(super) stream: Box<dyn Stream>,
    pub(super) tenure: Tenure,
    /// `None` if Redis does not permit to name connections.
    pub(super) identity: Option<Identity>,
}

/// A connection by its id in Redis. Ids start over when Redis restarts, and are others on other servers, so the name has
/// to match too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) id: i64,
    pub(super) name: String,
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
    #[error("redis at {address} rejected the login: {reply}")]
    Refused {
        address: RedisAddress,
        reply: String,
    },
    /// A cluster names an address at which nothing has been reached yet: maybe one of another network. Retry.
    #[error(
        "the primary at {address} has not been reached yet; the cluster announces that address, and \
         `broker.cluster.announce` can name the one at which it is reached from here"
    )]
    Announced {
        address: RedisAddress,
        #[source]
        source: Box<ConnectError>,
    },
    /// The server may not be Redis.
    #[error("cannot log in to redis at {address}")]
    Login {
        address: RedisAddress,
        #[source]
        source: ReadError,
    },
    /// It follows another server: retry, which leads to the primary once Sentinels name it.
    #[error("redis at {address} is not a primary: its role is {role}")]
    NotPrimary { address: RedisAddress, role: String },
    /// Retry.
    #[error("there is no primary `{master}`: {why}")]
    NoPrimary { master: String, why: String },
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

impl Connector {
    /// Connects to the server at `address` with the login of `server`; nothing is connected yet.
    pub(super) fn to(
        address: RedisAddress,
        server: RedisServer,
        role: ExpectedRole,
        options: ConnectOptions,
    ) -> Self {
        Self(Arc::new(Inner {
            target: Target::At(address),
            server,
            role,
            options,
        }))
    }

    /// Connects to the primary of the moment, with the login of `server`; nothing is connected yet.
    pub(super) fn to_primary(
        primary: Arc<CurrentPrimary>,
        server: RedisServer,
        options: ConnectOptions,
    ) -> Self {
        Self(Arc::new(Inner {
            target: Target::Primary(primary),
            server,
            role: ExpectedRole::Primary,
            options,
        }))
    }

    /// The time that [`open`](Self::open) takes at most.
    pub(super) fn connect_timeout(&self) -> Duration {
        self.0.options.connect_timeout
    }

    /// The time that a reply may take.
    pub(super) fn response_timeout(&self) -> Duration {
        self.0.options.response_timeout
    }

    /// Whether the failovers that make servers the primary are counted.
    pub(crate) fn counts_failovers(&self) -> bool {
        match &self.0.target {
            Target::At(_) => false,
            Target::Primary(primary) => primary.is_named_by_sentinels(),
        }
    }

    /// The number of the failover that made the server the primary, of which each has a higher one than all before it; 0 if
    /// nothing counts them, or there is no primary.
    pub(crate) fn failover(&self) -> u64 {
        match &self.0.target {
            Target::At(_) => 0,
            Target::Primary(primary) => primary.get().map_or(0, |primary| primary.epoch),
        }
    }

    /// Connects and logs in. `role` is part of the name that `CLIENT LIST` shows.
    ///
    /// # Errors
    ///
    /// [`ConnectError`]; the connection is closed.
    pub(crate) async fn open(&self, role: &str) -> Result<Opened, ConnectError> {
        let ConnectOptions { keys, node_id, .. } = &self.0.options;
        let name = keys.connection(node_id, role, fastrand::u64(..));
        let deadline = Instant::now() + self.connect_timeout();
        match &self.0.target {
            Target::At(address) => {
                self.log_in(address, name, Tenure::endless(), deadline)
                    .await
            }
            Target::Primary(primary) => {
                let (address, tenure) = primary.wait(deadline).await.map_err(|why| {
                    let master = primary.master.clone();
                    ConnectError::NoPrimary { master, why }
                })?;
                let opened = self.log_in(&address, name, tenure, deadline).await;
                match opened {
                    Ok(opened) => {
                        primary.note_reached();
                        Ok(opened)
                    }
                    Err(error) => {
                        primary.note_failure();
                        Err(match error {
                            source @ (ConnectError::Unreachable { .. }
                            | ConnectError::Timeout { .. })
                                if primary.is_only_announced() =>
                            {
                                let source = Box::new(source);
                                ConnectError::Announced { address, source }
                            }
                            error => error,
                        })
                    }
                }
            }
        }
    }

    async fn log_in(
        &self,
        address: &RedisAddress,
        name: String,
        tenure: Tenure,
        deadline: Instant,
    ) -> Result<Opened, ConnectError> {
        let opened = time::timeout_at(deadline, log_in(address, &self.0, name, tenure));
        opened.await.unwrap_or_else(|_| {
            Err(ConnectError::Timeout {
                address: address.clone(),
                timeout: self.connect_timeout(),
            })
        })
    }
}

impl fmt::Display for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.target {
            Target::At(address) => address.fmt(f),
            Target::Primary(primary) => primary.fmt(f),
        }
    }
}

/// Connects and logs in, in one round trip.
async fn log_in(
    address: &RedisAddress,
    inner: &Inner,
    name: String,
    tenure: Tenure,
) -> Result<Opened, ConnectError> {
    let (server, address) = (&inner.server, || address.clone());
    let unreachable = |source| ConnectError::Unreachable {
        address: address(),
        source,
    };
    let stream = connect(&address(), server.tls.as_ref()).await;
    let mut stream = stream.map_err(unreachable)?;
    let mut output = BytesMut::new();
    let mut commands = 0;
    let mut queue = |arguments: &[&str]| {
        append(&mut output, arguments);
        commands += 1;
    };
    if let Some(password) = &server.password {
        match &server.username {
            Some(username) => queue(&["AUTH", username, password.expose()]),
            None => queue(&["AUTH", password.expose()]),
        }
    }
    if server.database != 0 {
        queue(&["SELECT", &server.database.to_string()]);
    }
    if inner.role == ExpectedRole::Primary {
        queue(&["ROLE"]);
    }
    // Always sent, so that a Redis which does not respond, has too many clients or requires a password is noticed
    // here. Naming the connection may fail, by an ACL or a proxy.
    queue(&["CLIENT", "SETNAME", &name]);
    queue(&["CLIENT", "ID"]);
    let replies = exchange(&mut stream, &output, commands).await;
    let replies = replies.map_err(|source| ConnectError::Login {
        address: address(),
        source,
    })?;
    let identity = identity(&replies, name).map_err(|reply| ConnectError::Refused {
        address: address(),
        reply,
    })?;
    if inner.role == ExpectedRole::Primary {
        let reply = replies.len().checked_sub(3).and_then(|at| replies.get(at));
        check_role(reply).map_err(|role| ConnectError::NotPrimary {
            address: address(),
            role,
        })?;
    }
    Ok(Opened {
        stream,
        tenure,
        identity,
    })
}

/// Checks that the reply to `ROLE` is that of a primary, or returns the role.
fn check_role(reply: Option<&LoginReply>) -> Result<(), String> {
    match reply {
        Some(LoginReply::Array(parts)) => match parts.first() {
            Some(LoginReply::Text(role)) if role == "master" => Ok(()),
            Some(LoginReply::Text(role)) => Err(role.chars().take(ROLE_CHARS_MAX).collect()),
            _ => Err("unknown".to_owned()),
        },
        _ => Err("unknown".to_owned()),
    }
}

/// The identity of the connection by the replies to the login, or the error that rejects it.
fn identity(replies: &[LoginReply], name: String) -> Result<Option<Identity>, String> {
    let (login, [named, id]) = replies.split_last_chunk().ok_or("too few replies")?;
    for reply in login {
        if let LoginReply::Error(error) = reply {
            return Err(error.clone());
        }
    }
    for reply in [named, id] {
        match reply {
            LoginReply::Error(error)
                if !error.starts_with("NOPERM") && !error.starts_with("ERR unknown") =>
            {
                return Err(error.clone());
            }
            _ => {}
        }
    }
    Ok(match (named, id) {
        (LoginReply::Status, LoginReply::Integer(id)) => Some(Identity { id: *id, name }),
        _ => None,
    })
}

/// Writes `output` and reads the replies to its commands.
async fn exchange(
    stream: &mut Box<dyn Stream>,
    output: &[u8],
    commands: usize,
) -> Result<Vec<LoginReply>, ReadError> {
    let mut replies = Vec::with_capacity(commands);
    let mut input = BytesMut::new();
    stream.write_all(output).await.map_err(ReadError::Broken)?;
    stream.flush().await.map_err(ReadError::Broken)?;
    while replies.len() < commands {
        if let Some(reply) = login_reply::next(&mut input)? {
            replies.push(reply);
            continue;
        }
        input.reserve(READ_BYTES);
        match stream.read_buf(&mut input).await {
            Ok(0) => {
                // A server that has too many clients says so once, and closes the connection.
                if let Some(refused @ LoginReply::Error(_)) = replies.pop() {
                    replies.resize(commands, refused);
                    return Ok(replies);
                }
                return Err(ReadError::Closed);
            }
            Ok(_) => {}
            Err(error) => return Err(ReadError::Broken(error)),
        }
    }
    Ok(replies)
}

/// Appends a command to `output`.
pub(super) fn append<T: AsRef<[u8]>>(output: &mut BytesMut, arguments: &[T]) {
    let head = format!("*{}\r\n", arguments.len());
    output.extend_from_slice(head.as_bytes());
    for argument in arguments {
        let argument = argument.as_ref();
        let head = format!("${}\r\n", argument.len());
        output.extend_from_slice(head.as_bytes());
        output.extend_from_slice(argument);
        output.extend_from_slice(b"\r\n");
    }
}

async fn connect(address: &RedisAddress, tls: Option<&RedisTls>) -> io::Result<Box<dyn Stream>> {
    match address {
        RedisAddress::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            match tls {
                Some(tls) => Ok(Box::new(tls::connect(stream, host, tls).await?)),
                None => Ok(Box::new(stream)),
            }
        }
        RedisAddress::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
    }
}
