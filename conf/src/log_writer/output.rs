//! The file, pipe or terminal behind a log.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::blocking;

/// How long a full pipe that does not block is waited for at a time, in milliseconds.
const WRITABLE_WAIT_MS: i32 = 1000;

/// Where a log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, which is appended to and created if need be, or a named pipe.
    File(PathBuf),
}

/// Held while something is written to standard output or error: several logs may go there, and each line has to stay whole.
static STANDARD: [Mutex<()>; 2] = [const { Mutex::new(()) }; 2];

impl LogTarget {
    /// Says whether it can be written to, without writing anything or leaving a new file behind.
    ///
    /// # Errors
    ///
    /// As when it is opened.
    pub fn check(&self) -> io::Result<()> {
        let Self::File(path) = self else {
            return Ok(());
        };
        match open_existing(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => check_folder(path),
            opened => opened.map(drop),
        }
    }
}

/// An open target.
pub(super) struct Output {
    file: File,
    shared: Option<&'static Mutex<()>>,
    /// What it was opened by, if it was.
    path: Option<PathBuf>,
}

impl Output {
    pub(super) fn open(target: &LogTarget) -> io::Result<Self> {
        // Past the standard library's buffers: what they hold back is neither written nor lost.
        let (file, shared) = match target {
            LogTarget::Stdout => (
                io::stdout().as_fd().try_clone_to_owned()?.into(),
                Some(&STANDARD[0]),
            ),
            LogTarget::Stderr => (
                io::stderr().as_fd().try_clone_to_owned()?.into(),
                Some(&STANDARD[1]),
            ),
            LogTarget::File(path) => (open(path)?, None),
        };
        let path = match target {
            LogTarget::File(path) => Some(path.clone()),
            LogTarget::Stdout | LogTarget::Stderr => None,
        };
        Ok(Self { file, shared, path })
    }

    /// Writes `text`; returns how much of it was written.
    pub(super) fn write_all(&mut self, text: &[u8]) -> (usize, io::Result<()>) {
        let _turn = self
            .shared
            .map(|shared| shared.lock().unwrap_or_else(PoisonError::into_inner));
        let mut written = 0;
        while written < text.len() {
            match self.file.write(&text[written..]) {
                Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A pipe that does not block: opened so by us, or shared with a process that made it so.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_writable(&self.file)
                }
                Err(error) => return (written, Err(error)),
            }
        }
        (written, Ok(()))
    }

    /// Whether something else has the name of the open file by now, or nothing.
    pub(super) fn was_renamed(&self) -> bool {
        let Some(path) = &self.path else {
            return false;
        };
        let Ok(open) = self.file.metadata() else {
            return false;
        };
        match std::fs::metadata(path) {
            Ok(named) => (named.dev(), named.ino()) != (open.dev(), open.ino()),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Opens the file by its name again, if it has one. The old one stays in use if that fails.
    pub(super) fn reopen(&mut self) -> Option<io::Result<()>> {
        let path = self.path.as_ref()?;
        Some(open(path).map(|file| self.file = file))
    }

    #[cfg(test)]
    pub(super) fn of(file: File) -> Self {
        Self {
            file,
            shared: None,
            path: None,
        }
    }
}

/// Opens a log file. A pipe without a reader and a file system that hangs are errors.
fn open(path: &Path) -> io::Result<File> {
    open_by(path, OpenOptions::new().create(true))
}

fn open_existing(path: &Path) -> io::Result<File> {
    open_by(path, &mut OpenOptions::new())
}

fn open_by(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let (owned, mut options) = (path.to_owned(), options.clone());
    blocking::open(path, move || {
        let opened = options
            .append(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(&owned);
        opened.map_err(|error| match error.raw_os_error() {
            Some(libc::ENXIO) if is_pipe(&owned) => {
                io::Error::other("it is a pipe without a reader")
            }
            _ => error,
        })
    })
}

/// Whether a file could be made in the folder of `path`.
#[expect(
    unsafe_code,
    reason = "the standard library does not tell what a process may do"
)]
fn check_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let name = CString::new(folder.as_os_str().as_bytes())?;
    let wanted = libc::W_OK | libc::X_OK;
    // SAFETY: `name` is a string of C and outlives the call.
    let may = unsafe { libc::faccessat(libc::AT_FDCWD, name.as_ptr(), wanted, libc::AT_EACCESS) };
    if may != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn is_pipe(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo())
}

#[expect(
    unsafe_code,
    reason = "the standard library cannot wait for a descriptor"
)]
fn wait_writable(file: &File) {
    let mut wanted = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: `wanted` is one valid entry and outlives the call. However it ends, the write after it says what is the matter.
    unsafe { libc::poll(&raw mut wanted, 1, WRITABLE_WAIT_MS) };
}
