//! The edge alone with a configuration file of the user's, as in production.

use std::{os::unix::process::CommandExt as _, path::Path, process::Command};

use anyhow::Error;

use crate::harness::programs;

/// Replaces this process by the edge: its output, its signals and its exit code are the edge's own.
///
/// Returns only if that fails.
pub(super) fn become_edge(file: &Path) -> Error {
    match programs::ours("causeway-proxy") {
        Ok(program) => {
            let error = Command::new(&program).arg("--config").arg(file).exec();
            Error::new(error).context(format!("cannot run {}", program.display()))
        }
        Err(error) => error,
    }
}
