//! Starts a successor: the program that is at the path of this one now, with the arguments of this one.

use std::env;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use tokio::process::{Child, Command};

/// The flag for the socket of the predecessor.
const FLAG: &str = "--takeover";

/// Says which process the watchdog of the service manager is for: not for the successor.
const WATCHDOG_PID: &str = "WATCHDOG_PID";

/// How this process was started.
#[derive(Clone, Debug)]
pub(crate) struct Launcher {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Launcher {
    /// That of this process. To be called at its start: the file may be replaced later.
    ///
    /// # Errors
    ///
    /// It is not known where its file is.
    pub(crate) fn of_this_process() -> io::Result<Self> {
        let mut arguments = env::args_os();
        // Not resolved, so that a link can lead to another version later.
        let called = arguments.next().map(PathBuf::from);
        let called = called.filter(|called| called.components().nth(1).is_some());
        let program = match called {
            Some(called) => std::path::absolute(called)?,
            None => env::current_exe()?,
        };
        Ok(Self {
            program,
            arguments: without_flag(arguments),
        })
    }

    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Starts a successor of the process that listens on `socket`. It goes on when the handle is dropped.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub(crate) fn launch(&self, socket: &Path) -> io::Result<Child> {
        Command::new(&self.program)
            .args(&self.arguments)
            .arg(FLAG)
            .arg(socket)
            .env_remove(WATCHDOG_PID)
            .spawn()
    }
}

/// The arguments without that of a former takeover.
fn without_flag(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        let value = text.strip_prefix(FLAG);
        match value {
            Some("") => drop(arguments.next()),
            Some(value) if value.starts_with('=') => {}
            _ => kept.push(argument),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_has_the_arguments_of_its_predecessor_but_for_the_takeover() {
        let words = |text: &str| -> Vec<OsString> { text.split(' ').map(OsString::from).collect() };
        for (arguments, kept) in [
            ("--config a.yaml", "--config a.yaml"),
            ("--config a.yaml --takeover s", "--config a.yaml"),
            ("--takeover=s --config --takeovers", "--config --takeovers"),
        ] {
            assert_eq!(without_flag(words(arguments)), words(kept), "{arguments}");
        }
    }
}
