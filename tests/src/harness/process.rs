//! One child process: its end, its signals and its output.

use std::{
    fs,
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::harness::wait;

/// How many bytes of a log's end a failure shows.
const TAIL_BYTES: usize = 6_000;

/// A signal that tests and the runner send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT: stop soon.
    Interrupt,
    /// SIGTERM: drain, then stop.
    Terminate,
    /// SIGKILL: gone, without a word.
    Kill,
    /// SIGSTOP: silent, with open connections.
    Stop,
    /// SIGCONT: goes on after a [`Signal::Stop`].
    Continue,
    /// SIGHUP: read the configuration again.
    Hangup,
    /// SIGUSR1: log files were renamed.
    User1,
    /// SIGUSR2: start a successor.
    User2,
    /// SIGQUIT: stop when all connections have ended, as nginx understands it.
    Quit,
    /// SIGWINCH: accept no more connections, as nginx understands it.
    WindowChange,
}

/// Where the output of a process goes, if not to files.
#[derive(Debug, Default)]
pub struct Streams {
    /// Its standard output.
    pub stdout: Option<Stdio>,
    /// Its standard error.
    pub stderr: Option<Stdio>,
}

/// A running program that is ours to end. Its output goes to two files.
///
/// Invariant: when this is dropped, the process is gone.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: i32,
    child: Child,
    stdout: Output,
    stderr: Output,
}

impl Process {
    /// Starts `command` with its output at the end of `NAME.out` and `NAME.log` in `directory`.
    ///
    /// It gets a process group of its own, so that a Ctrl-C in a terminal reaches only the runner, and the kernel ends it
    /// should this process die without ending it.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn spawn(name: &str, command: Command, directory: &Path) -> Result<Self> {
        Self::spawn_on(name, command, directory, Streams::default())
    }

    /// As [`Process::spawn`], with output that goes elsewhere, where [`Process::log`] and [`Process::output`] do not see it.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn spawn_on(
        name: &str,
        mut command: Command,
        directory: &Path,
        streams: Streams,
    ) -> Result<Self> {
        let stdout = Output::after_what_is_there(directory.join(format!("{name}.out")));
        let stderr = Output::after_what_is_there(directory.join(format!("{name}.log")));
        let to =
            |elsewhere: Option<Stdio>, file: &Output| elsewhere.map_or_else(|| file.append(), Ok);
        command
            .stdout(to(streams.stdout, &stdout)?)
            .stderr(to(streams.stderr, &stderr)?)
            .process_group(0)
            .kill_on_drop(true);
        die_with_parent(&mut command);
        let program = command.as_std().get_program().display().to_string();
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let pid = child
            .id()
            .and_then(|pid| pid.try_into().ok())
            .ok_or_else(|| anyhow!("{program} has no process id"))?;
        Ok(Self {
            name: name.to_owned(),
            pid,
            child,
            stdout,
            stderr,
        })
    }

    /// What it is called in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its standard input, if the command piped it.
    pub fn stdin(&mut self) -> Option<&mut tokio::process::ChildStdin> {
        self.child.stdin.as_mut()
    }

    /// Where its standard error goes.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.stderr.path
    }

    /// All that it wrote to standard error so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.stderr.read()
    }

    /// All that it wrote to standard output so far.
    #[must_use]
    pub fn output(&self) -> String {
        self.stdout.read()
    }

    /// The lines of its standard output that are JSON, such as an access log.
    #[must_use]
    pub fn output_lines(&self) -> Vec<Value> {
        json_lines(&self.output())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal; to a process that has ended it does nothing.
    pub fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            send(self.pid, signal);
        }
    }

    /// Waits for its end, however long that takes.
    ///
    /// # Errors
    ///
    /// The system cannot tell.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        self.child
            .wait()
            .await
            .with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// It still runs after `deadline`.
    pub async fn exit(&mut self, deadline: Duration) -> Result<ExitStatus> {
        match timeout(deadline, self.child.wait()).await {
            Ok(status) => status.with_context(|| format!("cannot wait for {}", self.name)),
            Err(_) => bail!(
                "{} still runs after {deadline:?}\n{}",
                self.name,
                self.tail()
            ),
        }
    }

    /// Ends it at once and waits until it is gone.
    ///
    /// # Errors
    ///
    /// The system cannot tell.
    pub async fn kill(&mut self) -> Result<()> {
        self.signal(Signal::Kill);
        self.ended().await.map(drop)
    }

    /// Waits for the line that says that `listener` listens, and returns the address in it.
    ///
    /// # Errors
    ///
    /// The process ended, or the line did not come soon.
    pub async fn listening(&mut self, listener: &str) -> Result<SocketAddr> {
        let what = format!("`listening` of {listener} in the log of {}", self.name);
        let found = wait::until(&what, wait::SOON, async || {
            match self.listener_address(listener) {
                Some(address) => Some(Ok(address)),
                None if self.is_running() => None,
                None => Some(Err(anyhow!(
                    "{} ended at its start\n{}",
                    self.name,
                    self.tail()
                ))),
            }
        });
        found.await?
    }

    /// The end of what it wrote to standard error.
    #[must_use]
    pub fn tail(&self) -> String {
        let log = self.log();
        let start = log.len().saturating_sub(TAIL_BYTES);
        let start = (start..log.len())
            .find(|&index| log.is_char_boundary(index))
            .unwrap_or(log.len());
        format!("--- {} ---\n{}", self.stderr.path.display(), &log[start..])
    }

    fn listener_address(&self, listener: &str) -> Option<SocketAddr> {
        let lines = json_lines(&self.log());
        let fields = lines.iter().map(|line| &line["fields"]);
        let line = fields
            .into_iter()
            .find(|fields| fields["message"] == "listening" && fields["listener"] == listener)?;
        line["address"].as_str()?.parse().ok()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.tail());
        }
        // Not left to tokio: the port and the files must be free when this returns.
        if self.is_running() {
            send(self.pid, Signal::Kill);
            while self.is_running() {
                thread::yield_now();
            }
        }
    }
}

/// A file that one process after the other writes to, and where this one began.
#[derive(Debug)]
struct Output {
    path: PathBuf,
    start: usize,
}

impl Output {
    fn after_what_is_there(path: PathBuf) -> Self {
        let start = fs::metadata(&path).map_or(0, |metadata| metadata.len() as usize);
        Self { path, start }
    }

    fn append(&self) -> Result<Stdio> {
        let file = File::options().create(true).append(true).open(&self.path);
        Ok(file
            .with_context(|| format!("cannot open {}", self.path.display()))?
            .into())
    }

    fn read(&self) -> String {
        let bytes = fs::read(&self.path).unwrap_or_default();
        String::from_utf8_lossy(bytes.get(self.start..).unwrap_or_default()).into_owned()
    }
}

/// The lines of `text` that are whole JSON values.
#[must_use]
pub fn json_lines(text: &str) -> Vec<Value> {
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

#[expect(unsafe_code, reason = "the standard library only knows SIGKILL")]
pub(super) fn send(pid: i32, signal: Signal) {
    let number = match signal {
        Signal::Interrupt => libc::SIGINT,
        Signal::Terminate => libc::SIGTERM,
        Signal::Kill => libc::SIGKILL,
        Signal::Stop => libc::SIGSTOP,
        Signal::Continue => libc::SIGCONT,
        Signal::Hangup => libc::SIGHUP,
        Signal::User1 => libc::SIGUSR1,
        Signal::User2 => libc::SIGUSR2,
        Signal::Quit => libc::SIGQUIT,
        Signal::WindowChange => libc::SIGWINCH,
    };
    // SAFETY: kill(2) takes two numbers and touches no memory of ours.
    unsafe { libc::kill(pid, number) };
}

#[expect(
    unsafe_code,
    reason = "there is no other way to have the kernel end a child with its parent"
)]
fn die_with_parent(command: &mut Command) {
    let ask = || {
        // SAFETY: prctl(2) is a system call and allowed between fork and exec; it touches no memory of ours.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        Ok(())
    };
    // SAFETY: `ask` makes one system call: no lock, no allocation.
    unsafe { command.pre_exec(ask) };
}
