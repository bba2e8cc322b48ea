//! The npm package ws, as it was installed for the end-to-end tests.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokio::process::Command;

use crate::bench::contender::{Place, Running};
use crate::harness::process::Process;
use crate::harness::programs;

pub(super) const SETTINGS: &str = "node, one thread, no compression, no UTF-8 validation";

pub(super) fn version() -> Result<String> {
    programs::installed(&["node"])?;
    let file = modules().join("ws/package.json");
    let text = fs::read_to_string(file).context("not installed: run `npm ci` in tests/clients")?;
    let package: Value = serde_json::from_str(&text)?;
    Ok(format!("ws {}", package["version"].as_str().unwrap_or("?")))
}

pub(super) async fn start(place: &Place<'_>) -> Result<Running> {
    let file = place.directory.join("ws.js");
    fs::write(&file, include_str!("ws.js"))?;
    let mut command = Command::new(programs::installed(&["node"])?);
    command.arg(&file).env("NODE_PATH", modules());
    let mut process = Process::spawn("ws", command, place.directory)?;
    let address = process.listening("bench").await?;
    Ok(Running::new(process, address))
}

fn modules() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients/node_modules")
}
