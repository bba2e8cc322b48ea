//! A unix socket to which only processes of the own user can connect, and root.
//!
//! Invariant: nobody can connect before the socket has its mode.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Only the owner may connect.
const MODE: u32 = 0o600;

const BACKLOG: i32 = 64;

/// A unix socket could not be created.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on the {name} {path}: {why}")]
pub struct SocketError {
    name: &'static str,
    path: String,
    why: String,
}

impl SocketError {
    fn new(name: &'static str, path: &Path, why: impl ToString) -> Self {
        Self {
            name,
            path: path.display().to_string(),
            why: why.to_string(),
        }
    }
}

/// A listening unix socket.
#[derive(Debug)]
pub(crate) struct OwnerSocket {
    pub(crate) socket: UnixListener,
    file: Arc<SocketFile>,
    /// The user of this process.
    pub(crate) user: u32,
}

/// The file of a listening socket.
#[derive(Debug)]
pub(crate) struct SocketFile {
    name: &'static str,
    path: PathBuf,
    /// Where it is before it is placed.
    draft: PathBuf,
    inode: u64,
}

impl SocketFile {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts it where others look for it, and replaces what is there.
    ///
    /// # Errors
    ///
    /// [`SocketError`] if it cannot be renamed. It is removed then.
    pub(crate) fn place(&self) -> Result<(), SocketError> {
        let renamed = fs::rename(&self.draft, &self.path);
        renamed.map_err(|error| {
            self.discard();
            SocketError::new(self.name, &self.path, error)
        })
    }

    /// Removes it, if it has not been placed.
    pub(crate) fn discard(&self) {
        let _ = fs::remove_file(&self.draft);
    }

    /// Removes it, unless another process has replaced it.
    pub(crate) fn remove(&self) {
        let is_own = fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode);
        if is_own {
            // A file that stays is replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl OwnerSocket {
    /// Listens on `path`. A file that a process has left there is replaced. `name` is what it is called in errors.
    ///
    /// # Errors
    ///
    /// [`SocketError`] if another process listens there, if it is no socket, or if it cannot be created.
    pub(crate) fn bind(name: &'static str, path: &Path) -> Result<Self, SocketError> {
        Self::check(name, path)?;
        let socket = Self::draft(name, path)?;
        socket.file.place()?;
        Ok(socket)
    }

    /// Listens beside `path`, where another process may still be listening, until its file is [placed](SocketFile::place).
    ///
    /// # Errors
    ///
    /// [`SocketError`] if it cannot be created, or if what is at `path` is no socket.
    pub(crate) fn draft(name: &'static str, path: &Path) -> Result<Self, SocketError> {
        Self::check_file(name, path)?;
        let listen = || -> io::Result<Self> {
            let mut draft = path.as_os_str().to_owned();
            draft.push(format!(".{}", std::process::id()));
            let draft = PathBuf::from(draft);
            let _ = fs::remove_file(&draft);
            let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            socket.bind(&socket2::SockAddr::unix(&draft)?)?;
            let listening = fs::set_permissions(&draft, fs::Permissions::from_mode(MODE))
                .and_then(|()| socket.listen(BACKLOG))
                .and_then(|()| fs::symlink_metadata(&draft));
            let file = listening.inspect_err(|_| drop(fs::remove_file(&draft)))?;
            Ok(Self {
                socket: socket.into(),
                file: Arc::new(SocketFile {
                    name,
                    path: path.to_owned(),
                    draft,
                    inode: file.ino(),
                }),
                user: file.uid(),
            })
        };
        listen().map_err(|error| SocketError::new(name, path, error))
    }

    /// Checks whether it could listen on `path`, apart from the rights in its folder.
    ///
    /// # Errors
    ///
    /// [`SocketError`] as [`OwnerSocket::bind`].
    pub(crate) fn check(name: &'static str, path: &Path) -> Result<(), SocketError> {
        match Self::in_the_way(path) {
            None => Ok(()),
            Some(why) => Err(SocketError::new(name, path, why)),
        }
    }

    /// As [`OwnerSocket::check`], where a running edge may be using it.
    ///
    /// # Errors
    ///
    /// [`SocketError`] if it is no socket, or if there is no such folder.
    pub(crate) fn check_file(name: &'static str, path: &Path) -> Result<(), SocketError> {
        match fs::symlink_metadata(path) {
            Ok(file) if file.file_type().is_socket() => Ok(()),
            _ => Self::check(name, path),
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
            Ok(_) => match UnixStream::connect(path) {
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

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "admin socket";

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
        let socket = OwnerSocket::bind(NAME, &path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, MODE);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        UnixStream::connect(&path).unwrap();
        let file = socket.file();
        drop(socket);
        // What a process that was killed has left is replaced.
        let second = OwnerSocket::bind(NAME, &path).unwrap();
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
        let _socket = OwnerSocket::bind(NAME, &path).unwrap();
        let error = OwnerSocket::bind(NAME, &path).unwrap_err().to_string();
        assert!(error.ends_with("another process listens there"), "{error}");
        OwnerSocket::check_file(NAME, &path).unwrap();
        let file = folder.join("file");
        fs::write(&file, "text").unwrap();
        for error in [
            OwnerSocket::bind(NAME, &file).unwrap_err(),
            OwnerSocket::check_file(NAME, &file).unwrap_err(),
        ] {
            let error = error.to_string();
            assert!(error.ends_with("not a socket is there"), "{error}");
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "text");
        let error = OwnerSocket::bind(NAME, &folder.join("none/s")).unwrap_err();
        assert!(error.to_string().contains("there is no folder"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_draft_replaces_the_socket_of_another_process_only_when_it_is_placed() {
        let folder = folder();
        let path = folder.join("s");
        let first = OwnerSocket::bind(NAME, &path).unwrap();
        let second = OwnerSocket::draft(NAME, &path).unwrap();
        drop(UnixStream::connect(&path).unwrap());
        first.socket.accept().unwrap();
        assert!(second.socket.accept().is_err(), "nobody has connected");
        second.file().place().unwrap();
        drop(UnixStream::connect(&path).unwrap());
        second.socket.accept().unwrap();
        OwnerSocket::draft(NAME, &path).unwrap().file().discard();
        first.file().remove();
        second.file().remove();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::remove_dir(&folder).unwrap();
    }
}
