//! The memory of a process, as the kernel counts it.

use std::fs;

use anyhow::{Context as _, Result};

/// The memory of a process in bytes: what it shares with others counts in proportion (Pss).
///
/// # Errors
///
/// It is gone, or not ours to look at.
pub fn pss(pid: i32) -> Result<u64> {
    read(pid, "Pss:")
}

/// What a process has allocated, in bytes: without the pages of its program, of which it has the more to itself the fewer processes
/// run the same one.
///
/// # Errors
///
/// As [`pss`].
pub fn anonymous(pid: i32) -> Result<u64> {
    read(pid, "Pss_Anon:")
}

fn read(pid: i32, name: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    parse(&text, name).with_context(|| format!("{path} has no {name}"))
}

fn parse(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pss_is_the_line_of_that_name_alone() {
        let text = "Rss:     100 kB\nPss:      42 kB\nPss_Dirty:   7 kB\n";
        assert_eq!(parse(text, "Pss:"), Some(42 * 1_024));
        assert_eq!(parse("Rss: 100 kB\n", "Pss:"), None);
    }

    #[test]
    fn this_process_has_some() {
        assert!(1_024 < pss(std::process::id().cast_signed()).unwrap_or_default());
    }
}
