//! One of our programs, whose outputs and clock can fail.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Result, ensure};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{process::Command, task::JoinSet, time::sleep};

use crate::{
    harness::{
        http,
        output::{Fault, Output},
        process::{Process, Streams, json_lines},
        programs,
        scratch::Scratch,
        settings::Settings,
    },
    surroundings::clock::{Clock, Hands},
};

/// How often pipes are read.
const READ_INTERVAL: Duration = Duration::from_millis(10);

/// One of our programs.
#[derive(Debug)]
pub struct Program {
    /// What it is called in the report.
    pub name: String,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where `/metrics` is.
    pub admin: SocketAddr,
    /// The process behind it.
    pub process: Process,
    /// Its standard error.
    pub stderr: Arc<Mutex<Outlet>>,
    /// Its standard output.
    pub stdout: Arc<Mutex<Outlet>>,
    /// Its clock, if it can be turned.
    pub hands: Option<Hands>,
    /// Its configuration.
    pub file: PathBuf,
}

/// An output, and whether it is read at the moment.
#[derive(Debug)]
pub struct Outlet {
    output: Output,
    is_pipe: bool,
    is_read: bool,
}

impl Outlet {
    /// It fails from now on, for the process `pid`.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn fail(&mut self, fault: Fault, pid: i32) -> Result<()> {
        if self.is_pipe {
            self.output.set_fault(fault);
        }
        self.is_read = false;
        self.output.fail(pid)
    }

    /// It works again.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn recover(&mut self, pid: i32) -> Result<()> {
        self.output.recover(pid)?;
        self.is_read = true;
        Ok(())
    }
}

impl Program {
    /// All that it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.stderr.lock().output.text()
    }

    /// The end of that.
    #[must_use]
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Its metrics that count something, by name and labels.
    ///
    /// # Errors
    ///
    /// It does not reply.
    pub async fn counters(&self) -> Result<BTreeMap<String, u64>> {
        let page = http::get(self.admin, "/metrics").await?.text();
        let counters = page.lines().filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            let is_counter = name.contains("_total") && !name.starts_with('#');
            let name = name.strip_prefix("causeway_")?;
            is_counter.then_some((name.to_owned(), value.parse().ok()?))
        });
        Ok(counters.collect())
    }

    /// The lines of all of its logs that it says it has lost.
    ///
    /// # Errors
    ///
    /// It does not say.
    pub async fn lost_lines(&self) -> Result<u64> {
        let counters = self.counters().await?;
        let lost = counters
            .iter()
            .filter(|(name, _)| name.ends_with("_lines_dropped_total"));
        let lost: Vec<u64> = lost.map(|(_, count)| *count).collect();
        ensure!(!lost.is_empty(), "{} does not count lost lines", self.name);
        Ok(lost.iter().sum())
    }

    /// How many lost lines its program log reports.
    #[must_use]
    pub fn reported_lost(&self) -> u64 {
        let lines = json_lines(&self.log());
        let reported = lines
            .iter()
            .filter_map(|line| line["fields"]["lost"].as_u64());
        reported.sum()
    }

    /// How many of the edge's probes could not be sent.
    ///
    /// # Errors
    ///
    /// It does not reply.
    pub async fn probes_skipped(&self) -> Result<u64> {
        let counters = self.counters().await?;
        let skipped = counters
            .iter()
            .filter(|(name, _)| name.contains("\"skipped\""));
        Ok(skipped.map(|(_, count)| count).sum())
    }

    /// How many backends are up, as the edge says.
    ///
    /// # Errors
    ///
    /// It does not reply.
    pub async fn backends_up(&self) -> Result<usize> {
        let page = http::get(self.admin, "/backends").await?;
        let backends: Vec<Value> = serde_json::from_slice(&page.body)?;
        let up = backends.iter().filter(|backend| backend["state"] == "up");
        Ok(up.count())
    }
}

/// A program to be started.
pub(super) struct New {
    pub(super) name: String,
    pub(super) program: &'static str,
    pub(super) settings: Settings,
    pub(super) address: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) stderr: Fault,
    pub(super) stdout: Fault,
}

/// Where the files of programs are.
pub(super) struct Files<'a> {
    pub(super) scratch: &'a Scratch,
    /// For outputs that are files.
    pub(super) disk: Option<&'a Path>,
    pub(super) clock: Option<&'a Clock>,
}

/// Starts it; its pipes are read by tasks in `reading`.
pub(super) fn launch(new: New, files: &Files<'_>, reading: &mut JoinSet<()>) -> Result<Program> {
    let scratch = files.scratch;
    let name = new.name;
    let file = scratch.write(&format!("{name}.yaml"), &new.settings.text())?;
    let mut command = Command::new(programs::ours(new.program)?);
    command.arg("--config").arg(&file);
    let mut hands = None;
    if let Some(clock) = files.clock {
        let (variables, own) = clock.of(&scratch.path().join(format!("{name}.clock")))?;
        command.envs(variables);
        hands = Some(own);
    }
    let mut outlet = |fault: Fault, what: &str| -> Result<_> {
        let directory = match (fault, files.disk) {
            (Fault::Full, Some(disk)) => disk,
            _ => scratch.path(),
        };
        let output = Output::new(fault, directory, &format!("{name}.{what}"))?;
        let stdio = output.stdio()?;
        let outlet = Arc::new(Mutex::new(Outlet {
            output,
            is_pipe: fault != Fault::Full,
            is_read: true,
        }));
        reading.spawn(read(Arc::clone(&outlet)));
        Ok((outlet, stdio))
    };
    let (stderr, stderr_stdio) = outlet(new.stderr, "stderr")?;
    let (stdout, stdout_stdio) = outlet(new.stdout, "stdout")?;
    let streams = Streams {
        stdout: Some(stdout_stdio),
        stderr: Some(stderr_stdio),
    };
    let process = Process::spawn_on(&name, command, scratch.path(), streams)?;
    Ok(Program {
        name,
        address: new.address,
        admin: new.admin,
        process,
        stderr,
        stdout,
        hands,
        file,
    })
}

/// Reads an output for as long as it is to be read.
async fn read(outlet: Arc<Mutex<Outlet>>) {
    loop {
        {
            let mut outlet = outlet.lock();
            if outlet.is_read {
                outlet.output.drain();
            }
        }
        sleep(READ_INTERVAL).await;
    }
}
