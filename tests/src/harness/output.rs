//! A standard output or standard error that fails, and works again.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::Result;

use crate::harness::{
    limits::{self, Resource},
    log_pipe::LogPipe,
};

/// How it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// It is a pipe whose reader is gone.
    Closed,
    /// It is a pipe whose reader does not read.
    Unread,
    /// It is a file, and there is no room for more.
    Full,
}

/// One of the two, of one process.
#[derive(Debug)]
pub struct Output {
    fault: Fault,
    target: Target,
}

#[derive(Debug)]
enum Target {
    Pipe(LogPipe),
    File(PathBuf),
}

impl Output {
    /// One that works, in `directory`, and that can fail in this way.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn new(fault: Fault, directory: &Path, name: &str) -> Result<Self> {
        let target = match fault {
            Fault::Closed | Fault::Unread => Target::Pipe(LogPipe::new(directory, name)?),
            Fault::Full => Target::File(directory.join(name)),
        };
        Ok(Self { fault, target })
    }

    /// What the process gets.
    ///
    /// # Errors
    ///
    /// It cannot be opened.
    pub fn stdio(&self) -> Result<Stdio> {
        match &self.target {
            Target::Pipe(pipe) => pipe.writer(),
            Target::File(path) => {
                let file = fs::File::options().create(true).append(true).open(path)?;
                Ok(file.into())
            }
        }
    }

    /// How it fails the next time: a pipe can in two ways.
    pub fn set_fault(&mut self, fault: Fault) {
        let is_pipe = matches!(self.target, Target::Pipe(_));
        debug_assert_eq!(is_pipe, fault != Fault::Full, "a file can only be full");
        self.fault = fault;
    }

    /// Reads what was written to it, so that a pipe does not fill.
    pub fn drain(&mut self) {
        if let Target::Pipe(pipe) = &mut self.target {
            pipe.drain();
        }
    }

    /// All that was written to it.
    pub fn text(&mut self) -> String {
        match &mut self.target {
            Target::Pipe(pipe) => pipe.read(),
            Target::File(path) => fs::read_to_string(path).unwrap_or_default(),
        }
    }

    /// It fails from now on, for the process `pid`.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn fail(&mut self, pid: i32) -> Result<()> {
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
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn recover(&mut self, pid: i32) -> Result<()> {
        match (self.fault, &mut self.target) {
            (Fault::Closed, Target::Pipe(pipe)) => pipe.open(),
            (_, Target::Pipe(pipe)) => pipe.grow(),
            (_, Target::File(_)) => limits::set(pid, Resource::FileSize, None),
        }
    }
}
