//! The memory of a process, as the kernel counts it.

use std::fs;

use anyhow::{Context as _, Result};

/// The memory of a process in bytes: what it shares with others counts in proportion (Pss).
///
/// # Errors
///
/// It is gone, or not ours to look at.
pub fn pss(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    parse_pss(&text).with_context(|| format!("{path} has no Pss"))
}

fn parse_pss(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pss_is_the_line_of_that_name_alone() {
        let text = "Rss:     100 kB\nPss:      42 kB\nPss_Dirty:   7 kB\n";
        assert_eq!(parse_pss(text), Some(42 * 1_024));
        assert_eq!(parse_pss("Rss: 100 kB\n"), None);
    }

    #[test]
    fn this_process_has_some() {
        assert!(1_024 < pss(std::process::id().cast_signed()).unwrap_or_default());
    }
}
