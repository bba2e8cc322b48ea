//! File operations that may hang: on a named pipe without its other end, or a network file system whose server is gone.
//!
//! They run on a thread of their own and are given up after a while. One that hangs for ever keeps its thread, so nothing more is
//! tried on a path on which something hangs.

use std::collections::HashSet;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How long a file operation may take: slow disks take seconds.
const WAIT: Duration = Duration::from_secs(5);

/// The largest file of certificates or keys that is worth reading, 16 MiB: a hundred times what a system trusts.
pub const PEM_BYTES_MAX: u64 = 16 << 20;

/// The paths that something hangs on.
static HANGING: LazyLock<Mutex<HashSet<PathBuf>>> = LazyLock::new(Mutex::default);

fn hanging() -> MutexGuard<'static, HashSet<PathBuf>> {
    HANGING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the file at `path`, which may have `bytes_max` bytes and take five seconds.
///
/// # Errors
///
/// It cannot be read, is larger ([`io::ErrorKind::FileTooLarge`]), or reading it hangs ([`io::ErrorKind::TimedOut`]).
pub fn read_file(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let owned = path.to_owned();
    within(path, WAIT, move || {
        let mut bytes = Vec::new();
        let file = File::open(owned)?;
        // One more shows that there is more.
        file.take(bytes_max.saturating_add(1))
            .read_to_end(&mut bytes)?;
        if bytes_max < bytes.len() as u64 {
            let message = format!("it has more than {bytes_max} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        Ok(bytes)
    })
}

/// What is known of the file at `path`, in five seconds at most.
///
/// # Errors
///
/// As [`fs::metadata`], or it hangs ([`io::ErrorKind::TimedOut`]).
pub fn file_metadata(path: &Path) -> io::Result<Metadata> {
    let owned = path.to_owned();
    within(path, WAIT, || fs::metadata(owned))
}

/// The paths of what is in the folder at `path`, in five seconds at most.
///
/// # Errors
///
/// As [`fs::read_dir`], or it hangs ([`io::ErrorKind::TimedOut`]).
pub fn folder_entries(path: &Path) -> io::Result<Vec<PathBuf>> {
    let owned = path.to_owned();
    within(path, WAIT, || {
        fs::read_dir(owned)?
            .map(|entry| Ok(entry?.path()))
            .collect()
    })
}

/// Opens a file for a log, by `open`, in five seconds at most.
pub(crate) fn open(
    path: &Path,
    open: impl FnOnce() -> io::Result<File> + Send + 'static,
) -> io::Result<File> {
    within(path, WAIT, open)
}

/// Does `operation`, which is about `path`, for at most `wait`.
fn within<T: Send + 'static>(
    path: &Path,
    wait: Duration,
    operation: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if hanging().contains(path) {
        return Err(hangs());
    }
    let is_done = Arc::new(AtomicBool::new(false));
    let (send, receive) = sync_channel(1);
    let (done, owned) = (Arc::clone(&is_done), path.to_owned());
    let operate = move || {
        let result = operation();
        let mut hanging = hanging();
        done.store(true, Ordering::Relaxed);
        hanging.remove(&owned);
        drop(hanging);
        let _ = send.send(result); // The receiver is gone if this took too long.
    };
    thread::Builder::new()
        .name("file".to_owned())
        .spawn(operate)?;
    match receive.recv_timeout(wait) {
        Ok(result) => result,
        Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("reading it panicked: a bug")),
        Err(RecvTimeoutError::Timeout) => {
            let mut hanging = hanging();
            // Under the lock: it may have ended just now.
            if !is_done.load(Ordering::Relaxed) {
                hanging.insert(path.to_owned());
            }
            Err(hangs())
        }
    }
}

fn hangs() -> io::Error {
    let message = format!(
        "it hangs (for {WAIT:?} already): a pipe without its other end, or a file system that does not respond?"
    );
    io::Error::new(io::ErrorKind::TimedOut, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("causeway-blocking-{}-{name}", std::process::id()))
    }

    #[test]
    fn an_operation_that_hangs_is_given_up_and_not_begun_again_until_it_is_over() {
        let path = path("hangs");
        let (release, hang) = sync_channel::<()>(0);
        let hanging = move || {
            let _ = hang.recv();
            Ok(1)
        };
        let wait = Duration::from_millis(1);
        let first = within(&path, wait, hanging).unwrap_err();
        assert_eq!(first.kind(), io::ErrorKind::TimedOut);
        let second = within(&path, WAIT, || -> io::Result<u8> { panic!("it is begun") });
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(release);
        while within(&path, WAIT, || Ok(())).is_err() {
            thread::yield_now();
        }
    }

    #[test]
    fn a_pipe_that_nobody_writes_to_does_not_hold_up_who_reads_it() {
        let path = path("pipe");
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        #[expect(unsafe_code, reason = "the standard library makes no named pipes")]
        // SAFETY: `name` is a string of C and outlives the call.
        let made = unsafe { libc::mkfifo(name.as_ptr(), 0o600) };
        assert_eq!(made, 0);
        let reads = |path: PathBuf| move || fs::read(path);
        let read = within(&path, Duration::from_millis(1), reads(path.clone()));
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
        fs::write(&path, "something").unwrap(); // It lets the thread go.
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_file_may_have_so_many_bytes_and_no_more() {
        let path = path("size");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_file(&path, 5).unwrap(), b"12345");
        let error = read_file(&path, 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(error.to_string(), "it has more than 4 bytes");
        fs::remove_file(&path).unwrap();
        assert_eq!(
            read_file(&path, 5).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
