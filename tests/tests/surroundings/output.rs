//! A standard output or standard error that fails, and works again.

use std::{fs, path::PathBuf, process::Stdio};

use anyhow::Result;
use causeway_tests::harness::{
    limits::{self, Resource},
    log_pipe::LogPipe,
};

/// How it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is a pipe whose reader is gone.
    Closed,
    /// It is a pipe whose reader does not read.
    Unread,
    /// It is a file, and there is no room for more.
    Full,
}

/// One of the two, of one process.
#[derive(Debug)]
pub(crate) struct Output {
    fault: Fault,
    target: Target,
}

#[derive(Debug)]
enum Target {
    Pipe(LogPipe),
    File(PathBuf),
}

impl Output {
    /// One that works, in `directory`.
    pub(crate) fn new(fault: Fault, directory: &std::path::Path, name: &str) -> Result<Self> {
        let target = match fault {
            Fault::Closed | Fault::Unread => Target::Pipe(LogPipe::new(directory, name)?),
            Fault::Full => Target::File(directory.join(name)),
        };
        Ok(Self { fault, target })
    }

    /// What the process gets.
    pub(crate) fn stdio(&self) -> Result<Stdio> {
        match &self.target {
            Target::Pipe(pipe) => pipe.writer(),
            Target::File(path) => {
                let file = fs::File::options().create(true).append(true).open(path)?;
                Ok(file.into())
            }
        }
    }

    /// All that was written to it.
    pub(crate) fn text(&mut self) -> String {
        match &mut self.target {
            Target::Pipe(pipe) => pipe.read(),
            Target::File(path) => fs::read_to_string(path).unwrap_or_default(),
        }
    }

    /// It fails from now on, for the process `pid`.
    pub(crate) fn fail(&mut self, pid: i32) -> Result<()> {
        match (self.fault, &mut self.target) {
            (Fault::Closed, Target::Pipe(pipe)) => pipe.close(),
            (_, Target::Pipe(pipe)) => pipe.fill()?,
            (_, Target::File(path)) => {
                let length = fs::metadata(path)?.len();
                limits::set(pid, Resource::FileSize, Some(length))?;
            }
        }
        Ok(())
    }

    /// It works again.
    pub(crate) fn recover(&mut self, pid: i32) -> Result<()> {
        match (self.fault, &mut self.target) {
            (Fault::Closed, Target::Pipe(pipe)) => pipe.open(),
            (_, Target::Pipe(pipe)) => pipe.grow(),
            (_, Target::File(_)) => limits::set(pid, Resource::FileSize, None),
        }
    }
}
