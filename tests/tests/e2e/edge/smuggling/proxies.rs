//! The three proxies, each before a recorder of its own.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use causeway_tests::harness::{
    edge,
    edge::{Edge, Program},
    loopback,
    process::Process,
    programs,
    settings::Settings,
    wait,
};
use rustls::ClientConfig;
use serde_json::json;
use tokio::{net::TcpStream, process::Command};

use crate::edge::smuggling::recorder::Recorder;

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Edge,
    Plugin,
    Nginx,
    Haproxy,
}

/// A running proxy.
pub(crate) struct Proxy {
    /// Where plain connections come.
    pub(crate) address: SocketAddr,
    /// Where those with TLS come, which may be of HTTP/2.
    pub(crate) tls: SocketAddr,
    /// Clients of HTTP/1 that trust it.
    pub(crate) clients: Arc<ClientConfig>,
    pub(crate) recorder: Recorder,
    process: Process,
}

/// Where it listens, and what it passes requests on to.
struct Places<'a> {
    address: SocketAddr,
    tls: SocketAddr,
    backend: SocketAddr,
    directory: &'a Path,
    certificates: &'a Path,
}

impl Proxy {
    /// Starts it with the certificate in `certificates`, and waits until it serves. Deadlines are short: many a request here is
    /// never complete.
    pub(crate) async fn start(
        kind: Kind,
        directory: &Path,
        certificates: &Path,
        clients: Arc<ClientConfig>,
    ) -> Result<Self> {
        let recorder = Recorder::start().await?;
        let (address, tls) = (free_address()?, free_address()?);
        let mut places = Places {
            address,
            tls,
            backend: recorder.address,
            directory,
            certificates,
        };
        let process = match kind {
            Kind::Edge => edge(&places).await?,
            Kind::Plugin => plugin(&mut places).await?,
            Kind::Nginx => rival(
                "nginx",
                &["-p", "DIRECTORY", "-c"],
                &nginx(&places),
                directory,
            )?,
            Kind::Haproxy => rival("haproxy", &["-db", "-f"], &haproxy(&places)?, directory)?,
        };
        let (address, tls) = (places.address, places.tls);
        for address in [address, tls] {
            wait::until("the proxy to listen", wait::SOON, async || {
                TcpStream::connect(address).await.ok()
            })
            .await?;
        }
        Ok(Self {
            address,
            tls,
            clients,
            recorder,
            process,
        })
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process.is_running()
    }
}

async fn edge(places: &Places<'_>) -> Result<Process> {
    let listeners = json!([
        { "address": places.address.to_string() },
        { "address": places.tls.to_string(), "tls": { "folder": places.certificates } },
    ]);
    let settings = settings(places).with("listeners", listeners);
    let edge = Edge::start(&settings, places.directory).await?;
    edge.backend_in_state("b1", "up").await?;
    Ok(edge.process)
}

/// It has one listener, in plain.
async fn plugin(places: &mut Places<'_>) -> Result<Process> {
    let edge = Edge::start_in(Program::Plugin, &settings(places), places.directory).await?;
    edge.backend_in_state("b1", "up").await?;
    (places.address, places.tls) = (edge.address, edge.address);
    Ok(edge.process)
}

fn settings(places: &Places<'_>) -> Settings {
    edge::settings(&[("b1", places.backend)])
        .with("timeouts.head", json!("1s"))
        .with("timeouts.downstream_read", json!("1s"))
        .with("health.kind", json!("tcp"))
}

/// Starts a program of the system; the file with its settings is the last argument.
fn rival(program: &str, flags: &[&str], settings: &str, directory: &Path) -> Result<Process> {
    let file = directory.join(format!("{program}.conf"));
    std::fs::write(&file, settings)?;
    let mut command = Command::new(programs::installed(&[program])?);
    for flag in flags {
        match *flag {
            "DIRECTORY" => command.arg(directory),
            flag => command.arg(flag),
        };
    }
    command.arg(&file);
    Process::spawn(program, command, directory).with_context(|| format!("{program} does not start"))
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind(loopback::own_any_port())?.local_addr()?)
}

/// One process and no workers, so that it ends when it is told to.
fn nginx(places: &Places<'_>) -> String {
    let Places {
        address,
        tls,
        backend,
        ..
    } = places;
    let (directory, certificates) = (places.directory.display(), places.certificates.display());
    format!(
        "daemon off; master_process off;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log;
events {{ worker_connections 500; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  client_header_timeout 1s;
  client_body_timeout 1s;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream behind {{ server {backend}; keepalive 8; }}
  server {{
    listen {address};
    listen {tls} ssl http2;
    ssl_certificate {certificates}/site.crt;
    ssl_certificate_key {certificates}/site.key;
    location / {{
      proxy_pass http://behind;
      proxy_http_version 1.1;
      proxy_request_buffering off;
      proxy_set_header Host $http_host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_set_header X-Forwarded-For $remote_addr;
    }}
  }}
}}
"
    )
}

/// It wants the certificate and its key in one file.
fn haproxy(places: &Places<'_>) -> Result<String> {
    let Places {
        address,
        tls,
        backend,
        ..
    } = places;
    let part = |name| std::fs::read_to_string(places.certificates.join(name));
    let both = places.directory.join("site.pem");
    std::fs::write(&both, part("site.crt")? + &part("site.key")?)?;
    let both = both.display();
    Ok(format!(
        "global
  maxconn 500
defaults
  mode http
  timeout connect 5s
  timeout client 1s
  timeout http-request 1s
  timeout server 5s
  timeout tunnel 5s
frontend edge
  bind {address}
  bind {tls} ssl crt {both} alpn h2,http/1.1
  default_backend behind
backend behind
  http-request del-header x-forwarded-for
  option forwardfor
  server b1 {backend}
"
    ))
}
