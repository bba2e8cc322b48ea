//! The processes of one group: those of a server that starts its successor itself, so that their ids are not known before.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::harness::process::{self, Signal};

/// A process group that is ours to end.
///
/// Invariant: when this is dropped, all its processes are gone, and soon after this process is killed they are too.
#[derive(Debug)]
pub struct ProcessGroup {
    id: i32,
    /// Ends the group when its standard input is closed.
    guard: Child,
}

impl ProcessGroup {
    /// The group of this id, which is that of its first process.
    ///
    /// # Errors
    ///
    /// There is no shell to guard it.
    pub fn new(id: i32) -> Result<Self> {
        let guard = Command::new("sh")
            .args(["-c", "read _; kill -s KILL -- \"-$0\""])
            .arg(id.to_string())
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            // A Ctrl-C in a terminal ends the process that holds the other end of the pipe, and not this one.
            .process_group(0)
            .spawn()
            .context("cannot start sh")?;
        Ok(Self { id, guard })
    }

    /// The ids of its processes that have not ended.
    #[must_use]
    pub fn running(&self) -> Vec<i32> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| group_of(*pid) == Some(self.id)).collect()
    }

    /// Sends a signal to a process of this group, if it still is one.
    pub fn signal(&self, pid: i32, signal: Signal) {
        if group_of(pid) == Some(self.id) {
            process::send(pid, signal);
        }
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        if let Err(error) = self.guard.wait() {
            eprintln!("cannot end process group {}: {error}", self.id);
        }
    }
}

/// Whether there is such a process that has not ended, also if nothing has waited for it yet.
#[must_use]
pub fn is_running(pid: i32) -> bool {
    group_of(pid).is_some()
}

/// The group of a process that has not ended.
fn group_of(pid: i32) -> Option<i32> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The fields of `/proc/PID/stat` are in proc(5). The second, the name, may have anything in it.
fn parse(stat: &str) -> Option<i32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?;
    let group = fields.nth(1)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_ended_is_in_no_group() {
        assert_eq!(parse("7 (a) b (c) S 3 8 9 0 -1"), Some(8));
        assert_eq!(parse("7 (sh) Z 3 8 9 0 -1"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_group_ends_with_its_owner() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 600 & wait"])
            .process_group(0)
            .spawn()
            .unwrap();
        let id = child.id().cast_signed();
        let group = ProcessGroup::new(id).unwrap();
        assert!(group.running().contains(&id));
        drop(group);
        child.wait().unwrap();
        assert!(!is_running(id));
    }
}
