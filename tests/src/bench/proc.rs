//! What the kernel says about the processes of a server: memory and CPU time.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::harness::memory;

/// A process and all that descend from it.
pub(crate) struct Family {
    pids: Vec<i32>,
}

impl Family {
    /// Finds the family of `pid` as it is now.
    pub(crate) fn of(pid: i32) -> Result<Self> {
        let mut parents = Vec::new();
        for entry in fs::read_dir("/proc").context("cannot read /proc")? {
            let pid = entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i32>().ok());
            // A process may end while we look.
            if let Some(pid) = pid
                && let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat"))
                && let Some(parent) = stat_field(&stat, 4)
            {
                parents.push((pid, parent));
            }
        }
        let mut pids = vec![pid];
        let mut next = 0;
        while let Some(&parent) = pids.get(next) {
            let parent = i64::from(parent);
            pids.extend(
                parents
                    .iter()
                    .filter(|(_, of)| *of == parent)
                    .map(|(pid, _)| *pid),
            );
            next += 1;
        }
        Ok(Self { pids })
    }

    /// Has another family in it too.
    pub(crate) fn add(&mut self, other: Self) {
        self.pids.extend(other.pids);
    }

    /// The memory of all of them, in bytes: what is shared with other processes counts in proportion.
    pub(crate) fn pss(&self) -> Result<u64> {
        self.pids.iter().map(|pid| memory::pss(*pid)).sum()
    }

    /// The CPU time of all of them so far, user and system, with that of threads that have ended.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        self.pids.iter().map(|pid| cpu(*pid)).sum()
    }
}

/// By the kernel's clock for the process: `/proc/PID/stat` has the same time, but in hundredths of a second.
#[expect(
    unsafe_code,
    reason = "the standard library has no clock of another process"
)]
fn cpu(pid: i32) -> Result<Duration> {
    let mut clock = 0;
    // SAFETY: it takes a number and writes one to the place given, which outlives the call.
    let error = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    ensure!(error == 0, "process {pid} is gone");
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: it writes a time to the place given, which outlives the call.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    ensure!(result == 0, "process {pid} is gone");
    Ok(Duration::new(
        time.tv_sec.try_into()?,
        time.tv_nsec.try_into()?,
    ))
}

/// A field of `/proc/PID/stat` by its number in proc(5). The second, the name, may hold anything.
fn stat_field(stat: &str, number: usize) -> Option<i64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name
        .split_ascii_whitespace()
        .nth(number - 3)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_spaces_and_parentheses_shifts_no_field() {
        let stat = "7 (a) b (c) S 3 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 1 1 1";
        assert_eq!(stat_field(stat, 4), Some(3));
        assert_eq!(stat_field(stat, 14), Some(250));
    }

    #[test]
    fn this_process_has_memory_and_is_its_own_family() {
        let family = Family::of(std::process::id() as i32).unwrap();
        assert!(0 < family.pss().unwrap());
        let before = family.cpu().unwrap();
        while family.cpu().unwrap() == before {}
    }
}
