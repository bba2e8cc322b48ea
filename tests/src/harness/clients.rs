//! The programs in `tests/clients`, which packages of npm and PyPI make.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde_json::Value;
use tokio::process::Command;

use crate::harness::programs;

/// The command that runs one of them (`.mjs` or `.py`) with `orders` as its argument.
///
/// # Errors
///
/// Node, Python or the packages are not there; the error says how to get them.
pub fn command(script: &str, orders: &Value) -> Result<Command> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
    let mut command = Command::new(if script.ends_with(".py") {
        python(&directory)?
    } else {
        node(&directory)?
    });
    command.arg(directory.join(script)).arg(orders.to_string());
    Ok(command)
}

fn node(directory: &Path) -> Result<PathBuf> {
    if !directory.join("node_modules").is_dir() {
        bail!("the npm packages are not there: run `make clients`");
    }
    programs::installed(&["node"])
}

fn python(directory: &Path) -> Result<PathBuf> {
    let python = directory.join(".venv/bin/python");
    if !python.is_file() {
        bail!("Python's packages are not there: run `make clients`");
    }
    Ok(python)
}
