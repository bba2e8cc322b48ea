//! A `causeway-proxy` process.

use std::{net::SocketAddr, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::harness::{http, process::Process, programs, settings::Settings, wait};

/// A running edge with one listener.
#[derive(Debug)]
pub struct Edge {
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where its own answers are: `/ready`, `/metrics`, `/backends`.
    pub admin: SocketAddr,
    /// The process behind it.
    pub process: Process,
}

/// Settings of an edge in front of one pool, every port chosen by the kernel.
#[must_use]
pub fn settings(backends: &[(&str, SocketAddr)]) -> Settings {
    let backends: Vec<Value> = backends
        .iter()
        .map(|(id, address)| json!({ "id": id, "address": address.to_string() }))
        .collect();
    Settings::new(json!({
        "listeners": [{ "address": "127.0.0.1:0" }],
        "admin": { "address": "127.0.0.1:0" },
        "pools": [{ "name": "nodes", "backends": backends }],
        "routes": [{ "path": "/", "pool": "nodes" }],
    }))
}

impl Edge {
    /// Starts an edge and waits until it listens (its backends may not be known yet).
    ///
    /// # Errors
    ///
    /// The program is not built, refuses the settings or does not listen soon.
    pub async fn start(settings: &Settings, directory: &Path) -> Result<Self> {
        let file = directory.join("edge.yaml");
        std::fs::write(&file, settings.text())?;
        let mut command = Command::new(programs::ours("causeway-proxy")?);
        command.arg("--config").arg(&file);
        let mut process = Process::spawn("edge", command, directory)?;
        let address = process.listening("edge").await?;
        let admin = process.listening("admin").await?;
        Ok(Self {
            address,
            admin,
            process,
        })
    }

    /// What the edge thinks of its backends: the JSON of `/backends`.
    ///
    /// # Errors
    ///
    /// The edge does not answer, or not in JSON.
    pub async fn backends(&self) -> Result<Value> {
        let answer = http::get(self.admin, "/backends").await?;
        serde_json::from_slice(&answer.body).context("/backends is not JSON")
    }

    /// Waits until the backend is in this state.
    ///
    /// # Errors
    ///
    /// It is not soon.
    pub async fn backend_in_state(&self, id: &str, state: &str) -> Result<()> {
        let what = format!("backend {id} to be {state}");
        wait::until(&what, wait::SOON, async || {
            let backends = self.backends().await.ok()?;
            (find_backend(&backends, id)?["state"] == state).then_some(())
        })
        .await
    }
}

/// The object with this `id`, wherever it is in the tree.
fn find_backend<'tree>(tree: &'tree Value, id: &str) -> Option<&'tree Value> {
    match tree {
        Value::Object(fields) if fields.get("id").is_some_and(|found| found == id) => Some(tree),
        Value::Object(fields) => fields.values().find_map(|value| find_backend(value, id)),
        Value::Array(items) => items.iter().find_map(|value| find_backend(value, id)),
        _ => None,
    }
}
