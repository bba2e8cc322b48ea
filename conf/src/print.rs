//! What a program says without a log: before there is one, and as its last words; and documents that it makes.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

/// For how long a reader that does not read may hold up a program that is about to end.
const WAIT: Duration = Duration::from_secs(2);

/// Writes `line` and a line feed to standard error. Where nobody reads that it waits for two seconds, and what cannot be written
/// is lost: the exit code says it all.
pub fn print_error(line: &str) {
    print(line, io::stderr());
}

/// As [`print_error`], to standard output.
pub fn print_output(line: &str) {
    print(line, io::stdout());
}

/// Writes `text` to standard output and waits for its reader, or to the new file `output`, which its owner alone may read. A
/// reader that has gone is no error.
///
/// # Errors
///
/// The file is there already or cannot be written, or standard output cannot be.
pub fn write_document(text: &str, output: Option<&Path>) -> io::Result<()> {
    let Some(path) = output else {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(text.as_bytes());
        return match written.and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        };
    };
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn print(line: &str, mut target: impl Write + Send + 'static) {
    let text = format!("{line}\n");
    let (send, done) = sync_channel::<()>(1);
    let write = move || {
        let _ = target.write_all(text.as_bytes());
        let _ = target.flush();
        drop(send);
    };
    let writer = thread::Builder::new().name("print".to_owned());
    if writer.spawn(write).is_ok() {
        let _ = done.recv_timeout(WAIT);
    }
}
