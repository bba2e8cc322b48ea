//! A named pipe as the output of a program, whose reader reads, stops reading, or is gone and comes back.

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result};

/// The line with which [`LogPipe::fill`] fills it.
const FILLER: &str = "filler\n";

/// The least that a pipe can hold.
const CAPACITY: i32 = 4096;

/// The most that a pipe of an ordinary user can hold.
const CAPACITY_MANY: i32 = 1 << 20;

/// The reading side of a pipe, and what was read from it.
#[derive(Debug)]
pub struct LogPipe {
    path: PathBuf,
    reader: Option<File>,
    /// Whole lines, without what filled it.
    lines: Vec<u8>,
    /// What was read behind the last of them.
    rest: Vec<u8>,
}

impl LogPipe {
    /// Makes a named pipe that holds little.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn new(directory: &Path, name: &str) -> Result<Self> {
        let path = directory.join(name);
        let mut pipe = Self {
            path,
            reader: None,
            lines: Vec::new(),
            rest: Vec::new(),
        };
        make(&pipe.path)?;
        pipe.open()?;
        Ok(pipe)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The writing side, for a program.
    ///
    /// # Errors
    ///
    /// Nobody reads it.
    pub fn writer(&self) -> Result<Stdio> {
        // The standard library's own would wait for a reader.
        let mut options = OpenOptions::new();
        let writer = options.write(true).open(&self.path);
        Ok(writer.context("cannot write to the pipe")?.into())
    }

    /// Reads what is there; all whole lines that were read so far, without what filled it.
    pub fn read(&mut self) -> String {
        self.drain();
        String::from_utf8_lossy(&self.lines).into_owned()
    }

    /// Reads what is there.
    pub fn drain(&mut self) {
        let Some(reader) = &mut self.reader else {
            return;
        };
        // Empty, or without a writer: there is nothing more.
        let _ = reader.read_to_end(&mut self.rest);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return;
        };
        let rest = self.rest.split_off(end + 1);
        for line in self.rest.split_inclusive(|byte| *byte == b'\n') {
            if line != FILLER.as_bytes() {
                self.lines.extend_from_slice(line);
            }
        }
        self.rest = rest;
    }

    /// Fills it: whoever writes more has to wait for a reader.
    ///
    /// # Errors
    ///
    /// Nobody reads it.
    pub fn fill(&self) -> Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_NONBLOCK);
        let mut writer = options.open(&self.path)?;
        // Up to a page goes in as a whole, or not at all.
        for lines in [500, 1] {
            let text = FILLER.repeat(lines);
            loop {
                match writer.write_all(text.as_bytes()) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("cannot fill the pipe"),
                }
            }
        }
        Ok(())
    }

    /// From now on it holds much, for a reader that reads now and then.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn grow(&self) -> Result<()> {
        self.reader
            .as_ref()
            .map_or(Ok(()), |reader| size(reader, CAPACITY_MANY))
    }

    /// The reader goes: whoever writes gets an error.
    pub fn close(&mut self) {
        self.read();
        self.reader = None;
    }

    /// A reader comes.
    ///
    /// # Errors
    ///
    /// It cannot be opened.
    pub fn open(&mut self) -> Result<()> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let reader = options.open(&self.path).context("cannot open the pipe")?;
        size(&reader, CAPACITY)?;
        self.reader = Some(reader);
        Ok(())
    }
}

#[expect(unsafe_code, reason = "the standard library makes no named pipes")]
fn make(path: &Path) -> Result<()> {
    let name = CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: `name` is a string of C and outlives the call.
    if unsafe { libc::mkfifo(name.as_ptr(), 0o600) } != 0 {
        return Err(io::Error::last_os_error()).context("cannot make a pipe");
    }
    Ok(())
}

#[expect(unsafe_code, reason = "the standard library does not size pipes")]
fn size(pipe: &File, bytes: i32) -> Result<()> {
    // SAFETY: the descriptor is open, and the call touches no memory of ours.
    if unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) } < 0 {
        return Err(io::Error::last_os_error()).context("cannot size a pipe");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::scratch::Scratch;

    #[test]
    fn it_fills_and_empties_and_keeps_what_was_written() {
        let scratch = Scratch::new("log-pipe").unwrap();
        let mut pipe = LogPipe::new(scratch.path(), "log").unwrap();
        let mut writer = File::options().write(true).open(pipe.path()).unwrap();
        writer.write_all(b"one\n").unwrap();
        pipe.fill().unwrap();
        assert_eq!(pipe.read(), "one\n");
        writer.write_all(b"two\n").unwrap();
        assert_eq!(pipe.read(), "one\ntwo\n");
        pipe.close();
        let error = writer.write_all(b"three\n").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        pipe.open().unwrap();
        writer.write_all(b"four\n").unwrap();
        assert_eq!(pipe.read(), "one\ntwo\nfour\n");
    }
}
