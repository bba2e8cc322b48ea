//! Pingora without the edge, in a process of its own.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use tokio::process::Command;

use crate::bench::contender::{Contender, Place, Running, accepting, free_address};
use crate::bench::dialect::Dialect;
use crate::harness::process::Process;

/// Pingora without the edge.
pub(crate) struct Pingora;

#[async_trait(?Send)]
impl Contender for Pingora {
    fn name(&self) -> &'static str {
        "pingora"
    }

    fn settings(&self) -> &'static str {
        "an HttpProxy with round robin and no headers of its own, threads as given, jemalloc"
    }

    fn version(&self) -> Result<String> {
        program().map(|_| "pingora as in Cargo.lock".to_owned())
    }

    async fn start(&self, place: &Place<'_>) -> Result<Running> {
        let (address, tls_address) = (free_address()?, free_address()?);
        let tls = place.tls()?;
        let mut command = Command::new(program()?);
        command
            .args(["--listen", &address.to_string()])
            .args(["--listen-tls", &tls_address.to_string()])
            .args(["--backend", &place.backend()?.to_string()])
            .args(["--threads", &place.threads.to_string()])
            .arg("--certificate")
            .arg(&tls.certificate)
            .arg("--key")
            .arg(&tls.key);
        let mut process = Process::spawn("pingora", command, place.directory)?;
        accepting(&mut process, address).await?;
        Ok(Running::new(process, address)
            .with_tls(tls_address)
            .speaking(Dialect::websocket("/")))
    }
}

/// The program beside this one.
fn program() -> Result<PathBuf> {
    let this = env::current_exe().context("cannot tell where this program is")?;
    let program = this.with_file_name("causeway-bench-pingora");
    anyhow::ensure!(program.exists(), "not built: {}", program.display());
    Ok(program)
}
