//! The programs in `tests/clients`, which npm's packages make.

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::Value;
use tokio::process::Command;

use crate::harness::programs;

/// The command that runs one of them with `orders` as its argument.
///
/// # Errors
///
/// Node or the packages are not there; the error says how to get them.
pub fn command(script: &str, orders: &Value) -> Result<Command> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
    if !directory.join("node_modules").is_dir() {
        bail!("the npm packages are not there: run `npm ci --prefix tests/clients`");
    }
    let mut command = Command::new(programs::installed(&["node"])?);
    command.arg(directory.join(script)).arg(orders.to_string());
    Ok(command)
}
