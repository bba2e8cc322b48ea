//! Namespaces for one test: with a network, file systems and limits of its own, that would hit everybody outside.

use std::{env, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

/// Set inside.
const INSIDE: &str = "CAUSEWAY_NAMESPACE";

/// Whether this process is inside.
#[must_use]
pub fn is_inside() -> bool {
    env::var_os(INSIDE).is_some()
}

/// Mounts something inside.
///
/// # Errors
///
/// The system refuses.
pub async fn mount(arguments: &[&str]) -> Result<()> {
    ensure!(is_inside(), "nothing is mounted for everybody");
    let status = Command::new("mount").args(arguments).status().await?;
    ensure!(status.success(), "cannot mount {arguments:?}");
    Ok(())
}

/// Runs the test called `name` of this test program in namespaces for the network, whose loopback device is up, and for mounts,
/// after the commands of `setup`. Says whether there was one: not every machine lets a user have one.
///
/// # Errors
///
/// The test failed.
pub async fn run(name: &str, setup: &str) -> Result<bool> {
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--map-root-user", "sh", "-ec", script]);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    };
    let tried = unshare(&format!("ip link set lo up\n{setup}"))
        .output()
        .await;
    match tried {
        Ok(tried) if tried.status.success() => {}
        _ => return Ok(false),
    }
    let script = format!("ip link set lo up\n{setup}\nexec \"$0\" --exact \"$1\" --nocapture");
    let program = env::current_exe().context("cannot tell where this program is")?;
    let mut inside = unshare(&script);
    inside.arg(program).arg(name).env(INSIDE, "1");
    let status = inside.status().await?;
    ensure!(status.success(), "{name} failed in its namespace: {status}");
    Ok(true)
}
