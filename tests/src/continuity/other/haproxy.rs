//! HAProxy: a master and its workers. For SIGUSR2 the master starts a new worker, which gets the listeners from the old one.

use std::{fmt::Write as _, fs};

use anyhow::Result;
use tokio::process::Command;

use crate::{
    continuity::other::{OldConnections, Place, Reload, both_in_one, threads},
    harness::{
        process::{Process, Signal},
        process_group::ProcessGroup,
        programs, wait,
    },
};

pub(super) const NAME: &str = "haproxy";

/// It runs in the foreground. Dropped in this order: the group while its first process is not waited for.
#[derive(Debug)]
pub(super) struct Haproxy {
    pub(super) group: ProcessGroup,
    process: Process,
}

impl Haproxy {
    pub(super) fn start(place: &Place<'_>, old: OldConnections) -> Result<Self> {
        let file = place.directory.join("haproxy.cfg");
        fs::write(&file, config(place, old)?)?;
        let mut command = Command::new(programs::installed(&[NAME])?);
        command.arg("-W").arg("-f").arg(&file);
        let process = Process::spawn(NAME, command, place.directory)?;
        let group = ProcessGroup::new(process.pid())?;
        Ok(Self { group, process })
    }

    /// The process that stays.
    pub(super) fn master(&self) -> i32 {
        self.process.pid()
    }

    pub(super) async fn reload(&self) -> Result<Reload> {
        let before = self.group.running();
        self.group.signal(self.master(), Signal::User2);
        wait::until("a new worker of HAProxy", wait::SOON, async || {
            let running = self.group.running();
            let is_new = |pid: &i32| !before.contains(pid);
            running.iter().any(is_new).then_some(())
        })
        .await?;
        Ok(Reload::Done)
    }
}

/// Sessions of SockJS over HTTP stay on one node by their path; WebSockets need no affinity.
fn config(place: &Place<'_>, old: OldConnections) -> Result<String> {
    let mut servers = String::new();
    for (id, address) in place.nodes {
        writeln!(servers, "  server {id} {address} check inter 2s")?;
    }
    let hard_stop = match old {
        OldConnections::Kept => "",
        OldConnections::Closed => "  hard-stop-after 10s\n",
    };
    Ok(format!(
        "global
  nbthread {threads}
  maxconn 9500
  stats socket {directory}/haproxy.sock mode 600 level admin expose-fd listeners
  ssl-default-bind-options ssl-min-ver TLSv1.2
{hard_stop}defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
  option forwardfor
  option httpchk GET /ready
frontend edge
  bind {plain} backlog 4096
  bind {secure} ssl crt {pem} backlog 4096
  use_backend sessions if {{ path_beg /sockjs- }}
  default_backend nodes
backend nodes
  balance leastconn
{servers}backend sessions
  balance uri depth 3
  hash-type consistent
{servers}",
        threads = threads(),
        directory = place.directory.display(),
        plain = place.plain,
        secure = place.secure,
        pem = both_in_one(place)?.display(),
    ))
}
