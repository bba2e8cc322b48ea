//! An edge: a `causeway-proxy` process, or one with the edge mounted in a Pingora server.

use std::{
    ffi::OsStr,
    net::{SocketAddr, TcpListener},
    path::Path,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::{net::TcpStream, process::Command};

use crate::harness::{http, loopback, process::Process, programs, settings::Settings, wait};

/// What the edge runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `causeway-proxy`, with listeners of its own.
    Edge,
    /// The example of the edge in a plain Pingora server.
    Plugin,
}

/// Makes two tests of each of these functions, which take a [`Program`]: one for each of them.
#[macro_export]
macro_rules! on_edge_and_plugin {
    ($($test:ident),+ $(,)?) => {
        mod on_the_edge {
            $(
                #[tokio::test]
                async fn $test() -> anyhow::Result<()> {
                    super::$test($crate::harness::edge::Program::Edge).await
                }
            )+
        }
        mod on_the_plugin {
            $(
                #[tokio::test]
                async fn $test() -> anyhow::Result<()> {
                    super::$test($crate::harness::edge::Program::Plugin).await
                }
            )+
        }
    };
}

/// A running edge with one listener.
#[derive(Debug)]
pub struct Edge {
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where its own responses are: `/ready`, `/metrics`, `/backends`.
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
        Self::start_in(Program::Edge, settings, directory).await
    }

    /// As [`Edge::start`], in either program.
    ///
    /// # Errors
    ///
    /// As [`Edge::start`].
    pub async fn start_in(program: Program, settings: &Settings, directory: &Path) -> Result<Self> {
        Self::start_with(program, &[], settings, directory).await
    }

    /// As [`Edge::start_in`], with variables in its environment.
    ///
    /// # Errors
    ///
    /// As [`Edge::start`].
    pub async fn start_with(
        program: Program,
        environment: &[(&str, &str)],
        settings: &Settings,
        directory: &Path,
    ) -> Result<Self> {
        match program {
            Program::Edge => {
                let mut process = launch("causeway-proxy", environment, settings, directory, &[])?;
                Ok(Self {
                    address: process.listening("edge").await?,
                    admin: process.listening("admin").await?,
                    process,
                })
            }
            Program::Plugin => Self::start_plugin(environment, settings, directory, &[]).await,
        }
    }

    /// As [`Edge::start_in`] with [`Program::Plugin`], whose listener speaks TLS.
    ///
    /// # Errors
    ///
    /// As [`Edge::start`].
    pub async fn start_plugin_tls(
        settings: &Settings,
        directory: &Path,
        certificate: &Path,
        key: &Path,
    ) -> Result<Self> {
        let flags = [
            OsStr::new("--certificate"),
            certificate.as_os_str(),
            OsStr::new("--key"),
            key.as_os_str(),
        ];
        Self::start_plugin(&[], settings, directory, &flags).await
    }

    async fn start_plugin(
        environment: &[(&str, &str)],
        settings: &Settings,
        directory: &Path,
        flags: &[&OsStr],
    ) -> Result<Self> {
        // Pingora does not tell which port the kernel chose. Nobody else takes one of an address that is ours alone.
        let free = TcpListener::bind(loopback::own_any_port())?;
        let address = free.local_addr()?;
        drop(free);
        let listeners = json!([{ "address": address.to_string() }]);
        let settings = settings.clone().with("listeners", listeners);
        let mut process = launch("examples/plugin", environment, &settings, directory, flags)?;
        let admin = process.listening("admin").await?;
        wait::until("the plugin to listen", wait::SOON, async || {
            TcpStream::connect(address).await.ok()
        })
        .await?;
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
    /// The edge does not respond, or not in JSON.
    pub async fn backends(&self) -> Result<Value> {
        let response = http::get(self.admin, "/backends").await?;
        serde_json::from_slice(&response.body).context("/backends is not JSON")
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

fn launch(
    program: &str,
    environment: &[(&str, &str)],
    settings: &Settings,
    directory: &Path,
    flags: &[&OsStr],
) -> Result<Process> {
    let file = directory.join("edge.yaml");
    std::fs::write(&file, settings.text())?;
    let mut command = Command::new(programs::ours(program)?);
    command.arg("--config").arg(&file).args(flags);
    command.envs(environment.iter().copied());
    Process::spawn("edge", command, directory)
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
