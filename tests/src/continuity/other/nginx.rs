//! nginx: a master and its workers. For SIGUSR2 the master starts another one, from the program as it is installed then, which
//! inherits the listeners; the old one stops accepting for SIGWINCH and drains for SIGQUIT.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

use crate::{
    continuity::other::{OldConnections, Place, Reload, threads},
    harness::{
        process::{Process, Signal},
        process_group::ProcessGroup,
        programs, wait,
    },
};

pub(super) const NAME: &str = "nginx";

/// Within which a master that obeys has started another one.
const OBEY_WAIT: Duration = Duration::from_secs(10);

/// It is a daemon: in the foreground it ignores the signals of an upgrade.
#[derive(Debug)]
pub(super) struct Nginx {
    pub(super) group: ProcessGroup,
    pid_file: PathBuf,
}

impl Nginx {
    pub(super) async fn start(place: &Place<'_>, old: OldConnections) -> Result<Self> {
        let file = place.directory.join("nginx.conf");
        let pid_file = place.directory.join("nginx.pid");
        fs::write(&file, config(place, old, &pid_file)?)?;
        let mut command = Command::new(programs::installed(&[NAME])?);
        command.arg("-c").arg(&file).arg("-p").arg(place.directory);
        let mut started = Process::spawn(NAME, command, place.directory)?;
        let status = started.exit(wait::SOON).await?;
        ensure!(status.success(), "{status} {}", started.tail());
        let master = wait::until("the process id of nginx", wait::SOON, async || {
            master(&pid_file)
        });
        // A daemon begins a session, and so a group.
        let group = ProcessGroup::new(master.await?)?;
        Ok(Self { group, pid_file })
    }

    pub(super) async fn reload(&self) -> Result<Reload> {
        let before = self.group.running();
        let former = master(&self.pid_file).context("nginx has no process id")?;
        self.group.signal(former, Signal::User2);
        let new = wait::until("a new master of nginx", OBEY_WAIT, async || {
            // It writes the file before it starts its workers.
            let new = master(&self.pid_file).filter(|new| *new != former)?;
            let running = self.group.running();
            let is_new = |pid: &&i32| !before.contains(pid);
            (threads() < running.iter().filter(is_new).count()).then_some(new)
        });
        if new.await.is_err() {
            return Ok(Reload::Ignored(
                "nginx starts no third master before the first one has ended",
            ));
        }
        self.group.signal(former, Signal::WindowChange);
        self.group.signal(former, Signal::Quit);
        Ok(Reload::Done)
    }
}

fn master(pid_file: &Path) -> Option<i32> {
    fs::read_to_string(pid_file).ok()?.trim().parse().ok()
}

/// Sessions of SockJS over HTTP stay on one node by their path; everything else is spread.
fn config(place: &Place<'_>, old: OldConnections, pid_file: &Path) -> Result<String> {
    let mut servers = String::new();
    for (_, address) in place.nodes {
        writeln!(servers, "    server {address};")?;
    }
    let shutdown_timeout = match old {
        OldConnections::Kept => "",
        OldConnections::Closed => "worker_shutdown_timeout 10s;\n",
    };
    let directory = place.directory.display();
    let certificates = place.certificates.display();
    Ok(format!(
        "worker_processes {threads};
worker_rlimit_nofile 20000;
pid {pid};
error_log {directory}/nginx-error.log;
{shutdown_timeout}events {{ worker_connections 20000; multi_accept on; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  keepalive_requests 100000000;
  keepalive_timeout 1h;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  map $uri $affinity {{ ~^/sockjs-[0-9]+/[^/]+/(?<session>[^/]+)/ $session; default $request_id; }}
  upstream nodes {{
    hash $affinity consistent;
{servers}    keepalive 128;
  }}
  server {{
    listen {plain} backlog=4096;
    listen {secure} ssl backlog=4096;
    ssl_certificate {certificates}/site.crt;
    ssl_certificate_key {certificates}/site.key;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_buffer_size 4k;
    location / {{
      proxy_pass http://nodes;
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_buffering off;
      proxy_buffer_size 4k;
      proxy_read_timeout 1h;
      proxy_send_timeout 1h;
    }}
  }}
}}
",
        threads = threads(),
        pid = pid_file.display(),
        plain = place.plain,
        secure = place.secure,
    ))
}
