//! What a program says without a log: before there is one, and as its last words.

use std::io::{self, Write};
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
