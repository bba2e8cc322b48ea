//! A clock that jumps: a library between a program and the system's, that adds to what the latter says.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

/// The library. What is added, in seconds, is in a file that each process has in its memory.
const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile long long *offset;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CAUSEWAY_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *mapped = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED) offset = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *offset;
    return result;
}
"#;

/// The library, built.
#[derive(Clone, Debug)]
pub struct Clock {
    library: PathBuf,
}

/// The clock of one process.
#[derive(Debug)]
pub struct Hands(File);

impl Clock {
    /// Builds the library; `None` where there is no C compiler.
    #[must_use]
    pub fn build(directory: &Path) -> Option<Self> {
        let (source, library) = (directory.join("clock.c"), directory.join("clock.so"));
        std::fs::write(&source, SOURCE).ok()?;
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]);
        compiler.arg(&library).arg(&source);
        let built = compiler.stderr(Stdio::null()).status().ok()?;
        built.success().then_some(Self { library })
    }

    /// The variables with which a process gets a clock of its own, and the hands of that.
    ///
    /// # Errors
    ///
    /// The file for them cannot be made.
    pub fn of(&self, file: &Path) -> Result<(Vec<(&'static str, PathBuf)>, Hands)> {
        let hands = File::create(file).context("cannot make a file for a clock")?;
        let hands = Hands(hands);
        hands.turn(0)?;
        let variables = vec![
            ("LD_PRELOAD", self.library.clone()),
            ("CAUSEWAY_CLOCK", file.to_owned()),
        ];
        Ok((variables, hands))
    }
}

impl Hands {
    /// The clock is so many seconds ahead from now on.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn turn(&self, seconds: i64) -> Result<()> {
        let written = self.0.write_all_at(&seconds.to_ne_bytes(), 0);
        written.context("cannot turn a clock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::scratch::Scratch;

    #[test]
    fn a_process_has_the_time_that_it_is_given() {
        let scratch = Scratch::new("clock").unwrap();
        let Some(clock) = Clock::build(scratch.path()) else {
            eprintln!("left out: there is no C compiler");
            return;
        };
        let (variables, hands) = clock.of(&scratch.path().join("hands")).unwrap();
        let year = || {
            let mut date = Command::new("date");
            let output = date.args(["-u", "+%Y"]).envs(variables.clone()).output();
            let output = String::from_utf8(output.unwrap().stdout).unwrap();
            output.trim().parse::<u32>().unwrap()
        };
        let now = year();
        hands.turn(20 * 366 * 24 * 3600).unwrap();
        assert_eq!(year(), now + 20);
    }
}
