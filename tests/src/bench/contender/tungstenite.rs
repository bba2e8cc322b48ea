//! A plain tokio-tungstenite loop, in a process of its own.

use std::env;

use anyhow::{Context as _, Result};
use tokio::process::Command;

use crate::bench::contender::{Place, Running};
use crate::harness::process::Process;

pub(super) const SETTINGS: &str =
    "a task for each client, a broadcast queue, 1 KiB read buffers, one flush for all that waits";

pub(super) async fn start(place: &Place<'_>) -> Result<Running> {
    let this = env::current_exe().context("cannot tell where this program is")?;
    let mut command = Command::new(this);
    command
        .arg("relay")
        .env("TOKIO_WORKER_THREADS", place.threads.to_string());
    let mut process = Process::spawn("tungstenite", command, place.directory)?;
    let address = process.listening("bench").await?;
    Ok(Running::new(process, address))
}
