use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::*;

const CONFIG: LogConfig = LogConfig {
    name: "log-test",
    lines_max: 1000,
    bytes_max: 1 << 20,
};

const WAIT: Duration = Duration::from_secs(30);

/// What a log told, for a test to read.
#[derive(Clone, Default)]
struct Told(Arc<Numbers>);

#[derive(Default)]
struct Numbers {
    lost: AtomicU64,
    failing: AtomicU64,
    recovered: AtomicU64,
    reopened: AtomicU64,
}

impl Told {
    fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::SeqCst)
    }

    fn recovered(&self) -> u64 {
        self.0.recovered.load(Ordering::SeqCst)
    }
}

impl LogEvents<Box<[u8]>> for Told {
    fn lost(&self, lines: u64) {
        self.0.lost.fetch_add(lines, Ordering::SeqCst);
    }

    fn failing(&self, _: &io::Error) {
        self.0.failing.fetch_add(1, Ordering::SeqCst);
    }

    fn notice(&self, lost: u64) -> Option<Box<[u8]>> {
        Some(format!("{lost} lost\n").into_bytes().into())
    }

    fn recovered(&self, lost: u64) {
        self.0.recovered.fetch_add(lost, Ordering::SeqCst);
    }

    fn reopened(&self, result: io::Result<()>) {
        result.unwrap();
        self.0.reopened.fetch_add(1, Ordering::SeqCst);
    }
}

fn line(text: &str) -> Box<[u8]> {
    format!("{text}\n").into_bytes().into()
}

fn log_on(file: File) -> (LogWriter<Box<[u8]>>, Told) {
    let told = Told::default();
    let log = LogWriter::start_on(Output::of(file), CONFIG, Box::new(told.clone()));
    (log.unwrap(), told)
}

fn pipe() -> (File, File) {
    let (reader, writer) = io::pipe().unwrap();
    (
        File::from(std::os::fd::OwnedFd::from(reader)),
        File::from(std::os::fd::OwnedFd::from(writer)),
    )
}

/// A file of one test, which goes with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("causeway-log-{}-{name}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn target(&self) -> LogTarget {
        LogTarget::File(self.0.clone())
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.0).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < WAIT, "waited in vain for {what}");
        thread::yield_now();
    }
}

#[test]
fn all_that_was_queued_before_the_end_is_written_in_order() {
    let scratch = Scratch::new("order");
    let log = LogWriter::start(&scratch.target(), CONFIG, Told::default()).unwrap();
    let expected: String = (0..500).map(|number| format!("{number}\n")).collect();
    (0..500).for_each(|number| log.push(line(&number.to_string())));
    assert!(log.close(WAIT));
    assert_eq!(scratch.text(), expected);
    log.push(line("later"));
    assert_eq!(scratch.text(), expected);
}

#[test]
fn a_flush_waits_for_what_was_queued_before_it() {
    let scratch = Scratch::new("flush");
    let log = LogWriter::start(&scratch.target(), CONFIG, Told::default()).unwrap();
    log.push(line("a"));
    assert!(log.flush(WAIT));
    assert_eq!(scratch.text(), "a\n");
}

#[test]
fn a_pipe_that_nobody_reads_costs_lines_and_holds_up_nobody() {
    let (mut reader, writer) = pipe();
    let (log, told) = log_on(writer);
    let lines = 10 * CONFIG.lines_max as u64;
    let text = "x".repeat(1000);
    (0..lines).for_each(|_| log.push(line(&text)));
    assert!(0 < told.lost());
    assert!(!log.flush(Duration::from_millis(1)), "it is stuck");
    let lost = told.lost();
    let reading = thread::spawn(move || {
        let mut all = String::new();
        reader.read_to_string(&mut all).unwrap();
        all
    });
    until("the notice", || told.recovered() == lost);
    assert!(log.close(WAIT));
    drop(log);
    let all = reading.join().unwrap();
    let whole = all.lines().filter(|line| **line == text).count() as u64;
    assert_eq!(whole + lost, lines);
    assert_eq!(
        all.lines().filter(|line| line.ends_with(" lost")).count(),
        1
    );
}

#[test]
fn lines_are_bounded_in_bytes_too() {
    let (_reader, writer) = pipe();
    let (log, told) = log_on(writer);
    log.push(vec![b'x'; CONFIG.bytes_max + 1].into());
    assert_eq!(told.lost(), 1);
    let text = "x".repeat(CONFIG.bytes_max / 8);
    (0..20).for_each(|_| log.push(line(&text)));
    // One write of at most so much is with the thread, and a pipe takes less than one line.
    assert!(20 - 8 <= told.lost(), "{}", told.lost());
}

#[test]
fn a_pipe_whose_reader_is_gone_costs_lines_and_no_more() {
    let (reader, writer) = pipe();
    let (log, told) = log_on(writer);
    log.push(line("a"));
    assert!(log.flush(WAIT));
    drop(reader);
    for count in 1..=3 {
        log.push(line("b"));
        assert!(log.flush(WAIT));
        assert_eq!(told.lost(), count);
    }
    assert_eq!(told.0.failing.load(Ordering::SeqCst), 1);
    assert_eq!(told.recovered(), 0);
    assert!(log.close(WAIT));
}

#[test]
fn a_full_disk_costs_lines_which_are_told_of_without_another_one_once_there_is_room() {
    let scratch = Scratch::new("full");
    std::os::unix::fs::symlink("/dev/full", &scratch.0).unwrap();
    let told = Told::default();
    let log = LogWriter::start(&scratch.target(), CONFIG, told.clone()).unwrap();
    log.push(line("a"));
    log.push(line("b"));
    assert!(log.flush(WAIT));
    assert_eq!(told.lost(), 2);
    fs::remove_file(&scratch.0).unwrap();
    log.reopen();
    until("the notice", || told.recovered() == 2);
    assert_eq!(scratch.text(), "2 lost\n");
    assert_eq!(told.lost(), 2, "a notice is no line");
}

#[test]
fn a_line_that_was_cut_off_does_not_spoil_the_next() {
    let scratch = Scratch::new("torn");
    let log = LogWriter::start(&scratch.target(), CONFIG, Told::default()).unwrap();
    let mut writing = Writing::new(Arc::clone(&log.0), Output::open(&scratch.target()).unwrap());
    assert_eq!(writing.output.write_all(b"half of a li").0, 12);
    writing.is_torn = true;
    assert_eq!(writing.write_lines([line("next")].into_iter()), 0);
    assert!(!writing.is_torn);
    assert_eq!(scratch.text(), "half of a li\nnext\n");
}

#[test]
fn a_file_that_was_renamed_is_made_anew() {
    let scratch = Scratch::new("renamed");
    let moved = Scratch::new("renamed-away");
    let told = Told::default();
    let log = LogWriter::start(&scratch.target(), CONFIG, told.clone()).unwrap();
    log.push(line("before"));
    assert!(log.flush(WAIT));
    fs::rename(&scratch.0, &moved.0).unwrap();
    log.reopen();
    until("the new file", || {
        told.0.reopened.load(Ordering::SeqCst) == 1
    });
    log.push(line("behind"));
    assert!(log.flush(WAIT));
    assert_eq!(
        (moved.text(), scratch.text()),
        ("before\n".to_owned(), "behind\n".to_owned())
    );

    // It is also noticed without being told.
    fs::rename(&scratch.0, &moved.0).unwrap();
    until("the new file", || {
        log.push(line("tick"));
        scratch.0.exists()
    });
}

#[test]
fn a_named_pipe_that_nobody_reads_is_an_error_at_once_that_says_so() {
    let scratch = Scratch::new("fifo");
    let name = std::ffi::CString::new(scratch.0.to_str().unwrap()).unwrap();
    #[expect(unsafe_code, reason = "the standard library makes no named pipes")]
    // SAFETY: `name` is a string of C and outlives the call.
    let made = unsafe { libc::mkfifo(name.as_ptr(), 0o600) };
    assert_eq!(made, 0);
    let opened = LogWriter::start(&scratch.target(), CONFIG, Told::default());
    let error = opened.map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "it is a pipe without a reader");
    // With somebody who reads, it waits for that one instead of failing when it is full.
    let mut reader = File::options()
        .read(true)
        .write(true)
        .open(&scratch.0)
        .unwrap();
    let told = Told::default();
    let log = LogWriter::start(&scratch.target(), CONFIG, told.clone()).unwrap();
    let text = "x".repeat(999);
    (0..500).for_each(|_| log.push(line(&text)));
    let mut all = vec![0; 500 * 1000];
    reader.read_exact(&mut all).unwrap();
    assert_eq!(told.lost(), 0);
    assert!(log.close(WAIT));
}

#[test]
fn what_is_captured_is_not_queued() {
    let scratch = Scratch::new("captured");
    let log = LogWriter::start(&scratch.target(), CONFIG, Told::default()).unwrap();
    let mut writer = log.clone();
    let captured = capture(|| io::Write::write_all(&mut writer, b"a\n").unwrap());
    assert_eq!(captured, Some(line("a")));
    assert_eq!(capture(|| {}), None);
    io::Write::write_all(&mut writer, b"b\n").unwrap();
    assert!(log.close(WAIT));
    assert_eq!(scratch.text(), "b\n");
}

#[test]
fn a_check_finds_what_opening_would_and_leaves_nothing_behind() {
    let scratch = Scratch::new("checked");
    scratch.target().check().unwrap();
    assert!(!scratch.0.exists());
    fs::write(&scratch.0, "kept").unwrap();
    scratch.target().check().unwrap();
    assert_eq!(scratch.text(), "kept");
    let wrong = [
        ("/nonexistent/access.log", io::ErrorKind::NotFound),
        ("/tmp", io::ErrorKind::IsADirectory),
    ];
    for (path, kind) in wrong {
        let error = LogTarget::File(path.into()).check().unwrap_err();
        assert_eq!(error.kind(), kind, "{path}: {error}");
    }
    assert!(LogTarget::Stdout.check().is_ok());
}
