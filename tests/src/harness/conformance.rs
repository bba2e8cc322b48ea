//! The node and the edge of `conf/conformance.yaml` and `conf/conformance-edge.yaml`, on ports that the kernel chooses.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::{Result, ensure};

use tokio::process::Command;

use crate::harness::{edge::Edge, process::Process, programs};

/// What `make conformance` starts.
#[derive(Debug)]
pub struct Conformance {
    /// Where the node with the services listens.
    pub node: SocketAddr,
    /// The edge before it.
    pub edge: Edge,
    _process: Process,
}

impl Conformance {
    /// Starts both and waits until the edge sends clients to the node.
    ///
    /// # Errors
    ///
    /// A program is not built, or refuses its file.
    pub async fn start(directory: &Path) -> Result<Self> {
        let patient = "    protocol: sockjs\n    disconnect_delay: 1m\n";
        let changes = [
            ("127.0.0.1:8081", "127.0.0.1:0"),
            ("    protocol: sockjs\n", patient), // A busy machine is no reason to lose a session.
        ];
        let text = changed("conformance.yaml", &changes)?;
        let mut process = spawn("causeway-node", "node", &text, directory)?;
        let node = process.listening("node").await?;
        let changes = [
            ("127.0.0.1:8080", "127.0.0.1:0"),
            ("127.0.0.1:8082", "127.0.0.1:0"),
            ("127.0.0.1:8081", &node.to_string()),
        ];
        let text = changed("conformance-edge.yaml", &changes)?;
        let mut edge = spawn("causeway-proxy", "edge", &text, directory)?;
        let edge = Edge {
            address: edge.listening("edge").await?,
            admin: edge.listening("admin").await?,
            process: edge,
        };
        edge.backend_in_state("node", "up").await?;
        Ok(Self {
            node,
            edge,
            _process: process,
        })
    }
}

/// Starts `program` with a configuration file that holds `text`.
fn spawn(program: &str, name: &str, text: &str, directory: &Path) -> Result<Process> {
    let file = directory.join(format!("{name}.yaml"));
    fs::write(&file, text)?;
    let mut command = Command::new(programs::ours(program)?);
    command.arg("--config").arg(&file);
    Process::spawn(name, command, directory)
}

/// The text of a file in `conf/` with other settings in it.
fn changed(name: &str, changes: &[(&str, &str)]) -> Result<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf");
    let mut text = fs::read_to_string(directory.join(name))?;
    for (written, wanted) in changes {
        ensure!(text.contains(written), "{name} does not say {written:?}");
        text = text.replace(written, wanted);
    }
    Ok(text)
}
