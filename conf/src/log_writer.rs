//! A log that never holds up the program that writes to it.
//!
//! Lines go through a bounded queue to a thread of their own, which alone touches the file, pipe or terminal. A line that
//! finds the queue full, or that cannot be written, is dropped and counted, and nothing else happens: no panic, no error
//! that a caller would have to handle. Once lines can be written again, it is said how many were lost.
//!
//! tracing-appender's non-blocking writer does not serve: it counts only lines that find its queue full, not those that
//! cannot be written, never says that any were lost, reopens no file, and is not flushed by `process::exit`.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

mod output;

pub use output::LogTarget;

use output::Output;

/// How much is gathered for one write, unless there is nothing more to gather.
const WRITE_BYTES: usize = 64 * 1024;

/// How long it takes at least from one notice about lost lines to the next, and from one attempt to write it to the next.
const NOTICE_INTERVAL: Duration = Duration::from_secs(1);

/// How often a file is checked for whether it was renamed or removed, while lines are written to it.
const RENAME_INTERVAL: Duration = Duration::from_secs(1);

/// How many slots a queue keeps that has been emptied.
const IDLE_LINES: usize = 1024;

/// What a log consists of. It becomes text on the thread that writes it.
pub trait LogLine: Send + 'static {
    /// How many bytes it holds while it waits.
    fn bytes(&self) -> usize;

    /// Appends its text and a line feed.
    fn append_to(self, text: &mut Vec<u8>);
}

/// A line that is text already, with its line feed.
impl LogLine for Box<[u8]> {
    fn bytes(&self) -> usize {
        self.len()
    }

    fn append_to(self, text: &mut Vec<u8>) {
        text.extend_from_slice(&self);
    }
}

/// What a program wants to know of its log. All but [`LogEvents::lost`] are called on the log's own thread.
pub trait LogEvents<L>: Send + Sync + 'static {
    /// Lines were lost. Called by any thread, which must not wait here.
    fn lost(&self, lines: u64);

    /// Lines cannot be written any more.
    fn failing(&self, error: &io::Error) {
        let _ = error;
    }

    /// The line of this log that says that so many were lost. It is tried every second until it has been written.
    fn notice(&self, lost: u64) -> Option<L> {
        let _ = lost;
        None
    }

    /// So many lines were lost since the last call, and now lines can be written.
    fn recovered(&self, lost: u64) {
        let _ = lost;
    }

    /// The file was opened again, or could not be: then the one that was open is still written to.
    fn reopened(&self, result: io::Result<()>) {
        let _ = result;
    }
}

/// The limits of a log.
#[derive(Clone, Copy, Debug)]
pub struct LogConfig {
    /// The name of its thread.
    pub name: &'static str,
    /// Lines that may wait.
    pub lines_max: usize,
    /// Bytes that may wait.
    pub bytes_max: usize,
}

/// A handle to a log. Cheap to clone; the thread ends at [`LogWriter::close`], or with the process.
pub struct LogWriter<L>(Arc<Shared<L>>);

impl<L> Clone for LogWriter<L> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<L> {
    config: LogConfig,
    events: Box<dyn LogEvents<L>>,
    state: Mutex<State<L>>,
    /// Notified when the writing thread has something to do.
    work: Condvar,
    /// Notified when lines have left the queue, and when the thread has ended.
    progress: Condvar,
}

/// Invariant: `bytes` is the summed length of `lines`, at most `bytes_max`; `lines` are at most `lines_max`.
struct State<L> {
    lines: VecDeque<L>,
    bytes: usize,
    /// How many lines were ever queued, and how many of those were written or lost.
    queued: u64,
    finished: u64,
    /// Lines that were lost and that no notice has told of.
    unreported: u64,
    /// Whether the writing thread sleeps.
    is_asleep: bool,
    is_reopen_wanted: bool,
    is_closed: bool,
    has_ended: bool,
}

/// What the writing thread has to do.
enum Work {
    Write,
    Reopen,
    /// Nothing for a while, but there are lost lines to tell of.
    Notice,
    End,
}

impl<L: LogLine> LogWriter<L> {
    /// Opens `target` and starts the thread that writes to it.
    ///
    /// A write beyond the file size limit is an error from here on: by default the signal for it (SIGXFSZ) ends the process.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, opening it takes too long, or there can be no thread.
    pub fn start(
        target: &LogTarget,
        config: LogConfig,
        events: impl LogEvents<L>,
    ) -> io::Result<Self> {
        let output = Output::open(target)?;
        crate::signals::ignore_signals(&[libc::SIGXFSZ]);
        Self::start_on(output, config, Box::new(events))
    }

    fn start_on(
        output: Output,
        config: LogConfig,
        events: Box<dyn LogEvents<L>>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            config,
            events,
            state: Mutex::new(State {
                lines: VecDeque::new(),
                bytes: 0,
                queued: 0,
                finished: 0,
                unreported: 0,
                is_asleep: false,
                is_reopen_wanted: false,
                is_closed: false,
                has_ended: false,
            }),
            work: Condvar::new(),
            progress: Condvar::new(),
        });
        let writing = Arc::clone(&shared);
        std::thread::Builder::new()
            .name(config.name.to_owned())
            .spawn(move || {
                let _ended = Ended(Arc::clone(&writing));
                let mut writing = Writing::new(writing, output);
                // A panic (a bug, of a line or of what is told) costs lines, and not the log.
                while catch_unwind(AssertUnwindSafe(|| writing.run())).is_err() {}
            })?;
        Ok(Self(shared))
    }

    /// Queues a line, or drops it if the queue is full. Never waits for the file.
    pub fn push(&self, line: L) {
        let shared = &self.0;
        let bytes = line.bytes();
        let mut state = shared.lock();
        let is_full = state.lines.len() >= shared.config.lines_max
            || state.bytes.saturating_add(bytes) > shared.config.bytes_max;
        if is_full || state.is_closed {
            state.unreported += 1;
            drop(state);
            shared.events.lost(1);
            return;
        }
        state.bytes += bytes;
        state.lines.push_back(line);
        state.queued += 1;
        shared.wake(state);
    }

    /// Waits until all lines that are queued now are written or lost, for at most `wait`. Says whether they are.
    pub fn flush(&self, wait: Duration) -> bool {
        let state = self.0.lock();
        let queued = state.queued;
        self.0.wait_until(state, wait, |state| {
            state.finished >= queued || state.has_ended
        })
    }

    /// Opens the file again by its name, after log rotation has renamed it.
    pub fn reopen(&self) {
        let mut state = self.0.lock();
        state.is_reopen_wanted = true;
        self.0.wake(state);
    }

    /// Writes what is queued and ends the thread, in at most `wait`. Lines that come later are lost. Says whether all is done.
    pub fn close(&self, wait: Duration) -> bool {
        let mut state = self.0.lock();
        state.is_closed = true;
        self.0.wake(state);
        let state = self.0.lock();
        self.0.wait_until(state, wait, |state| state.has_ended)
    }
}

impl<L> Shared<L> {
    /// Nothing panics while the state is locked, so that it is whole in any case.
    fn lock(&self) -> MutexGuard<'_, State<L>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, mut state: MutexGuard<'_, State<L>>) {
        if std::mem::take(&mut state.is_asleep) {
            drop(state);
            self.work.notify_one();
        }
    }

    fn wait_until(
        &self,
        state: MutexGuard<'_, State<L>>,
        wait: Duration,
        is_done: impl Fn(&State<L>) -> bool,
    ) -> bool {
        let waited = self
            .progress
            .wait_timeout_while(state, wait, |state| !is_done(state));
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        is_done(&state)
    }
}

impl<L: LogLine> Shared<L> {
    /// Waits for something to do. Lines to be written are moved to `batch`.
    fn next(&self, batch: &mut Vec<L>) -> Work {
        let mut state = self.lock();
        loop {
            if std::mem::take(&mut state.is_reopen_wanted) {
                return Work::Reopen;
            }
            if state.take(batch) {
                return Work::Write;
            }
            if state.is_closed {
                return Work::End;
            }
            state.is_asleep = true;
            if state.unreported == 0 {
                let woken = self.work.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let woken = self.work.wait_timeout(state, NOTICE_INTERVAL);
            let (woken, timeout) = woken.unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if timeout.timed_out() && state.lines.is_empty() {
                state.is_asleep = false;
                return Work::Notice;
            }
        }
    }
}

impl<L: LogLine> State<L> {
    /// Moves about as much as one write takes to `batch`. Says whether there was anything.
    fn take(&mut self, batch: &mut Vec<L>) -> bool {
        let mut bytes = 0;
        while bytes < WRITE_BYTES
            && let Some(line) = self.lines.pop_front()
        {
            bytes += line.bytes();
            batch.push(line);
        }
        self.bytes -= bytes;
        if self.lines.is_empty() && self.lines.capacity() > IDLE_LINES {
            self.lines.shrink_to(IDLE_LINES);
        }
        !batch.is_empty()
    }
}

/// What the thread works on.
struct Writing<L> {
    shared: Arc<Shared<L>>,
    output: Output,
    /// The last byte that was written is not the end of a line.
    is_torn: bool,
    is_failing: bool,
    noticed: Option<Instant>,
    checked: Instant,
    text: Vec<u8>,
    /// Where in `text` each line ends.
    ends: Vec<usize>,
}

impl<L: LogLine> Writing<L> {
    fn new(shared: Arc<Shared<L>>, output: Output) -> Self {
        Self {
            shared,
            output,
            is_torn: false,
            is_failing: false,
            noticed: None,
            checked: Instant::now(),
            text: Vec::new(),
            ends: Vec::new(),
        }
    }

    fn run(&mut self) {
        let mut batch = Vec::new();
        loop {
            match self.shared.next(&mut batch) {
                Work::Write => {
                    self.follow_renames();
                    self.write(&mut batch);
                    self.notice_if_due();
                }
                Work::Reopen => self.reopen(),
                Work::Notice => self.notice(),
                Work::End => return self.notice(),
            }
        }
    }

    /// Writes `batch` and empties it. What cannot be written is lost.
    fn write(&mut self, batch: &mut Vec<L>) {
        let count = batch.len() as u64;
        let lost = self.write_lines(batch.drain(..));
        if 0 < lost {
            self.shared.lock().unreported += lost;
            self.shared.events.lost(lost);
        }
        self.shared.lock().finished += count;
        self.shared.progress.notify_all();
    }

    /// Returns how many of `lines` were not written.
    fn write_lines(&mut self, lines: impl Iterator<Item = L>) -> u64 {
        self.text.clear();
        self.ends.clear();
        if self.is_torn {
            self.text.push(b'\n'); // What was cut off in the middle ends before the next line.
        }
        for line in lines {
            line.append_to(&mut self.text);
            self.ends.push(self.text.len());
        }
        let (written, result) = self.output.write_all(&self.text);
        if let Some(last) = self.text[..written].last() {
            self.is_torn = *last != b'\n';
        }
        if self.text.capacity() > 2 * WRITE_BYTES {
            self.text = Vec::new();
        }
        match result {
            Ok(()) => self.is_failing = false,
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    self.shared.events.failing(&error);
                }
            }
        }
        self.ends.iter().filter(|end| written < **end).count() as u64
    }

    fn notice_if_due(&mut self) {
        let is_due = self
            .noticed
            .is_none_or(|noticed| NOTICE_INTERVAL <= noticed.elapsed());
        if !self.is_failing && is_due {
            self.notice();
        }
    }

    /// Says how many lines were lost, if lines can be written.
    fn notice(&mut self) {
        let lost = self.shared.lock().unreported;
        if lost == 0 {
            return;
        }
        let notice = self.shared.events.notice(lost);
        if let Some(line) = notice {
            self.write_lines(std::iter::once(line));
        }
        if !self.is_failing {
            self.noticed = Some(Instant::now());
            self.shared.lock().unreported -= lost;
            self.shared.events.recovered(lost);
        }
    }

    fn follow_renames(&mut self) {
        if self.checked.elapsed() < RENAME_INTERVAL {
            return;
        }
        self.checked = Instant::now();
        if self.output.was_renamed() {
            self.reopen();
        }
    }

    fn reopen(&mut self) {
        let Some(result) = self.output.reopen() else {
            return;
        };
        if result.is_ok() {
            self.is_torn = false;
        }
        self.shared.events.reopened(result);
    }
}

/// Wakes the waiting threads when the writer ends, also by a panic.
struct Ended<L>(Arc<Shared<L>>);

impl<L> Drop for Ended<L> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.has_ended = true;
        state.is_closed = true;
        drop(state);
        self.0.progress.notify_all();
    }
}

thread_local! {
    static CAPTURED: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// Each call is one line, with its line feed. It never fails.
impl io::Write for LogWriter<Box<[u8]>> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let is_captured = CAPTURED.with_borrow_mut(|captured| match captured {
            Some(captured) => {
                captured.extend_from_slice(text);
                true
            }
            None => false,
        });
        if !is_captured {
            self.push(text.into());
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `log` writes to a [`LogWriter`] on this thread, instead of queueing it: for [`LogEvents::notice`].
pub fn capture(log: impl FnOnce()) -> Option<Box<[u8]>> {
    CAPTURED.set(Some(Vec::new()));
    log();
    let captured = CAPTURED.take()?;
    (!captured.is_empty()).then(|| captured.into())
}

#[cfg(test)]
mod tests;
