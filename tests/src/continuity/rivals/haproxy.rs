//! HAProxy before the nodes: a client goes to another node at once when one accepts no connection.

use std::{fmt::Write as _, fs, net::SocketAddr, path::Path};

use anyhow::Result;
use tokio::process::Command;

use crate::harness::{process::Process, programs};

pub(super) const NAME: &str = "haproxy";

pub(super) fn version() -> Result<String> {
    programs::version_line(&programs::installed(&[NAME])?, "-v")
}

/// Listens at `front`; `ready` is the path that says whether a node takes clients.
pub(super) fn start(
    front: SocketAddr,
    nodes: &[(&str, SocketAddr)],
    ready: &str,
    directory: &Path,
) -> Result<Process> {
    let mut servers = String::new();
    for (id, address) in nodes {
        writeln!(servers, "  server {id} {address}")?;
    }
    let config = format!(
        "global
  maxconn 9500
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
  option forwardfor
  option redispatch 1
  retries 3
frontend edge
  bind {front} backlog 4096
  default_backend nodes
backend nodes
  balance leastconn
  option httpchk GET {ready}
  default-server check inter 1s fastinter 250ms downinter 250ms fall 2 rise 1
{servers}"
    );
    let file = directory.join("haproxy.cfg");
    fs::write(&file, config)?;
    let mut command = Command::new(programs::installed(&[NAME])?);
    command.arg("-db").arg("-f").arg(&file);
    Process::spawn(NAME, command, directory)
}
