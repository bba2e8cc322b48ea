//! The unix socket for operators: only the user of the edge can connect, and the kernel tells who does.
//!
//! Invariant: nobody can connect before the socket has its mode.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as BlockingUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::protocols::l4::stream::Stream as Transport;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::limits::ThrottledLog;
use crate::net::descriptors::ADMIN_SOCKET_MAX;
use crate::net::exhaustion::Exhaustion;
use crate::server::admin::access::Credentials;
use crate::server::listeners::{BoundedConfig, BoundedConnections};

/// Only the owner may connect.
const MODE: u32 = 0o600;

const BACKLOG: i32 = 64;

const LIMITS: BoundedConfig = BoundedConfig {
    connections: ADMIN_SOCKET_MAX,
    lifetime: Duration::from_secs(30),
};

/// The pause after an accept failed for lack of descriptors.
const EXHAUSTION_PAUSE: Duration = Duration::from_millis(100);

/// The admin socket could not be created.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on the admin socket {path}: {why}")]
pub struct SocketError {
    path: String,
    why: String,
}

impl SocketError {
    fn new(path: &Path, why: impl ToString) -> Self {
        Self {
            path: path.display().to_string(),
            why: why.to_string(),
        }
    }
}

/// A listening unix socket.
#[derive(Debug)]
pub(crate) struct AdminSocket {
    socket: std::os::unix::net::UnixListener,
    file: Arc<SocketFile>,
    /// The user of this process.
    user: u32,
}

/// The file of a listening socket.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl SocketFile {
    /// Removes it, unless another process has replaced it.
    pub(crate) fn remove(&self) {
        let is_own = fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode);
        if is_own {
            // A file that stays is replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl AdminSocket {
    /// Listens on `path`. A file that a process has left there is replaced.
    ///
    /// # Errors
    ///
    /// [`SocketError`] if another process listens there, if it is no socket, or if it cannot be created.
    pub(crate) fn bind(path: &Path) -> Result<Self, SocketError> {
        Self::check(path)?;
        let listen = || -> io::Result<Self> {
            // Created under another name, and renamed when it has its mode.
            let mut draft = path.as_os_str().to_owned();
            draft.push(format!(".{}", std::process::id()));
            let draft = PathBuf::from(draft);
            let _ = fs::remove_file(&draft);
            let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            socket.bind(&socket2::SockAddr::unix(&draft)?)?;
            let placed = fs::set_permissions(&draft, fs::Permissions::from_mode(MODE))
                .and_then(|()| socket.listen(BACKLOG))
                .and_then(|()| fs::symlink_metadata(&draft))
                .and_then(|file| fs::rename(&draft, path).map(|()| file));
            let file = placed.inspect_err(|_| drop(fs::remove_file(&draft)))?;
            Ok(Self {
                socket: socket.into(),
                file: Arc::new(SocketFile {
                    path: path.to_owned(),
                    inode: file.ino(),
                }),
                user: file.uid(),
            })
        };
        listen().map_err(|error| SocketError::new(path, error))
    }

    /// Checks whether it could listen on `path`, apart from the rights in its folder.
    ///
    /// # Errors
    ///
    /// [`SocketError`] as [`AdminSocket::bind`].
    pub(crate) fn check(path: &Path) -> Result<(), SocketError> {
        match Self::in_the_way(path) {
            None => Ok(()),
            Some(why) => Err(SocketError::new(path, why)),
        }
    }

    /// As [`AdminSocket::check`], where a running edge may be using it.
    ///
    /// # Errors
    ///
    /// [`SocketError`] if it is no socket, or if there is no such folder.
    pub(crate) fn check_file(path: &Path) -> Result<(), SocketError> {
        match fs::symlink_metadata(path) {
            Ok(file) if file.file_type().is_socket() => Ok(()),
            _ => Self::check(path),
        }
    }

    fn in_the_way(path: &Path) -> Option<String> {
        let folder = path.parent().unwrap_or(path);
        if !folder.is_dir() {
            return Some(format!("there is no folder {}", folder.display()));
        }
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(error.to_string()),
            Ok(file) if !file.file_type().is_socket() => {
                Some("a file that is not a socket is there".to_owned())
            }
            Ok(_) => match BlockingUnixStream::connect(path) {
                Ok(_) => Some("another process listens there".to_owned()),
                Err(_) => None,
            },
        }
    }

    /// Its file, to be removed when the process ends.
    pub(crate) fn file(&self) -> Arc<SocketFile> {
        Arc::clone(&self.file)
    }
}

/// A Pingora service that accepts on an [`AdminSocket`], with an application for each connection.
pub(crate) struct SocketService<F> {
    /// Makes the application of a connection from this peer.
    app: F,
    socket: Option<AdminSocket>,
}

impl<F> SocketService<F> {
    pub(crate) fn new(app: F, socket: AdminSocket) -> Self {
        tracing::info!(path = %socket.file.path.display(), "admin socket");
        Self {
            app,
            socket: Some(socket),
        }
    }
}

#[async_trait]
impl<A, F> Service for SocketService<F>
where
    A: ServerApp + Send + Sync + 'static,
    F: Fn(Credentials) -> A + Send + Sync + 'static,
{
    async fn start_service(
        &mut self,
        _none: Option<ListenFds>,
        shutdown: ShutdownWatch,
        _listeners_per_fd: usize,
    ) {
        let Some(socket) = self.socket.take() else {
            return;
        };
        let user = socket.user;
        let listener = match UnixListener::from_std(socket.socket) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "cannot listen on the admin socket"),
        };
        let (bounded, failures) = (
            BoundedConnections::new(LIMITS),
            ThrottledLog::new(Instant::now()),
        );
        let mut connections = JoinSet::new();
        // It stays open until the process exits.
        loop {
            let accepted = tokio::select! {
                biased;
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let Some(peer) = peer_of(&stream, user) else {
                        continue;
                    };
                    let serving = serve((self.app)(peer), stream, shutdown.clone());
                    connections.spawn(Arc::clone(&bounded).run(serving));
                }
                Err(error) => {
                    if let Some(times) = failures.note(Instant::now()) {
                        tracing::error!(%error, times, "cannot accept on the admin socket");
                    }
                    if Exhaustion::of(&error).is_some() {
                        tokio::time::sleep(EXHAUSTION_PAUSE).await;
                    }
                }
            }
        }
    }

    fn name(&self) -> &str {
        "admin socket"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

/// The process at the other side, if the kernel can tell.
fn peer_of(stream: &UnixStream, own_user: u32) -> Option<Credentials> {
    match stream.peer_cred() {
        Ok(peer) => Some(Credentials {
            user: peer.uid(),
            process: peer.pid(),
            is_own_user: peer.uid() == own_user || peer.uid() == 0,
        }),
        Err(error) => {
            tracing::warn!(%error, "cannot tell who connects to the admin socket");
            None
        }
    }
}

async fn serve<A: ServerApp + Send + Sync + 'static>(
    app: A,
    stream: UnixStream,
    shutdown: ShutdownWatch,
) {
    let app = Arc::new(app);
    app.process_new(Box::new(Transport::from(stream)), &shutdown)
        .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> PathBuf {
        let name = format!("causeway-socket-{}", fastrand::u64(..));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        folder
    }

    #[test]
    fn the_socket_is_for_its_owner_alone_and_its_file_goes_with_it() {
        let folder = folder();
        let path = folder.join("s");
        let socket = AdminSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, MODE);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        BlockingUnixStream::connect(&path).unwrap();
        let file = socket.file();
        drop(socket);
        // What a process that was killed has left is replaced.
        let second = AdminSocket::bind(&path).unwrap();
        file.remove();
        assert!(path.exists(), "it is that of the second one");
        second.file().remove();
        assert!(!path.exists());
        fs::remove_dir(&folder).unwrap();
    }

    #[test]
    fn a_socket_in_use_and_a_file_that_is_none_are_not_replaced() {
        let folder = folder();
        let path = folder.join("s");
        let _socket = AdminSocket::bind(&path).unwrap();
        let error = AdminSocket::bind(&path).unwrap_err().to_string();
        assert!(error.ends_with("another process listens there"), "{error}");
        AdminSocket::check_file(&path).unwrap();
        let file = folder.join("file");
        fs::write(&file, "text").unwrap();
        for error in [
            AdminSocket::bind(&file).unwrap_err(),
            AdminSocket::check_file(&file).unwrap_err(),
        ] {
            let error = error.to_string();
            assert!(error.ends_with("not a socket is there"), "{error}");
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "text");
        let error = AdminSocket::bind(&folder.join("none/s")).unwrap_err();
        assert!(error.to_string().contains("there is no folder"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
    }
}
