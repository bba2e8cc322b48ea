//! A `causeway-node` process.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde_json::json;
use tokio::process::Command;

use crate::harness::{
    http,
    process::{Process, Signal},
    programs,
    settings::Settings,
    wait,
};

/// A running node.
#[derive(Debug)]
pub struct Node {
    /// Its `node.id`.
    pub id: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Where its admin listener is.
    pub admin: SocketAddr,
    /// The process behind it.
    pub process: Process,
    file: PathBuf,
    settings: Settings,
    variables: Vec<(String, String)>,
}

/// Settings of a node on ports that the kernel chooses, without Redis.
#[must_use]
pub fn settings() -> Settings {
    Settings::new(json!({ "listen": "127.0.0.1:0", "admin": { "address": "127.0.0.1:0" } }))
}

/// Settings of a node that shares its messages over the Redis at `url`.
#[must_use]
pub fn settings_with_redis(url: &str) -> Settings {
    settings().with("broker", json!({ "kind": "redis", "url": url }))
}

/// Settings of a node on a busy machine: it gives up on no session whose client is only slow.
///
/// After the 5 s that are usual its session would be gone, and the client would be told of a new one: which looks as if the edge
/// had sent it elsewhere.
#[must_use]
pub fn patient(settings: Settings) -> Settings {
    let echo = json!({
        "path": "/echo", "protocol": "sockjs", "mode": "echo", "disconnect_delay": "2m",
    });
    let page = json!({ "path": "/ws", "protocol": "websocket" });
    settings.with("endpoints", json!([echo, page]))
}

impl Node {
    /// Starts a node and waits until it listens (it may not be ready yet).
    ///
    /// # Errors
    ///
    /// The program is not built, refuses the settings or does not listen soon.
    pub async fn start(id: &str, settings: Settings, directory: &Path) -> Result<Self> {
        Self::start_with(id, settings, directory, &[]).await
    }

    /// The same with these environment variables.
    ///
    /// # Errors
    ///
    /// The program is not built, refuses the settings or does not listen soon.
    pub async fn start_with(
        id: &str,
        settings: Settings,
        directory: &Path,
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let variables = variables.iter();
        let variables = variables.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let variables: Vec<_> = variables.collect();
        let file = directory.join(format!("{id}.yaml"));
        let settings = settings.with("node.id", json!(id));
        let (process, address, admin) = launch(id, &settings, &file, &variables).await?;
        Ok(Self {
            id: id.to_owned(),
            address,
            admin,
            process,
            file,
            settings,
            variables,
        })
    }

    /// Starts it again where it listened, after its end. Its address should be one of its own: see [`loopback`].
    ///
    /// # Errors
    ///
    /// It does not start, or somebody else has its port.
    ///
    /// [`loopback`]: crate::harness::loopback
    pub async fn restart(&mut self) -> Result<()> {
        let settings = self.settings.clone().with("listen", json!(self.address));
        (self.process, _, self.admin) =
            launch(&self.id, &settings, &self.file, &self.variables).await?;
        Ok(())
    }

    /// The same with other settings.
    ///
    /// # Errors
    ///
    /// As [`restart`](Self::restart).
    pub async fn restart_with(&mut self, change: impl FnOnce(Settings) -> Settings) -> Result<()> {
        self.settings = change(self.settings.clone());
        self.restart().await
    }

    /// Waits until `/ready` says 200.
    ///
    /// # Errors
    ///
    /// It did not soon.
    pub async fn ready(&self) -> Result<()> {
        let what = format!("{} to be ready", self.id);
        wait::until(&what, wait::SOON, async || {
            (self.readiness().await? == 200).then_some(())
        })
        .await
    }

    /// The status of `/ready`, or nothing if there was no response.
    pub async fn readiness(&self) -> Option<u16> {
        http::get(self.address, "/ready")
            .await
            .ok()
            .map(|response| response.status)
    }

    /// Ends the process at once, as a crash would.
    ///
    /// # Errors
    ///
    /// The system cannot tell whether it ended.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// Asks it to drain and end.
    pub fn drain(&mut self) {
        self.process.signal(Signal::Terminate);
    }
}

async fn launch(
    id: &str,
    settings: &Settings,
    file: &Path,
    variables: &[(String, String)],
) -> Result<(Process, SocketAddr, SocketAddr)> {
    std::fs::write(file, settings.text())?;
    let mut command = Command::new(programs::ours("causeway-node")?);
    command.arg("--config").arg(file);
    command.envs(variables.iter().cloned());
    let directory = file.parent().unwrap_or(Path::new("."));
    let mut process = Process::spawn(id, command, directory)?;
    let address = process.listening("node").await?;
    let admin = process.listening("admin").await?;
    Ok((process, address, admin))
}
