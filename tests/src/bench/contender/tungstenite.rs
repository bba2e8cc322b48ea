//! A plain tokio-tungstenite loop, in a process of its own.

use std::env;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use tokio::process::Command;

use crate::bench::contender::{Contender, Place, Running};
use crate::harness::process::Process;

/// The loop.
pub(crate) struct Tungstenite;

#[async_trait(?Send)]
impl Contender for Tungstenite {
    fn name(&self) -> &'static str {
        "tungstenite"
    }

    fn settings(&self) -> &'static str {
        "a task for each client, a broadcast queue, 1 KiB read buffers, one flush for all that waits"
    }

    fn version(&self) -> Result<String> {
        Ok("tokio-tungstenite as in Cargo.lock".to_owned())
    }

    async fn start(&self, place: &Place<'_>) -> Result<Running> {
        let this = env::current_exe().context("cannot tell where this program is")?;
        let mut command = Command::new(this);
        command
            .arg("relay")
            .env("TOKIO_WORKER_THREADS", place.threads.to_string());
        let mut process = Process::spawn("tungstenite", command, place.directory)?;
        let address = process.listening("bench").await?;
        Ok(Running::new(process, address))
    }
}
